"""Files of any size that cost nothing: a true header, and data that the disk does not hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

CODES = {
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "float32": ("F32", 4),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "uint8": ("U8", 1),
}
Table = Mapping[str, tuple[list[int], str]]


def write_sparse(path: Path, table: Table, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file whose data section is a hole."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (shape, dtype) in table.items():
        code, size = CODES[dtype]
        start, end = end, end + prod(shape) * size
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sparse file of a name."""

    def write(name: str, table: Table, metadata: Mapping[str, str] | None = None) -> Path:
        return write_sparse(tmp_path / name, table, metadata)

    return write


@pytest.fixture
def manifest(manifest_dir: Path) -> Callable[[str], dict[str, Any]]:
    """Names, shapes and dtypes of a published file."""
    return lambda name: json.loads((manifest_dir / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def t2v(manifest) -> dict[str, Any]:
    return manifest("hunyuanvideo_t2v_cfgdistill_transformer.official")
