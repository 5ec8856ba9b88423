"""Shared fixtures. Outside ComfyUI the pack has one import name: hyvideo_nodes (see alias/)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# `python -m pytest` adds the current folder, and with it a second name for every module of the pack
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis  # noqa: E402
import torch  # noqa: E402

# models of tests are too small to gain from threads, and waiting threads slow a busy machine down
torch.set_num_threads(1)
# how long an example takes says something of the machine, not of the code
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden numbers; HYV_GOLDEN_DIR names another of the same layout."""
    return Path(os.environ.get("HYV_GOLDEN_DIR") or ROOT / "tests" / "golden")


@pytest.fixture(scope="session")
def manifest_dir() -> Path:
    return ROOT / "tests" / "manifests"
