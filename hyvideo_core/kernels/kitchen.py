"""What comfy-kitchen, which comes with ComfyUI, offers for the steps between matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.elementwise import NORM_EPS, Affine, HeadNorm, Rope, gated_residual


def load_modulated_norm() -> Callable[[Tensor, Affine], Tensor]:
    """Layer norm and modulation in one pass."""
    from comfy_kitchen import adaln

    def modulated_norm(x: Tensor, affine: Affine) -> Tensor:
        # theirs adds 1 to the scale, in float32; ours has it added where the reference does, in the model's dtype
        result: Tensor = adaln(x, affine.factor - 1, affine.offset, NORM_EPS)
        return result

    return modulated_norm


def load_gated_norm() -> Callable[[Tensor, Tensor, Tensor, Affine], tuple[Tensor, Tensor]]:
    """The same after a gated residual, which is a pass of its own."""
    modulated_norm = load_modulated_norm()

    def gated_norm(x: Tensor, update: Tensor, gate: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
        x = gated_residual(x, update, gate)
        return x, modulated_norm(x, affine)

    return gated_norm


def load_normed_heads() -> Callable[[Tensor, HeadNorm, HeadNorm, Rope], Tensor]:
    """RMS norm and rotary positions of queries and keys in one pass over both, written into them."""
    from comfy_kitchen import rms_rope_

    def normed_heads(qkv: Tensor, q_norm: HeadNorm, k_norm: HeadNorm, rope: Rope) -> Tensor:
        q, k, _ = qkv.unbind(2)
        weights = (norm.weight.detach() for norm in (q_norm, k_norm))
        rms_rope_(q, k, rotation_table(rope, qkv.shape[1]), *weights, NORM_EPS)
        return qkv

    return normed_heads


def rotation_table(rope: Rope, num_tokens: int) -> Tensor:
    """Positions as comfy-kitchen wants them: a 2 x 2 matrix for each pair of channels, [1, L, 1, E/2, 2, 2].

    Text is turned by nothing. Made anew for each call: that is less than a hundredth of what the kernel moves, and
    nothing stays in memory after a run.
    """
    num_text = num_tokens - rope.cos.shape[0]
    cos, sin = (F.pad(table, (0, 0, 0, num_text), value=rest) for table, rest in ((rope.cos, 1.0), (rope.sin, 0.0)))
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))[None, :, None]
