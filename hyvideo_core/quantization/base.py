"""What every kind of stored weight has in common: it takes the place of a Linear and widens itself for each call."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StoredLinear(nn.Module, ABC):
    """A linear layer that keeps its weight small and widens it for each call.

    Args:
        in_features, out_features: sizes.
        has_bias: whether a bias follows.
        compute_dtype: what the weight is widened to, and the bias' own dtype.
    """

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, has_bias: bool, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = compute_dtype
        self.bias = frozen(torch.empty(out_features, dtype=compute_dtype)) if has_bias else None

    @abstractmethod
    def dequantized(self, rows: tuple[int, int] | None = None) -> Tensor:
        """The weight that `forward` multiplies by, [out, in] or [b - a, in] for rows (a, b), in `compute_dtype`."""

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """[..., in] to [..., out], or [..., b - a] for rows (a, b), in `compute_dtype`."""
        bias = self.bias if self.bias is None or rows is None else self.bias[rows[0] : rows[1]]
        return F.linear(x.to(self.compute_dtype), self.dequantized(rows), bias)


def frozen(tensor: Tensor) -> nn.Parameter:
    """The tensor as a parameter without gradients, which stored weights cannot have."""
    return nn.Parameter(tensor, requires_grad=False)
