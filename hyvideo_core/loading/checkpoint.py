"""What every container of weights has in common: names, shapes and dtypes first, tensors only when asked for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptFileError
from ..quantization.gguf_blocks import dequantize

ReadTensor = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor.

    Attributes:
        shape: in PyTorch's order of axes, of the numbers themselves.
        dtype: what reading gives; uint8 for blocks.
        block: the block format of a GGUF tensor, such as "Q4_K"; it is read as [rows, bytes of a row], rows being
            those of the first axis, or as [bytes] if it has only one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    block: str | None = None


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A weight file, or a folder of shards, of which only the headers were read.

    Attributes:
        path: the file or folder.
        tensors: shape and dtype by name.
        config: what the file says of sizes that shapes cannot tell (its `config` entry), else empty.
        metadata: its other text entries.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name without its folder: messages never show a user's paths."""
        return self.path.name

    @abstractmethod
    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """Opens the file; yields a function from a tensor's name to the tensor, on the CPU, mapped where possible."""


def parse_config(text: object, name: str) -> Mapping[str, Any]:
    """The JSON object in a file's `config` entry.

    Raises:
        CorruptFileError: it is something else.
    """
    try:
        config = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{name}: its config entry is not JSON; write it again") from error
    if not isinstance(config, dict):
        raise CorruptFileError(f"{name}: its config entry is not a JSON object; write it again")
    return config


def plain_tensor(tensor: Tensor, info: TensorInfo, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor as it was read, in numbers; blocks become float32 unless a dtype is named."""
    if info.block is not None:
        return dequantize(tensor, info.block, dtype or torch.float32).reshape(info.shape)
    return tensor if dtype is None else tensor.to(dtype)
