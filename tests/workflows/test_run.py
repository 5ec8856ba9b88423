"""Every shared graph runs through the command line's own runner on the embedded model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hyvideo_nodes.hyvideo_core.training.transformer import EMBEDDED_TRANSFORMER
from hyvideo_nodes.nodes.cli import main
from hyvideo_nodes.nodes.host import headless
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE, WIDTH, NUM_CONVS = 2, 8, 2
ENLARGED = {"embedded_t2v": 6, "t2v_upscale": SCALE}


def random_upscaler() -> dict[str, Tensor]:
    """Weights in the layout of Real-ESRGAN's compact models: convolutions and PReLUs in turn, then pixel shuffle."""
    widths = [3, *[WIDTH] * (NUM_CONVS + 1), 3 * SCALE**2]
    weights = {}
    for index, (before, after) in enumerate(pairwise(widths)):
        weights[f"body.{2 * index}.weight"] = torch.randn(after, before, 3, 3) * 0.05
        weights[f"body.{2 * index}.bias"] = torch.zeros(after)
        weights[f"body.{2 * index + 1}.weight"] = torch.full((after,), 0.25)
    del weights[f"body.{2 * index + 1}.weight"]  # nothing follows the last convolution
    return weights


def random_lora() -> dict[str, Tensor]:
    """A LoRA for some layers of the embedded model."""
    name, width = "diffusion_model.single_blocks.0.linear2", EMBEDDED_TRANSFORMER.hidden_size
    return {f"{name}.lora_A.weight": torch.randn(2, 5 * width), f"{name}.lora_B.weight": torch.randn(width, 2) * 0.01}


class CompactUpscaler(torch.nn.Module):
    """The network of such weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights
        self.last = max(int(key.split(".")[1]) for key in weights)
        self.scale = round((len(weights[f"body.{self.last}.weight"]) / 3) ** 0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        features = pixels
        for index in range(0, self.last + 1, 2):
            kernel, bias = (self.weights[f"body.{index}.{part}"] for part in ("weight", "bias"))
            features = F.conv2d(features, kernel, bias, padding=1)
            if index < self.last:
                features = F.prelu(features, self.weights[f"body.{index + 1}.weight"])
        return F.pixel_shuffle(features, self.scale) + F.interpolate(pixels, scale_factor=self.scale)


class StandInModel:
    """What spandrel hands out, as far as our node uses it."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.model = CompactUpscaler(weights)
        self.scale = self.model.scale

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)


class StandInLoader:
    """spandrel.ModelLoader for compact models alone."""

    def load_from_state_dict(self, weights: dict[str, Tensor]) -> StandInModel:
        return StandInModel(weights)


def spandrel_or_reason() -> ModuleType | str:
    """The real package, or why it cannot be used: it needs a torchvision that was built for the torch at hand."""
    if importlib.util.find_spec("spandrel") is None:
        return "spandrel is not installed"
    try:
        import spandrel
    except (ImportError, RuntimeError) as error:
        return f"spandrel cannot be imported: {error}"
    return spandrel


@pytest.fixture
def models(tmp_path: Path, tiny_upscaler: str, tiny_lora: str) -> Path:
    """A model folder that holds the upscaler and a LoRA; everything else comes embedded."""
    folder = tmp_path / "models"
    for kind, name, tensors in (
        ("upscale_models", tiny_upscaler, random_upscaler()),
        ("loras", tiny_lora, random_lora()),
    ):
        (folder / kind).mkdir(parents=True)
        save_file(tensors, folder / kind / name)
    return folder


@pytest.fixture
def upscaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real spandrel where it works, else a stand-in that knows the tiny upscaler's architecture only."""
    if not isinstance(spandrel_or_reason(), str):
        return
    stand_in = ModuleType("spandrel")
    stand_in.__spec__ = ModuleSpec("spandrel", None)
    stand_in.UnsupportedModelError = type("UnsupportedModelError", (Exception,), {})
    stand_in.ImageModelDescriptor = StandInModel
    stand_in.ModelLoader = StandInLoader
    monkeypatch.setitem(sys.modules, "spandrel", stand_in)


def read_video(path: Path) -> tuple[np.ndarray, str, float]:
    """Frames (N, H, W, 3), codec and frame rate of a file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, stream.codec_context.name, float(stream.average_rate)


def test_every_graph_makes_its_video(
    name: str,
    api_graph: dict[str, Any],
    workflows: Path,
    replacements: Callable[[dict[str, Any]], list[str]],
    models: Path,
    upscaling: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(headless, "_folders", [])
    output = tmp_path / "output"
    arguments = [
        "run",
        str(workflows / "api" / f"{name}.json"),
        "--models-dir",
        str(models),
        "--output-dir",
        str(output),
    ]
    assert main([*arguments, *replacements(api_graph)]) == 0
    files = [path for path in output.rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".mp4"]
    frames, codec, rate = read_video(files[0])
    side = 64 * ENLARGED.get(name, 1)
    assert frames.shape == (17, side, side, 3)
    assert (codec, rate) == ("h264", 24.0)
    assert frames.std() > 1


def test_the_stand_in_upscales_as_spandrel_does(models: Path, tiny_upscaler: str) -> None:
    spandrel = spandrel_or_reason()
    if isinstance(spandrel, str):
        pytest.skip(f"{spandrel}; the upscale graph ran with a stand-in")
    weights = load_file(models / "upscale_models" / tiny_upscaler)
    pixels = torch.rand(1, 3, 24, 20)
    real = spandrel.ModelLoader().load_from_state_dict(dict(weights))
    assert real.scale == SCALE
    with torch.no_grad():
        torch.testing.assert_close(CompactUpscaler(weights)(pixels), real.model(pixels))
