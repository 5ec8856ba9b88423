"""Toy nodes beside the core ones, and a way to call the command line in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import ShapeError
from hyvideo_nodes.nodes.cli import main as call
from hyvideo_nodes.nodes.cli.core_nodes import CORE_NODES
from hyvideo_nodes.nodes.host import headless, io

main_module = sys.modules[call.__module__]
EVENTS: list[Any] = []


class ToyFrames(io.ComfyNode):
    """A ramp of frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ToyFrames",
            display_name="Toy Frames",
            inputs=[
                io.Int.Input("count", default=3, min=1, max=100),
                io.Int.Input("width", default=32, min=1),
                io.Int.Input("height", default=16, min=1),
                io.Float.Input("level", default=0.5, min=0.0, max=1.0, optional=True),
                io.Combo.Input("colour", options=["grey", "red"], optional=True),
                io.Boolean.Input("loud", default=False, optional=True),
                io.String.Input("note", default="", optional=True),
            ],
            outputs=[io.Image.Output("frames"), io.Int.Output("count")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        count: int,
        width: int,
        height: int,
        level: float = 0.5,
        colour: str = "grey",
        loud: bool = False,
        note: str = "",
    ) -> io.NodeOutput:
        EVENTS.append(("frames", cls.hidden.unique_id, count, loud, note, torch.is_inference_mode_enabled()))
        frames = torch.full((count, height, width, 3), level)
        if colour == "red":
            frames[..., 1:] = 0
        return io.NodeOutput(frames, count)


class ToyPass(io.ComfyNode):
    """Gives its picture on, or fails as told."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        modes = ["pass", "shape", "interrupt", "ctrl-c", "memory", "cpu-memory", "disk", "bug"]
        return io.Schema(
            node_id="ToyPass",
            display_name="Toy Pass",
            inputs=[io.Image.Input("image"), io.Combo.Input("mode", options=modes)],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, mode: str) -> io.NodeOutput:
        EVENTS.append(("pass", mode))
        failures = {
            "shape": ShapeError("width 500 is not a multiple of 16; use 496 or 512"),
            "interrupt": headless.Interrupted(),
            "ctrl-c": KeyboardInterrupt(),
            "memory": torch.OutOfMemoryError("4 GiB wanted"),
            "cpu-memory": RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
            "disk": OSError(28, "No space left on device", "clip.mp4"),
            "bug": RuntimeError("a mistake of ours"),
        }
        if mode in failures:
            raise failures[mode]
        return io.NodeOutput(image * 1)


TOYS = {node.GET_SCHEMA().node_id: node for node in [*CORE_NODES, ToyFrames, ToyPass]}


@pytest.fixture
def registry() -> dict[str, type[io.ComfyNode]]:
    return dict(TOYS)


@pytest.fixture(autouse=True)
def toy_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    EVENTS.clear()
    monkeypatch.setattr(main_module, "registry", lambda: dict(TOYS))
    monkeypatch.setattr(headless, "_folders", [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    yield


@pytest.fixture
def events() -> list[Any]:
    return EVENTS


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., int]:
    """Runs a graph, given as a prompt, with further arguments."""

    def run(prompt: Any, *arguments: str) -> int:
        path = tmp_path / "graph.json"
        path.write_text(json.dumps(prompt), encoding="utf-8")
        return call(["run", str(path), *arguments])

    return run


def node(class_type: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    meta = {"_meta": {"title": title}} if title else {}
    return {"class_type": class_type, "inputs": inputs, **meta}


@pytest.fixture
def saving() -> dict[str, Any]:
    """A sound graph: frames -> video -> mp4."""
    return {
        "1": node("ToyFrames", count=3, width=32, height=16),
        "2": node("CreateVideo", images=["1", 0], fps=24.0),
        "3": node("SaveVideo", "Write it", video=["2", 0], filename_prefix="clip", format="auto", codec="auto"),
    }
