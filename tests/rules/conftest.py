"""The pack's own source as syntax trees: what the rules are checked on."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """One Python file of the pack; `path` counts from the pack's root, with forward slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def parts(self) -> tuple[str, ...]:
        """hyvideo_core/vae/tiling.py as ("hyvideo_core", "vae", "tiling"); a package ends in "__init__"."""
        return tuple(self.path.removesuffix(".py").split("/"))

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    def at(self, node: ast.AST, message: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {message}"


@pytest.fixture(scope="session")
def root() -> Path:
    """The pack's folder."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    """Every Python file of hyvideo_core and nodes."""
    files = sorted(path for folder in ("hyvideo_core", "nodes") for path in (ROOT / folder).rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in files]


@pytest.fixture(scope="session")
def plant() -> Callable[[str, str], Source]:
    """Makes a source that breaks a rule: a rule that finds nothing there would find nothing anywhere."""
    return Source


@pytest.fixture(scope="session")
def tracked_files() -> list[Path]:
    """Every file that git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: what belongs to the pack cannot be told from what lies beside it")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]
