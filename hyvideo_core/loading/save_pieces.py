"""What becomes of one official tensor in a file that is written anew: its new names, shapes and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..quantization import Fp8Linear, StoredLinear
from ..quantization.on_load import BIG_LINEARS, quantized_whole
from .build import stored_layer
from .checkpoint import ReadTensor, TensorInfo
from .fp8_policies import SCALE_NAMES, StoredFp8, beside_weight
from .key_maps import Dialect
from .linear_policy import LinearPolicy

E4M3 = torch.float8_e4m3fn
WIDE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """What all pieces share.

    Attributes:
        model: the empty model of the file's sizes.
        policy: how the file stores weights.
        layout: the names to write.
        width: rows of each part but the last where `layout` splits a tensor.
    """

    model: nn.Module
    policy: LinearPolicy
    layout: Dialect
    width: int

    def split(self, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """Official tensor `key` under its new names."""
        return self.layout.split(key, tensor, self.width)

    def stored(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> StoredLinear | None:
        """The empty layer of a weight that the file stores in fewer bits; None for any other tensor."""
        module = self.model.get_submodule(key.rpartition(".")[0])
        return stored_layer(module, key, shape, self.policy, dtype)

    def is_linear(self, key: str) -> bool:
        """Whether an official tensor is the weight of a linear layer."""
        path, _, name = key.rpartition(".")
        return name == "weight" and isinstance(self.model.get_submodule(path), nn.Linear)


@dataclass(frozen=True)
class Piece(ABC):
    """One official tensor."""

    job: Job
    key: str
    shape: tuple[int, ...]

    @abstractmethod
    def promised(self) -> dict[str, TensorInfo]:
        """What will be written, by its new names."""

    @abstractmethod
    def read(self, read: ReadTensor) -> dict[str, Tensor]:
        """The tensors themselves."""

    def _parts(self, dtype: torch.dtype) -> dict[str, TensorInfo]:
        whole = torch.empty(self.shape, dtype=dtype, device="meta")
        parts = self.job.split(self.key, whole)
        return {name: TensorInfo(tuple(part.shape), dtype) for name, part in parts.items()}

    def _wide(self, read: ReadTensor, dtype: torch.dtype) -> Tensor:
        policy, layer = self.job.policy, self.job.stored(self.key, self.shape, dtype)
        if layer is None:
            return policy.view.load(self.key, self.shape, read).to(dtype)
        policy.fill(layer, self.key, read, CPU)
        return layer.dequantized().reshape(self.shape)


@dataclass(frozen=True)
class Wide(Piece):
    """A tensor in 16 or 32 bits."""

    dtype: torch.dtype

    def promised(self) -> dict[str, TensorInfo]:
        """See Piece.promised."""
        return self._parts(self.dtype)

    def read(self, read: ReadTensor) -> dict[str, Tensor]:
        """See Piece.read.

        Raises:
            OptionError: a number too large for the dtype.
        """
        tensor = self._wide(read, self.dtype)
        if self.dtype == torch.float16 and tensor.isinf().any():
            raise OptionError(
                f"{self.key} has numbers beyond {torch.finfo(self.dtype).max:.0f}, the largest of fp16; choose bf16"
            )
        return self.job.split(self.key, tensor)


@dataclass(frozen=True)
class KeptFp8(Piece):
    """An fp8 weight that stays as it is, with the scale that it had.

    Attributes:
        scales: by the new names of the weight's parts, one number each.
    """

    scales: Mapping[str, Tensor]

    def promised(self) -> dict[str, TensorInfo]:
        """See Piece.promised."""
        scales = {scale_name(name): TensorInfo(tuple(scale.shape), scale.dtype) for name, scale in self.scales.items()}
        return self._parts(E4M3) | scales

    def read(self, read: ReadTensor) -> dict[str, Tensor]:
        """See Piece.read."""
        weight = self.job.policy.view.load(self.key, self.shape, read)
        scales = {scale_name(name): scale for name, scale in self.scales.items()}
        return self.job.split(self.key, weight) | scales


@dataclass(frozen=True)
class MadeFp8(Piece):
    """A weight that becomes fp8 with one scale, which is what other tools read; its parts share it.

    Attributes:
        is_second: the file had it in fp8 already, in a way that the layout has no place for.
    """

    is_second: bool

    def promised(self) -> dict[str, TensorInfo]:
        """See Piece.promised."""
        parts = self._parts(E4M3)
        return parts | {scale_name(name): TensorInfo((), torch.float32) for name in parts}

    def read(self, read: ReadTensor) -> dict[str, Tensor]:
        """See Piece.read."""
        info = self.job.policy.view.info(self.key)
        wide = self._wide(read, info.dtype if info.dtype in WIDE_DTYPES else torch.float32)
        small, scale = quantized_whole(wide)
        parts = self.job.split(self.key, small)
        return parts | {scale_name(name): scale for name in parts}


def scaled_piece(job: Job, key: str, shape: tuple[int, ...], read: ReadTensor) -> Piece:
    """A tensor for a file of scaled fp8: fp8 if it is one or is to become one, else in the width that it has."""
    info = job.policy.view.info(key)
    layer = job.stored(key, shape, torch.bfloat16)
    if isinstance(layer, Fp8Linear) and layer.weight.dtype == E4M3 and job.is_linear(key):
        scales = _kept_scales(job, key, shape, read)
        # kernels on graphics cards take one number, or the first one of many for all
        if all(scale.ndim == 0 for scale in scales.values()):
            return KeptFp8(job, key, shape, scales)
    if BIG_LINEARS.match(key.removesuffix(".weight")) and key.endswith(".weight"):
        return MadeFp8(job, key, shape, is_second=isinstance(layer, Fp8Linear))
    is_wide = layer is None and info.block is None and info.dtype in WIDE_DTYPES
    return Wide(job, key, shape, info.dtype if is_wide else torch.bfloat16)


def scale_name(name: str) -> str:
    """Where the scale of the file's weight `name` goes."""
    return beside_weight(name, SCALE_NAMES[0])


def _kept_scales(job: Job, key: str, shape: tuple[int, ...], read: ReadTensor) -> dict[str, Tensor]:
    assert isinstance(job.policy, StoredFp8)
    rows = job.policy.joined_scale(key, read).reshape(-1, 1).expand(shape[0], 1)
    columns = job.split(key, rows)
    return {name: _as_few(column) for name, column in columns.items()}


def _as_few(column: Tensor) -> Tensor:
    """One number where all rows have the same."""
    return column[0, 0].clone() if (column == column[0]).all() else column.contiguous()
