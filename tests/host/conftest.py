"""A real ComfyUI beside the pack, where COMFYUI_DIR and COMFYUI_PYTHON name one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def comfyui_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What in_comfyui.py finds; comfy itself is never imported into the tests' own process."""
    folder, python = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip("not run against ComfyUI: set COMFYUI_DIR (its source) and COMFYUI_PYTHON (its interpreter)")
    scratch = tmp_path_factory.mktemp("comfyui")
    script = Path(__file__).with_name("in_comfyui.py")
    finished = subprocess.run(
        [python, str(script), folder, str(ROOT), str(scratch)],
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.strip().splitlines()[-1]) | {"scratch": str(scratch)}
