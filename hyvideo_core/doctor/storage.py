"""How many parameters a file has, how they are stored, and what they take in memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import torch

from ..loading.checkpoint import Checkpoint, TensorInfo
from ..loading.fp8_policies import MARKER, SCALE_NAMES, UNUSED_NAMES
from ..quantization.gguf_blocks import row_bytes

COMPANIONS = frozenset((MARKER, "weight_scale_2", *SCALE_NAMES, *UNUSED_NAMES))
NVFP4 = "nvfp4"
BLOCK_NAME = re.compile(r"(?:blocks|layers|block)\.\d+\.")
TYPE_WORDS = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8 e4m3fn",
    torch.float8_e5m2: "fp8 e5m2",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Parameters by storage type, and bytes by precision."""

    stored: Mapping[str, int]
    memory: Mapping[str, int]

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return sum(self.stored.values())

    @property
    def words(self) -> str:
        """The storage types, the most frequent first; shares where there are several."""
        total = max(1, self.num_parameters)
        ranked = sorted(self.stored.items(), key=lambda entry: -entry[1])
        if len(ranked) == 1:
            return ranked[0][0]
        return ", ".join(f"{name} {_percent(count / total)}" for name, count in ranked)


def measure(checkpoint: Checkpoint, *, kept: Collection[str] | None = None, has_fp8: bool = True) -> Storage:
    """Parameters and bytes of a file.

    Args:
        kept: names that a loader keeps in memory; None for all.
        has_fp8: whether its matrices could be made fp8 on loading.
    """
    tensors = checkpoint.tensors
    counts = {name: _num_weights(name, info, tensors) for name, info in tensors.items()}
    stored: Counter[str] = Counter()
    for name, count in counts.items():
        if count:
            stored[type_words(name, tensors[name], tensors)] += count
    used = set(tensors if kept is None else kept)
    total = sum(counts[name] for name in used)
    memory = {"as stored": sum(num_bytes(tensors[name]) for name in used), "as bf16": 2 * total}
    if has_fp8:
        memory["as fp8"] = sum(counts[name] * (1 if _is_fp8_made(name, tensors[name]) else 2) for name in used)
    return Storage(stored=dict(stored), memory={**memory, "as fp32": 4 * total})


def num_bytes(info: TensorInfo) -> int:
    """Bytes that a tensor takes in its file."""
    if info.block is not None:
        return row_bytes(prod(info.shape), info.block)
    return prod(info.shape) * info.dtype.itemsize


def type_words(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str:
    """How a tensor is stored, in a word."""
    if info.block is not None:
        return info.block
    if _is_nvfp4(name, info, tensors):
        return NVFP4
    return TYPE_WORDS.get(info.dtype, str(info.dtype).removeprefix("torch."))


def is_companion(name: str) -> bool:
    """Whether a tensor speaks of another one, or of the whole file, and is no weight."""
    return name.rpartition(".")[2] in COMPANIONS


def _num_weights(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> int:
    if is_companion(name):
        return 0
    # two to a byte
    return prod(info.shape) * (2 if _is_nvfp4(name, info, tensors) else 1)


def _is_fp8_made(name: str, info: TensorInfo) -> bool:
    """Whether fp8 files store such a tensor in fp8: matrices of blocks; the rest, which is small, stays bf16."""
    return len(info.shape) == 2 and BLOCK_NAME.search(name) is not None and "refiner" not in name


def _is_nvfp4(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    return (
        info.block is None and info.dtype == torch.uint8 and f"{name.removesuffix('weight')}weight_scale_2" in tensors
    )


def _percent(share: float) -> str:
    if share < 0.0001:
        return "under 0.01%"
    if 0.9999 < share < 1:
        return "over 99.99%"
    return f"{share:.0%}" if 0.01 <= share < 0.995 or share == 1 else f"{share:.2%}"
