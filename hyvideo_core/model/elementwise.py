"""The steps between matrix products, as free functions, so that a fused kernel can replace one of them.

They may write into their first argument, but only when no gradient is wanted: training uses the same blocks.

Shapes: B batch, L tokens, N heads, E head size, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6


class Rope(NamedTuple):
    """Cosines and sines of the rotary positions, float32, each [L, E/2]: one per pair of channels."""

    cos: Tensor
    sin: Tensor


class Modulation(NamedTuple):
    """Adaptive layer norm: shift and scale before a sub-layer, gate after it, each [B, 1, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, [B, L, D] in float32 whatever comes in.

    Float32 is what mixed precision made of it when the model was trained; the next Linear casts it back.
    """
    factor, offset, width = (1 + scale).float(), shift.float(), x.shape[-1:]
    if factor.numel() == width[0]:  # one vector for all tokens is what a layer norm's own weights are: one pass less
        return F.layer_norm(x.float(), width, factor.flatten(), offset.flatten(), NORM_EPS)
    return torch.addcmul(offset, F.layer_norm(x.float(), width, eps=NORM_EPS), factor)


def gated_residual(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate, [B, L, D]."""
    if torch.is_grad_enabled():
        return torch.addcmul(x, update, gate)
    return x.addcmul_(update, gate)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight over the last axis: float32 inside, rounded to x's dtype before the weight."""
    wide = x.float()
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
    normed = (wide * torch.rsqrt(mean_square + NORM_EPS)).to(x.dtype)
    return normed * weight if torch.is_grad_enabled() else normed.mul_(weight)


def rotate_image(x: Tensor, rope: Rope) -> Tensor:
    """Turns each adjacent pair of channels of the leading image tokens by its position's angle, in float32.

    Args:
        x: [B, L, N, E]; tokens beyond the table are text and stay as they are.
    Source: Su et al. 2021, "RoFormer", eq. 34, with interleaved pairs.
    """
    num_image = rope.cos.shape[0]
    image = x[:, :num_image]
    pairs = torch.view_as_complex(image.float().unflatten(-1, (-1, 2)))
    turn = torch.complex(rope.cos, rope.sin).unsqueeze(-2)
    if torch.is_grad_enabled():
        rotated = torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
        return torch.cat((rotated, x[:, num_image:]), dim=1)
    pairs.mul_(turn)
    if x.dtype != torch.float32:  # then the pairs are a copy
        image.copy_(torch.view_as_real(pairs).flatten(-2))
    return x
