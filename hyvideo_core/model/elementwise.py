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
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift.float(), normed, (1 + scale).float())


def gated_residual(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate, [B, L, D]."""
    if torch.is_grad_enabled():
        return torch.addcmul(x, update, gate)
    return x.addcmul_(update, gate)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight over the last axis: float32 inside, rounded to x's dtype before the weight."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + NORM_EPS)
    return ((wide * inverse).to(x.dtype) * weight).to(x.dtype)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turns each adjacent pair of channels of x [B, L, N, E] by its position's angle, in float32.

    Source: Su et al. 2021, "RoFormer", eq. 34, with interleaved pairs.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turn = torch.complex(rope.cos, rope.sin).unsqueeze(-2)
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
