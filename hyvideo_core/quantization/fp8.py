"""Weights of eight bits in floating point, with or without scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import StoredLinear, frozen

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
E4M3_MAX = 448.0

Multiply = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""(x, weight, scale, bias) to their product, where it is not made by widening the weight."""


class Fp8Linear(StoredLinear):
    """A linear layer that keeps its weight in fp8 and widens it for each call.

    Args:
        in_features, out_features: sizes.
        has_bias: whether a bias follows.
        weight_dtype: one of FP8_DTYPES.
        compute_dtype: what the weight is widened to, and the bias' own dtype.
        scaled: the weight is multiplied by `scale`, float32 of shape [1] or [out, 1], after widening.
    Attributes:
        is_full_precision: its file asks for products in `compute_dtype`.
        multiply: another way to the product than widening; None by default.
    """

    scale: Tensor | None
    is_full_precision = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        has_bias: bool,
        weight_dtype: torch.dtype,
        compute_dtype: torch.dtype,
        scaled: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, has_bias=has_bias, compute_dtype=compute_dtype)
        self.weight = frozen(torch.empty(out_features, in_features, dtype=weight_dtype))
        self.register_buffer("scale", torch.ones(1) if scaled else None)
        self.multiply: Multiply | None = None

    @classmethod
    def like(cls, layer: nn.Linear, weight_dtype: torch.dtype, compute_dtype: torch.dtype) -> Fp8Linear:
        """An empty fp8 layer of the same sizes, without a scale."""
        return cls(
            layer.in_features,
            layer.out_features,
            has_bias=layer.bias is not None,
            weight_dtype=weight_dtype,
            compute_dtype=compute_dtype,
        )

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """See StoredLinear.forward."""
        if self.multiply is None:
            return super().forward(x, rows)
        bias = None if self.bias is None else _rows(self.bias, rows)
        return self.multiply(x.to(self.compute_dtype), _rows(self.weight, rows), self._scale(rows), bias)

    def dequantized(self, rows: tuple[int, int] | None = None) -> Tensor:
        """See StoredLinear.dequantized."""
        wide, scale = _rows(self.weight, rows).to(self.compute_dtype), self._scale(rows)
        if scale is None:
            return wide
        # the reference rounds the scale to bf16 first; in fp16 a small scale would lose its digits
        scale = scale.to(self.compute_dtype) if self.compute_dtype == torch.bfloat16 else scale
        # a weight that is as wide as it will be must not be written to
        return wide.mul_(scale) if wide.dtype != self.weight.dtype else (wide * scale).to(wide.dtype)

    def _scale(self, rows: tuple[int, int] | None) -> Tensor | None:
        return self.scale if self.scale is None or self.scale.numel() == 1 else _rows(self.scale, rows)


def _rows(tensor: Tensor, rows: tuple[int, int] | None) -> Tensor:
    return tensor if rows is None else tensor[rows[0] : rows[1]]
