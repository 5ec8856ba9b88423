"""How GGUF files store the weights of linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..quantization.base import StoredLinear, frozen
from ..quantization.gguf_blocks import GgufLinear
from .checkpoint import ReadTensor, TensorInfo
from .key_maps import KeyView
from .linear_policy import LinearPolicy

PLAIN_FORMATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class GgufBlocks(LinearPolicy):
    """Weights in blocks, which stay as they lie in the file and are widened for each call."""

    @classmethod
    def find(cls, view: KeyView) -> GgufBlocks | None:
        """Any tensor in blocks marks it."""
        return cls(view) if any(info.block is not None for info in view.checkpoint.tensors.values()) else None

    @property
    def label(self) -> str:
        """The formats, the most used one first."""
        blocks = [info.block for info in self.view.checkpoint.tensors.values() if info.block is not None]
        return "GGUF " + ", ".join(sorted(set(blocks), key=blocks.count, reverse=True))

    def layer(
        self, key: str, shape: tuple[int, int], *, has_bias: bool, compute_dtype: torch.dtype
    ) -> StoredLinear | None:
        """A layer of blocks if the weight, or a part of it, comes in blocks."""
        parts = self._parts(key)
        if all(part.block is None for part in parts):
            return None
        runs = tuple((part.shape[0], part.block or PLAIN_FORMATS[part.dtype]) for part in parts)
        return GgufLinear(shape[1], runs, has_bias=has_bias, compute_dtype=compute_dtype)

    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """See LinearPolicy.fill."""
        if not isinstance(layer, GgufLinear):
            raise TypeError(f"{key} was to be filled into a {type(layer).__name__}, expected a GgufLinear")
        parts = [read(name) for name in self.view.names(key)]
        rows = [part.reshape(len(part), -1).contiguous().view(torch.uint8) for part in parts]
        # joined one by one: formats may differ, and a layout may still want the halves of one swapped
        runs = (self.view.dialect.join(key, [part], tuple(part.shape)) for part in rows)
        layer.runs = torch.nn.ParameterList(frozen(run.to(device)) for run in runs)

    def _parts(self, key: str) -> Sequence[TensorInfo]:
        return [self.view.checkpoint.tensors[name] for name in self.view.names(key)]
