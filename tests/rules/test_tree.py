"""The files as a whole: small, free of traces of one machine, and installing nothing into ComfyUI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

MAX_TREE_BYTES = 60_000_000
MAX_EMBEDDED_BYTES = 20_000_000

MACHINE_PATH = re.compile(r"(?<![\w.:/~$}\"-])/(?:work|farm|tmp|root|opt|mnt|home/\w+|Users/\w+)/\w|[A-Z]:\\Users\\")
PACKAGE_INDEX = re.compile(r"(?:extra-|extra_)?index[-_]url|find[-_]links|trusted[-_]host|://[\w.-]*pypi[\w.-]*/", re.I)


def text_of(path: Path) -> str:
    """The text of a file, empty if it holds none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def offending_lines(paths, pattern: re.Pattern[str]) -> list[str]:
    """path:line of each match."""
    return [
        f"{path}:{number}: {line.strip()[:100]}"
        for path in paths
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if pattern.search(line)
    ]


def test_tree_stays_small(root, tracked_files) -> None:
    assert sum(path.stat().st_size for path in tracked_files) < MAX_TREE_BYTES
    assert sum(path.stat().st_size for path in tracked_files if root / "embedded" in path.parents) < MAX_EMBEDDED_BYTES


@pytest.mark.parametrize("pattern", [MACHINE_PATH, PACKAGE_INDEX], ids=["machine path", "package index"])
def test_no_trace_of_one_machine(root, tracked_files, pattern) -> None:
    here = Path(__file__).name  # holds the planted lines below
    assert offending_lines([path for path in tracked_files if path.name != here], pattern) == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATH, "models = /home/somebody/models"),
        (MACHINE_PATH, "(/opt/wheels)"),
        (MACHINE_PATH, r"C:\Users\somebody\ComfyUI"),
        (PACKAGE_INDEX, "--extra-index-url https://wheels.example"),
        (PACKAGE_INDEX, "https://pypi.example/simple/torch"),
    ],
)
def test_rule_sees_a_planted_line(tmp_path, pattern, line) -> None:
    (tmp_path / "notes.md").write_text(f"first\n{line}\n", encoding="utf-8")
    assert len(offending_lines([tmp_path / "notes.md"], pattern)) == 1


def required_packages(text: str) -> set[str]:
    """Names of the packages that a requirements file asks for."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {re.split(r"[^\w.-]", line)[0].lower() for line in lines if line}


def test_the_pack_asks_for_nothing_that_comfyui_brings(root) -> None:
    brought_by_comfyui = {"torch", "torchvision", "torchaudio", "numpy", "safetensors", "transformers", "tokenizers"}
    brought_by_comfyui |= {"einops", "tqdm", "av", "pillow"}
    required = required_packages((root / "requirements.txt").read_text(encoding="utf-8"))
    assert required & brought_by_comfyui == set()
    (dependencies,) = re.findall(r"^dependencies = \[(.*)\]$", (root / "pyproject.toml").read_text("utf-8"), re.M)
    assert required_packages(dependencies.replace('"', "").replace(", ", "\n")) == required


def test_development_pins_exactly_one_torch(root) -> None:
    lines = (root / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("torch")] == ["torch==2.13.0"]
