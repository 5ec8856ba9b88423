"""A real ComfyUI beside the pack, where COMFYUI_DIR and COMFYUI_PYTHON name one; never imported into this process."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHIPPED = ("__init__.py", "pyproject.toml", "nodes", "hyvideo_core", "web", "workflows", "embedded")
EMBEDDED_PROBES = {"diffusion_models": "hyvideo_probe.safetensors", "vae": "hyvideo_probe.safetensors"}


def comfyui_programs() -> tuple[str, str]:
    """ComfyUI's source folder and its interpreter; skips the test without them."""
    folder, python = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip("not run against ComfyUI: set COMFYUI_DIR (its source) and COMFYUI_PYTHON (its interpreter)")
    return folder, python


def report_of(script: str, scratch: Path) -> dict[str, Any]:
    """The JSON that a script of this folder prints when ComfyUI's interpreter runs it."""
    folder, python = comfyui_programs()
    finished = subprocess.run(
        [python, str(HERE / script), folder, str(ROOT), str(scratch)],
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.strip().splitlines()[-1]) | {"scratch": str(scratch)}


@pytest.fixture(scope="session")
def comfyui_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What in_comfyui.py finds."""
    return report_of("in_comfyui.py", tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def native_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What in_native.py finds."""
    return report_of("in_native.py", tmp_path_factory.mktemp("native"))


class Server:
    """A running ComfyUI with the pack and tiny models; see server.py."""

    def __init__(self, process: subprocess.Popen[str], base: Path) -> None:
        self.base = base
        self._process = process
        self._url = self._answer()

    def run(self, graph: dict[str, Any], interrupt_after: int | None = None) -> dict[str, Any]:
        """What became of a graph."""
        self._process.stdin.write(json.dumps({"graph": graph, "interrupt_after": interrupt_after}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def get(self, path: str) -> Any:
        """What a route answers, as JSON."""
        return self._open(Request(self._url + path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What a route answers to a body."""
        return self._open(Request(self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}))

    def log(self) -> str:
        """All that the server has written."""
        return (self.base / "host.log").read_text(encoding="utf-8", errors="replace")

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        assert line, f"the server is gone:\n{self._process.stderr.read()}\n{self.log()[-4000:]}"
        return json.loads(line)

    def _open(self, request: Request) -> Any:
        with build_opener(ProxyHandler({})).open(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if content else None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One ComfyUI for all tests: its own base directory, the pack as users install it, tiny random models."""
    folder, python = comfyui_programs()
    base = tmp_path_factory.mktemp("base")
    _install_pack(base / "custom_nodes" / "hyvideo-nodes")
    shutil.copy(HERE / "memory_probe.py", base / "custom_nodes")
    _write_models(base / "models", tmp_path_factory.mktemp("elsewhere"))
    process = subprocess.Popen(
        [python, str(HERE / "server.py"), folder, str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Server(process, base)
        finally:
            process.stdin.close()


def _install_pack(target: Path) -> None:
    """A copy of what is shipped, with two more embedded models."""
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name)
    tiny = _tiny_models()
    for kind, name in EMBEDDED_PROBES.items():
        (target / "embedded" / kind).mkdir(parents=True, exist_ok=True)
        write = tiny.write_vae if kind == "vae" else tiny.write_transformer
        write(target / "embedded" / kind / name)


def _write_models(models: Path, elsewhere: Path) -> None:
    """The tiny models, one with a NaN in it, and a VAE that lies elsewhere and is linked."""
    for kind in ("diffusion_models", "vae", "text_encoders"):
        (models / kind).mkdir(parents=True)
    tiny = _tiny_models()
    torch.manual_seed(0)
    tiny.write_transformer(models / "diffusion_models" / "tiny.safetensors")
    tiny.write_vae(models / "vae" / "tiny.safetensors")
    tiny.write_encoders(models / "text_encoders")
    shutil.copy(models / "vae" / "tiny.safetensors", models / "diffusion_models" / "wrong.safetensors")
    shutil.copy(models / "vae" / "tiny.safetensors", elsewhere / "linked.safetensors")
    with contextlib.suppress(OSError):  # not every system lets us
        (models / "vae" / "linked.safetensors").symlink_to(elsewhere / "linked.safetensors")
    _write_broken(models / "diffusion_models" / "tiny.safetensors", models / "diffusion_models" / "broken.safetensors")


def _write_broken(source: Path, target: Path) -> None:
    """The same model with NaN in its first layer."""
    with safe_open(source, "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights["img_in.proj.weight"].fill_(torch.nan)
    save_file(weights, target, metadata=metadata)


def _tiny_models() -> ModuleType:
    """The makers of tiny models that the nodes' tests use."""
    spec = importlib.util.spec_from_file_location("tiny_models", ROOT / "tests" / "nodes" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
