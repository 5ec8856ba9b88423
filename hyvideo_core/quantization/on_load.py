"""Fp8 weights made from wider ones, with a scale for each row or one for the whole."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .fp8 import E4M3_MAX, Fp8Linear

BIG_LINEARS = re.compile(
    r"double_blocks\.\d+\.(img|txt)_(attn_qkv|attn_proj|mlp\.fc1|mlp\.fc2)$|single_blocks\.\d+\.linear[12]$"
)
"""Layers that hold nine tenths of the weights and bear fewer bits; embedders, modulation, norms and the last layer
do not."""
ROWS_AT_ONCE = 1024


class MadeFp8Linear(Fp8Linear):
    """An fp8 layer made on load.

    Attributes:
        relative_error: the norm of what rounding changed over the norm of the weight.
    """

    relative_error = 0.0


def quantized_rows(weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """A weight [out, in] as e4m3, its scales as float32 [out, 1], and the relative error of that.

    Scales are rounded up to numbers that bf16 holds, so that widening in bf16 rounds nothing but the weights, and
    none of them ends above fp8's largest number. Works on some rows at a time, so that no wide copy is needed.
    """
    small = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(weight), 1, device=weight.device)
    lost, whole = 0.0, 0.0
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        wide = weight[rows].float()
        scales[rows] = scale = _row_scales(wide)
        small[rows] = (wide / scale).to(small.dtype)
        lost += float((small[rows].float() * scale - wide).square().sum())
        whole += float(wide.square().sum())
    return small, scales, (lost / whole) ** 0.5 if whole else 0.0


def quantized_whole(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] as e4m3 and its one scale, float32 of shape []."""
    peak = max((float(rows.float().abs().max()) for rows in weight.split(ROWS_AT_ONCE)), default=0.0)
    scale = torch.tensor(peak / E4M3_MAX, device=weight.device).clamp(min=torch.finfo(torch.float32).tiny)
    small = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        small[rows] = (weight[rows].float() / scale).to(small.dtype)
    return small, scale


def _row_scales(wide: Tensor) -> Tensor:
    exact = (wide.abs().amax(1, keepdim=True) / E4M3_MAX).clamp(min=torch.finfo(torch.bfloat16).tiny)
    nearest = exact.bfloat16()
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest.float() < exact, above, nearest).float()


def on_load_errors(model: nn.Module) -> Mapping[str, float]:
    """The relative error of each layer whose weight was made fp8 on loading, by name; empty for other models."""
    return {name: layer.relative_error for name, layer in model.named_modules() if isinstance(layer, MadeFp8Linear)}


def describe_errors(errors: Mapping[str, float]) -> str:
    """In words: how many layers, and their mean and largest error. Empty without any."""
    if not errors:
        return ""
    worst = max(errors, key=lambda name: errors[name])
    mean = sum(errors.values()) / len(errors)
    return (
        f"fp8 made on load: {len(errors)} layers, relative error of the weights {mean:.2%} on average, "
        f"{errors[worst]:.2%} at most ({worst})"
    )
