"""Fp8 made while a file loads: chosen by the user, so no file bears its marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..quantization import StoredLinear
from ..quantization.base import frozen
from ..quantization.on_load import BIG_LINEARS, MadeFp8Linear, quantized_rows
from .checkpoint import ReadTensor
from .key_maps import KeyView
from .linear_policy import LinearPolicy


@dataclass(frozen=True)
class MadeFp8(LinearPolicy):
    """Makes the blocks' big layers fp8 with a scale for each row; what the file stores in fewer bits stays so."""

    stored: LinearPolicy

    @classmethod
    def over(cls, stored: LinearPolicy) -> MadeFp8:
        """Over what the file's own policy reads."""
        return cls(stored.view, stored)

    @classmethod
    def find(cls, view: KeyView) -> None:  # noqa: ARG003
        """Never found in a file."""
        return

    @property
    def label(self) -> str:
        """See LinearPolicy.label."""
        return f"{self.stored.label}, made fp8 on load"

    @property
    def marks(self) -> Sequence[str]:
        """Those of the file's own policy."""
        return self.stored.marks

    def companions(self, key: str) -> Sequence[str]:
        """Those of the file's own policy."""
        return self.stored.companions(key)

    def layer(
        self, key: str, shape: tuple[int, int], *, has_bias: bool, compute_dtype: torch.dtype
    ) -> StoredLinear | None:
        """What the file's own policy gives, else an fp8 layer for the big ones."""
        layer = self.stored.layer(key, shape, has_bias=has_bias, compute_dtype=compute_dtype)
        if layer is not None or not BIG_LINEARS.match(key.removesuffix(".weight")):
            return layer
        return MadeFp8Linear(
            shape[1],
            shape[0],
            has_bias=has_bias,
            weight_dtype=torch.float8_e4m3fn,
            compute_dtype=compute_dtype,
            scaled=True,
        )

    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """See LinearPolicy.fill."""
        if not isinstance(layer, MadeFp8Linear):
            self.stored.fill(layer, key, read, device)
            return
        wide = self.view.load(key, (layer.out_features, layer.in_features), read).to(device)
        weight, layer.scale, layer.relative_error = quantized_rows(wide)
        layer.weight = frozen(weight)
