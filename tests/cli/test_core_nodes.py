"""ComfyUI's nodes as we wrote them for the command line."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hyvideo_nodes.hyvideo_core.errors import CheckpointError
from hyvideo_nodes.nodes.cli import core_nodes
from hyvideo_nodes.nodes.cli.image_ops import FILTERS, crop_to_aspect, resize, upscale_tiled
from hyvideo_nodes.nodes.cli.video_io import save_png
from safetensors.torch import save_file

from .conftest import main_module


@pytest.mark.parametrize("method", FILTERS)
def test_resize_keeps_a_flat_picture_flat(method: str) -> None:
    images = torch.full((2, 12, 10, 3), 0.25)
    resized = resize(images, 33, 7, method)
    assert resized.shape == (2, 7, 33, 3)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.25))


@pytest.mark.parametrize("method", FILTERS)
def test_resize_stays_in_range_and_keeps_left_and_right(method: str) -> None:
    images = torch.zeros(1, 16, 16, 3)
    images[:, :, 8:] = 1
    resized = resize(images, 40, 24, method)
    assert 0 <= resized.min() < 0.01
    assert 0.99 < resized.max() <= 1
    assert resized[0, :, :16].mean() < 0.05
    assert resized[0, :, -16:].mean() > 0.95


def test_crop_is_centred_and_has_the_proportions() -> None:
    columns = torch.arange(20.0).view(1, 1, 20, 1).expand(1, 10, 20, 3)
    part = crop_to_aspect(columns, 64, 64)
    assert part.shape == (1, 10, 10, 3)
    assert part[0, 0, :, 0].tolist() == list(range(5, 15))


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(0, 0, (8, 16)), (8, 0, (4, 8)), (0, 16, (16, 32)), (5, 6, (6, 5))]
)
def test_image_scale_fills_in_the_missing_side(width: int, height: int, expected: tuple[int, int]) -> None:
    output = core_nodes.ImageScale.execute(torch.rand(2, 8, 16, 3), "bilinear", width, height, "disabled")
    assert output[0].shape[1:3] == expected


def test_image_scale_by_rounds() -> None:
    assert core_nodes.ImageScaleBy.execute(torch.rand(1, 5, 7, 3), "area", 1.5)[0].shape == (1, 8, 10, 3)


@pytest.mark.parametrize("tile", [5, 16, 100])
def test_tiled_upscaling_equals_the_whole(tile: int) -> None:
    kernel = torch.randn(3, 3, 5, 5)

    def upscaler(part: torch.Tensor) -> torch.Tensor:
        return F.conv2d(part, kernel, padding=2).repeat_interleave(2, -1).repeat_interleave(2, -2)

    frame = torch.rand(1, 3, 23, 31)
    torch.testing.assert_close(upscale_tiled(frame, upscaler, 2, tile, margin=2), upscaler(frame))


class _Doubling(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)


class _Descriptor(SimpleNamespace):
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels)


def _fake_spandrel(read: Any) -> SimpleNamespace:
    loader = SimpleNamespace(load_from_state_dict=read)
    error = type("UnsupportedModelError", (Exception,), {})
    return SimpleNamespace(
        ModelLoader=lambda: loader, ImageModelDescriptor=_Descriptor, UnsupportedModelError=error, __spec__=object()
    )


def _upscaling(saving: Any, tmp_path: Path, name: str = "x2.safetensors") -> tuple[Any, str]:
    folder = tmp_path / "models" / "upscale_models"
    folder.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, folder / "x2.safetensors")
    torch.save({"params_ema": {"weight": torch.zeros(2)}}, folder / "x2.pth")
    saving["4"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": name}}
    saving["5"] = {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["4", 0], "image": ["1", 0]}}
    saving["6"] = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "big_%width%"}}
    return saving, str(tmp_path / "models")


def test_upscaling_without_spandrel_names_the_package(
    saving: Any, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    graph, models = _upscaling(saving, tmp_path)
    assert run_cli(graph, "--models-dir", models) == 2
    assert "pip install spandrel" in capsys.readouterr().err


PICKLE_ON_OLD_TORCH = pytest.mark.skipif(
    torch.__version__.startswith("2.5."), reason="pickles are only opened on PyTorch 2.6 or newer"
)


@pytest.mark.parametrize("name", ["x2.safetensors", pytest.param("x2.pth", marks=PICKLE_ON_OLD_TORCH)])
def test_upscaling_with_spandrel(
    saving: Any, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen = []

    def read(weights: dict[str, torch.Tensor]) -> _Descriptor:
        seen.append(list(weights))
        return _Descriptor(model=_Doubling(), scale=2)

    monkeypatch.setitem(sys.modules, "spandrel", _fake_spandrel(read))
    graph, models = _upscaling(saving, tmp_path, name)
    assert run_cli(graph, "--models-dir", models) == 0
    assert seen == [["weight"]]
    assert sorted(p.name for p in Path("output").glob("*.png")) == [f"big_64_0000{i}_.png" for i in (1, 2, 3)]


def test_model_that_spandrel_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _fake_spandrel(None)

    def read(weights: dict[str, torch.Tensor]) -> None:
        raise fake.UnsupportedModelError

    fake.ModelLoader = lambda: SimpleNamespace(load_from_state_dict=read)
    monkeypatch.setitem(sys.modules, "spandrel", fake)
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    monkeypatch.setattr(core_nodes, "resolve", lambda kind, name: tmp_path / name)
    with pytest.raises(CheckpointError, match="no upscaling model that spandrel knows"):
        core_nodes.UpscaleModelLoader.execute("x.safetensors")


def test_tiles_shrink_when_memory_runs_out() -> None:
    sizes = []

    def short_of_memory(part: torch.Tensor) -> torch.Tensor:
        sizes.append(part.shape[-1])
        if part.shape[-1] > 200:
            raise torch.OutOfMemoryError
        return part

    model = _Descriptor(model=short_of_memory, scale=1)
    pixels = torch.rand(1, 3, 8, 300)
    large, tile = core_nodes.ImageUpscaleWithModel._upscale(pixels, model, 512)
    assert torch.equal(large, pixels)
    assert tile == 128
    assert sizes[0] == 300


def test_load_image_gives_what_was_saved(saving: Any, run_cli: Any, tmp_path: Path) -> None:
    save_png(tmp_path / "input" / "sub" / "cat.png", torch.rand(4, 6, 3), {})
    saving["1"] = {"class_type": "LoadImage", "inputs": {"image": "sub/cat.png"}}
    saving["5"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}}
    assert run_cli(saving) == 0
    assert (tmp_path / "output" / "copy_00001_.png").is_file()


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which temporary folders are made."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_preview_goes_into_a_temporary_folder_that_is_gone_at_the_end(
    saving: Any, run_cli: Any, temp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saving["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    found: list[str] = []
    remove = main_module.remove_temp_folder
    monkeypatch.setattr(
        main_module, "remove_temp_folder", lambda: (found.extend(file.name for file in temp.glob("*/*")), remove())
    )
    assert run_cli(saving) == 0
    assert sorted(found) == [f"preview_0000{number}_.png" for number in (1, 2, 3)]
    assert list(temp.iterdir()) == []
    told = capsys.readouterr()
    assert told.out == ""
    assert "Previews (3) are not kept" in told.err


@pytest.mark.parametrize("kind", ["ctrl-c", "interrupt", "shape", "memory", "bug"])
def test_no_end_leaves_a_temporary_folder_behind(kind: str, saving: Any, run_cli: Any, temp: Path) -> None:
    saving["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    saving["3"] = {"class_type": "ToyPass", "inputs": {"image": ["2", 0], "mode": kind}}
    saving["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    with pytest.raises(RuntimeError, match="a mistake of ours") if kind == "bug" else contextlib.nullcontext():
        assert run_cli(saving) != 0
    assert list(temp.iterdir()) == []


def test_vae_nodes_use_the_vae_s_own_methods() -> None:
    vae = SimpleNamespace(
        decode=lambda latents: torch.zeros(latents.shape[0], 5, 16, 24, 3),
        encode=lambda pixels: torch.zeros(1, 16, 2, pixels.shape[1] // 8, pixels.shape[2] // 8),
    )
    assert core_nodes.VAEDecode.execute({"samples": torch.zeros(2, 16, 2, 2, 3)}, vae)[0].shape == (10, 16, 24, 3)
    assert core_nodes.VAEEncode.execute(torch.zeros(5, 16, 24, 4), vae)[0]["samples"].shape == (1, 16, 2, 2, 3)
