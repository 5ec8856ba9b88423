"""The Linear that every block is built from, so that loading can swap in another kind of weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer that casts its input to the weight's dtype and can be used by rows of its output.

    Loading replaces it by classes with the same call (fp8, quantized, with a LoRA path): `layer(x)` and
    `layer(x, rows=(a, b))`, the latter giving output channels a..b of a fused weight without a copy of it.
    """

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """[..., in] to [..., out], or [..., b - a] for rows (a, b), in the weight's dtype."""
        bias: Tensor | None = self.bias
        if rows is not None and bias is not None:
            bias = bias[rows[0] : rows[1]]
        return F.linear(x.to(self.weight.dtype), self.dequantized(rows), bias)

    def dequantized(self, rows: tuple[int, int] | None = None) -> Tensor:
        """The weight that `forward` multiplies by, [out, in] or [b - a, in] for rows (a, b)."""
        return self.weight if rows is None else self.weight[rows[0] : rows[1]]

    @property
    def compute_dtype(self) -> torch.dtype:
        """What comes out of this layer."""
        return self.weight.dtype
