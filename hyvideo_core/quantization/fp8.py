"""Weights of eight bits in floating point, with or without scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import StoredLinear, frozen

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


class Fp8Linear(StoredLinear):
    """A linear layer that keeps its weight in fp8 and widens it for each call.

    Args:
        in_features, out_features: sizes.
        has_bias: whether a bias follows.
        weight_dtype: one of FP8_DTYPES.
        compute_dtype: what the weight is widened to, and the bias' own dtype.
        scaled: the weight is multiplied by `scale`, float32 of shape [1] or [out, 1], after widening.
    """

    scale: Tensor | None

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

    def dequantized(self, rows: tuple[int, int] | None = None) -> Tensor:
        """See StoredLinear.dequantized."""
        weight, scale = _rows(self.weight, rows), self.scale
        wide = weight.to(self.compute_dtype)
        if scale is None:
            return wide
        scale = scale if scale.numel() == 1 else _rows(scale, rows)
        # the reference rounds the scale to bf16 first; in fp16 a small scale would lose its digits
        return wide.mul_(scale.to(self.compute_dtype) if self.compute_dtype == torch.bfloat16 else scale)


def _rows(tensor: Tensor, rows: tuple[int, int] | None) -> Tensor:
    return tensor if rows is None else tensor[rows[0] : rows[1]]
