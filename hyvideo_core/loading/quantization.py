"""Linear layers whose weights are stored in fewer bits than they compute in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.linear import Linear

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


class Fp8Linear(nn.Module):
    """A linear layer that keeps its weight in fp8 and widens it for each call.

    Args:
        in_features, out_features: sizes.
        has_bias: whether a bias follows.
        weight_dtype: one of FP8_DTYPES.
        compute_dtype: what the weight is widened to, and the bias' own dtype.
        scaled: the weight is multiplied by `scale` (one number, float32) after widening.
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
        super().__init__()
        empty = torch.empty(out_features, in_features, dtype=weight_dtype)
        self.weight = nn.Parameter(empty, requires_grad=False)
        bias = torch.empty(out_features, dtype=compute_dtype)
        self.bias = nn.Parameter(bias, requires_grad=False) if has_bias else None
        self.register_buffer("scale", torch.ones(1) if scaled else None)
        self.compute_dtype = compute_dtype

    @classmethod
    def like(cls, layer: Linear, weight_dtype: torch.dtype, compute_dtype: torch.dtype) -> Fp8Linear:
        """An empty fp8 layer of the same sizes, without a scale."""
        return cls(
            layer.in_features,
            layer.out_features,
            has_bias=layer.bias is not None,
            weight_dtype=weight_dtype,
            compute_dtype=compute_dtype,
        )

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """[..., in] to [..., out], or [..., b - a] for rows (a, b), in `compute_dtype`."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if rows is not None:
            weight = weight[rows[0] : rows[1]]
            bias = None if bias is None else bias[rows[0] : rows[1]]
        wide = weight.to(self.compute_dtype)
        if self.scale is not None:
            wide = wide * self.scale.to(self.compute_dtype)
        return F.linear(x.to(self.compute_dtype), wide, bias)
