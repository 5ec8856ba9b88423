"""The shared graphs, and what replaces files, size and steps when a test runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))

TINY_UPSCALER, TINY_LORA = "tiny_x2.safetensors", "tiny_lora.safetensors"
REPLACED: dict[tuple[str, str], object] = {
    ("HYVLoadModel", "model"): "hyvideo_embedded_t2v.safetensors",
    ("HYVLoadTextEncoders", "llm"): "hyvideo_embedded_llama.safetensors",
    ("HYVLoadTextEncoders", "clip"): "hyvideo_embedded_clip.safetensors",
    ("HYVLoadVAE", "vae"): "hyvideo_embedded_vae.safetensors",
    ("HYVEmptyLatent", "width"): 64,
    ("HYVEmptyLatent", "height"): 64,
    ("HYVEmptyLatent", "length"): 17,
    ("HYVSampler", "steps"): 4,
    ("UpscaleModelLoader", "model_name"): TINY_UPSCALER,
    ("HYVLoadLora", "lora"): TINY_LORA,
    ("HYVInspectFile", "file"): f"loras/{TINY_LORA}",
}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ui_graph(name: str) -> dict[str, Any]:
    return read_json(WORKFLOWS / f"{name}.json")


@pytest.fixture
def api_graph(name: str) -> dict[str, Any]:
    return read_json(WORKFLOWS / "api" / f"{name}.json")


@pytest.fixture
def workflows() -> Path:
    return WORKFLOWS


@pytest.fixture
def replacements() -> Callable[[dict[str, Any]], list[str]]:
    """The command line's --set arguments that make a graph small."""

    def settings(graph: dict[str, Any]) -> list[str]:
        return [
            word
            for node_id, node in graph.items()
            for name in node["inputs"]
            if (node["class_type"], name) in REPLACED
            for word in ("--set", f"{node_id}.{name}={REPLACED[node['class_type'], name]}")
        ]

    return settings


@pytest.fixture
def tiny_upscaler() -> str:
    return TINY_UPSCALER


@pytest.fixture
def tiny_lora() -> str:
    return TINY_LORA
