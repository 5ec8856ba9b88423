"""Images and videos as files: read with Pillow, written with Pillow and PyAV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...hyvideo_core.errors import GraphError, ShapeError
from ..host import check_interrupt

# ITU-T H.273 code points: BT.709 primaries and transfer, the matrix that players assume for HD
_BT709 = 1


@dataclass(frozen=True)
class VideoClip:
    """What the VIDEO socket carries here.

    Args:
        images: (N, H, W, 3) in 0..1.
        fps: frames per second.
    """

    images: Tensor
    fps: Fraction


def load_image(path: Path) -> tuple[Tensor, Tensor]:
    """A picture, upright, and where it is transparent.

    Returns:
        (1, H, W, 3) float32 in 0..1, and a mask (1, H, W) that is 1 where nothing is to be seen.
    Raises:
        GraphError: not a picture, damaged, or too large to be a sound one.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise GraphError(f"{path.name} cannot be read as a picture: {error}; give a PNG, JPEG or WebP") from error
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
    return pixels[None, ..., :3].contiguous(), 1 - pixels[None, ..., 3]


def save_png(path: Path, frame: Tensor, metadata: Mapping[str, Any]) -> None:
    """Writes one (H, W, 3) frame in 0..1; metadata goes into text chunks as JSON, where ComfyUI looks for it."""
    chunks = PngInfo()
    for key, value in metadata.items():
        chunks.add_text(key, json.dumps(value))
    with _whole_file(path) as partial:
        Image.fromarray(_bytes(frame)).save(partial, format="PNG", pnginfo=chunks, compress_level=4)


def save_mp4(path: Path, clip: VideoClip, metadata: Mapping[str, Any]) -> None:
    """Writes an h264 mp4 in yuv420p, which every player and browser shows.

    That format halves the colour's resolution, so odd sizes grow by repeating the last row or column.
    Metadata is written as JSON under its keys, where ComfyUI looks for it.

    Raises:
        ShapeError: no frames, or not (N, H, W, 3).
    """
    if clip.images.ndim != 4 or clip.images.shape[-1] != 3 or not len(clip.images):
        raise ShapeError(f"expected frames (N, H, W, 3) with N of at least 1, got {tuple(clip.images.shape)}")
    height, width = (size + size % 2 for size in clip.images.shape[1:3])
    # without the flag the mp4 container drops keys that it does not know
    flags = {"movflags": "use_metadata_tags+faststart"}
    with _whole_file(path) as partial, av.open(str(partial), "w", format="mp4", options=flags) as container:
        container.metadata.update({key: json.dumps(value) for key, value in metadata.items()})
        stream = container.add_stream("libx264", rate=clip.fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = ColorRange.MPEG
        for image in clip.images:
            check_interrupt()
            container.mux(stream.encode(_yuv_frame(image, height, width)))
        container.mux(stream.encode(None))


def _yuv_frame(image: Tensor, height: int, width: int) -> av.VideoFrame:
    pixels = _bytes(image)
    padded = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)


def _bytes(image: Tensor) -> np.ndarray:
    """A picture in 0..1 as bytes; NaN becomes black instead of anything."""
    levels = image.float().nan_to_num(0).clamp(0, 1).mul(255).round()
    return levels.to("cpu", torch.uint8).numpy()


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A name to write under; the file gets its own name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
