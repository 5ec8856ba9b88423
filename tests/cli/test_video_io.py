"""Files read back: what was written is what is there."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import GraphError, ShapeError
from hyvideo_nodes.nodes.cli.video_io import VideoClip, load_image, save_mp4, save_png
from PIL import Image


@pytest.mark.parametrize(("count", "height", "width"), [(1, 16, 32), (5, 17, 33), (3, 2, 2), (2, 1, 1)])
def test_mp4_has_the_frames_size_rate_and_codec(tmp_path: Path, count: int, height: int, width: int) -> None:
    path = tmp_path / "clip.mp4"
    save_mp4(path, VideoClip(torch.rand(count, height, width, 3), Fraction(24)), {})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert len(frames) == count
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 24
        # yuv420p needs even sizes: odd ones grow
        assert (stream.width, stream.height) == (width + width % 2, height + height % 2)
        assert float(stream.duration * stream.time_base) == pytest.approx(count / 24)


@pytest.mark.parametrize("rgb", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.2, 0.5, 0.8)])
def test_colours_come_back(tmp_path: Path, rgb: tuple[float, float, float]) -> None:
    path = tmp_path / "clip.mp4"
    save_mp4(path, VideoClip(torch.tensor(rgb).expand(2, 32, 32, 3), Fraction(24)), {})
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.colorspace == 1  # BT.709
        frame = next(container.decode(video=0))
    y, u, v = _planes(frame)
    back = _rgb_of_bt709(y, u, v)
    assert back == pytest.approx(rgb, abs=0.02)


def test_odd_edge_repeats_the_last_column(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    save_mp4(path, VideoClip(torch.ones(1, 32, 31, 3), Fraction(24)), {})
    with av.open(str(path)) as container:
        luma = next(container.decode(video=0)).to_ndarray(format="gray")
    assert luma[:, -1].min() > 225


def test_fractional_rate_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    save_mp4(path, VideoClip(torch.rand(4, 16, 16, 3), Fraction(24000, 1001)), {})
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_mp4_metadata_is_json(tmp_path: Path) -> None:
    prompt = {"1": {"class_type": "Añ", "inputs": {"text": 'a "cat"; = \\ \n new'}}}
    save_mp4(tmp_path / "clip.mp4", VideoClip(torch.rand(1, 16, 16, 3), Fraction(24)), {"prompt": prompt})
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert json.loads(container.metadata["prompt"]) == prompt


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results" / "clip.mp4"
    frames = torch.rand(3, 16, 16, 3)

    class Broken:
        shape, ndim = frames.shape, 4

        def __len__(self) -> int:
            return 3

        def __iter__(self):
            yield frames[0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_mp4(path, VideoClip(Broken(), Fraction(24)), {})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("shape", [(0, 16, 16, 3), (1, 16, 16, 4), (16, 16, 3)])
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected frames"):
        save_mp4(tmp_path / "clip.mp4", VideoClip(torch.zeros(shape), Fraction(24)), {})


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    frame = torch.randint(0, 256, (7, 5, 3)) / 255
    save_png(tmp_path / "a.png", frame, {"prompt": {"1": 2}})
    images, mask = load_image(tmp_path / "a.png")
    assert images.dtype == torch.float32
    assert torch.equal(images[0], frame)
    assert mask.abs().max() == 0
    with Image.open(tmp_path / "a.png") as file:
        assert json.loads(file.text["prompt"]) == {"1": 2}


def test_nan_becomes_black(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", torch.full((2, 2, 3), float("nan")), {})
    assert load_image(tmp_path / "a.png")[0].max() == 0


def test_transparency_becomes_the_mask_and_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.full((2, 4, 4), 255, np.uint8)
    pixels[0, 0, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    images, mask = load_image(tmp_path / "a.png")
    assert images.shape == (1, 4, 2, 3)
    assert mask.shape == (1, 4, 2)
    assert mask.sum() == 1
    assert mask[0, 0, 1] == 1


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(GraphError, match=r"a\.png cannot be read as a picture"):
        load_image(tmp_path / "a.png")


def _planes(frame: av.VideoFrame) -> list[float]:
    return [float(np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[4, 4]) for plane in frame.planes]


def _rgb_of_bt709(y: float, u: float, v: float) -> list[float]:
    luma, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = luma + 1.5748 * red, luma + 1.8556 * blue
    return [r, (luma - 0.2126 * r - 0.0722 * b) / 0.7152, b]
