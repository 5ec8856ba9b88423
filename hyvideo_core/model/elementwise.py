"""The steps between matrix products, as free functions, so that a fused kernel can replace one of them.

They write into their first argument when no gradient is wanted, and never when one is: training uses the same blocks.

Shapes: B batch, L tokens, N heads, E head size, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class Rope(NamedTuple):
    """Cosines and sines of the rotary positions, float32, each [L, E/2]: one per pair of channels."""

    cos: Tensor
    sin: Tensor

    def part(self, tokens: slice) -> Rope:
        """The positions of some tokens; those beyond the table are text and have none."""
        return Rope(self.cos[tokens], self.sin[tokens])


class Modulation(NamedTuple):
    """Adaptive layer norm: shift and scale before a sub-layer, gate after it, each [B, 1, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Affine(NamedTuple):
    """What a layer norm multiplies by and adds, each [B, 1, D] float32."""

    factor: Tensor
    offset: Tensor


def affine(shift: Tensor, scale: Tensor) -> Affine:
    """1 + scale, rounded in its own dtype as the reference does, and shift."""
    return Affine((1 + scale).float(), shift.float())


def affines(modulations: tuple[Modulation, ...]) -> list[Affine]:
    """`affine` of several modulations, in one go for all of them."""
    shifts = torch.stack([modulation.shift for modulation in modulations])
    scales = torch.stack([modulation.scale for modulation in modulations])
    return [Affine(*pair) for pair in zip(*affine(shifts, scales), strict=True)]


def modulated_norm(x: Tensor, affine: Affine) -> Tensor:
    """LayerNorm(x) * factor + offset, [B, L, D] in float32 whatever comes in, in memory of its own.

    Float32 is what mixed precision made of it when the model was trained; the next Linear casts it back.
    """
    factor, offset, width = affine.factor, affine.offset, x.shape[-1:]
    if factor.numel() == width[0]:  # one vector for all tokens is what a layer norm's own weights are: one pass less
        return F.layer_norm(x.float(), width, factor.flatten(), offset.flatten(), NORM_EPS)
    return torch.addcmul(offset, F.layer_norm(x.float(), width, eps=NORM_EPS), factor)


def gated_residual(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate, [B, L, D]."""
    if torch.is_grad_enabled():
        return torch.addcmul(x, update, gate)
    return x.addcmul_(update, gate)


def gated_norm(x: Tensor, update: Tensor, gate: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """`gated_residual`, and the `modulated_norm` of what it gives."""
    x = gated_residual(x, update, gate)
    return x, modulated_norm(x, affine)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    if torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    activated: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return activated


def unit_rms(x: Tensor) -> Tensor:
    """x / rms(x) over the last axis: float32 inside, rounded to x's dtype."""
    if torch.is_grad_enabled():
        wide = x.float()  # gradients of both factors meet in float32
        return (wide * _inverse_rms(wide)).to(x.dtype)
    return x.mul_(_inverse_rms(x))


def _inverse_rms(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(length.square() / x.shape[-1] + NORM_EPS)


def weighted(x: Tensor, weight: Tensor) -> Tensor:
    """x * weight."""
    return x * weight if torch.is_grad_enabled() else x.mul_(weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight over the last axis: float32 inside, rounded to x's dtype before the weight."""
    return weighted(unit_rms(x), weight)


def rotate_image(x: Tensor, rope: Rope) -> Tensor:
    """Turns each adjacent pair of channels of the leading image tokens by its position's angle, in float32.

    Args:
        x: [B, L, ..., E]; tokens beyond the table are text and stay as they are.
    Source: Su et al. 2021, "RoFormer", eq. 34, with interleaved pairs.
    """
    num_image = rope.cos.shape[0]
    if not num_image:
        return x
    image = x[:, :num_image]
    pairs = torch.view_as_complex(image.float().unflatten(-1, (-1, 2)))
    turn = torch.complex(rope.cos, rope.sin).unflatten(0, (-1, *(1 for _ in x.shape[2:-1])))
    if torch.is_grad_enabled():
        rotated = torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
        return rotated if num_image == x.shape[1] else torch.cat((rotated, x[:, num_image:]), dim=1)
    pairs.mul_(turn)
    if x.dtype != torch.float32:  # then the pairs are a copy
        image.copy_(torch.view_as_real(pairs).flatten(-2))
    return x


class HeadNorm(nn.Module):
    """The weights of the RMS norm of queries or keys; `unit_rms` comes before it, for both at once."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_size))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, N, E] of unit mean square to the same, weighted."""
        return weighted(x, self.weight)


def normed_heads(qkv: Tensor, q_norm: HeadNorm, k_norm: HeadNorm, rope: Rope) -> Tensor:
    """Queries and keys normed and rotated, values as they are: [B, L, 3, N, E] to the same."""
    normed = unit_rms(qkv[:, :, :2])
    q, k = q_norm(normed[:, :, 0]), k_norm(normed[:, :, 1])
    if torch.is_grad_enabled():
        return torch.stack((rotate_image(q, rope), rotate_image(k, rope), qkv[:, :, 2]), dim=2)
    rotate_image(normed, rope)
    return qkv


@dataclass(frozen=True, kw_only=True)  # no slots: older compilers hold it by weak references
class Elementwise:
    """The functions that blocks call: PyTorch's own by default; a fused kernel stands in the place of one.

    All keep the contract of the function they replace: its result, and writing in place only when grad is off.
    """

    modulated_norm: Callable[[Tensor, Affine], Tensor] = modulated_norm
    gated_residual: Callable[[Tensor, Tensor, Tensor], Tensor] = gated_residual
    gated_norm: Callable[[Tensor, Tensor, Tensor, Affine], tuple[Tensor, Tensor]] = gated_norm
    normed_heads: Callable[[Tensor, HeadNorm, HeadNorm, Rope], Tensor] = normed_heads


PLAIN = Elementwise()
