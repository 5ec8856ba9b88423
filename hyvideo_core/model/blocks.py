"""The two kinds of transformer block. Image tokens come first, text last; only image tokens have positions.

Shapes: B batch, L tokens, N heads, E head size, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import AttentionBackend
from ..config import TransformerConfig
from .elementwise import Modulation, Rope, gated_residual, modulated_norm, rms_norm, rotate_image
from .linear import Linear
from .modulation import DoubleModulation, ModulationProjection

gelu_tanh = partial(F.gelu, approximate="tanh")


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3D], q first, to views q, k, v of [B, L, N, E]."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return q, k, v


class HeadNorm(nn.Module):
    """RMS norm of each head's queries or keys."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_size))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, N, E] to the same."""
        return rms_norm(x, self.weight)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, inner_width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner_width)
        self.fc2 = Linear(inner_width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        return self.fc2(self.activation(self.fc1(x)))


class DoubleStreamBlock(nn.Module):
    """Image and text with weights of their own, meeting in one attention.

    Source: Esser et al. 2024, sec. 4; Kong et al. 2024, sec. 4.2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, head_size = config.hidden_size, config.head_size
        self.num_heads = config.num_heads
        self.img_mod = ModulationProjection(width, 2)
        self.img_attn_qkv = Linear(width, 3 * width)
        self.img_attn_q_norm = HeadNorm(head_size)
        self.img_attn_k_norm = HeadNorm(head_size)
        self.img_attn_proj = Linear(width, width)
        self.img_mlp = FeedForward(width, config.mlp_width, gelu_tanh)
        self.txt_mod = ModulationProjection(width, 2)
        self.txt_attn_qkv = Linear(width, 3 * width)
        self.txt_attn_q_norm = HeadNorm(head_size)
        self.txt_attn_k_norm = HeadNorm(head_size)
        self.txt_attn_proj = Linear(width, width)
        self.txt_mlp = FeedForward(width, config.mlp_width, gelu_tanh)

    def forward(
        self, img: Tensor, txt: Tensor, modulation: DoubleModulation, rope: Rope, attention: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """Image [B, L_img, D] and text [B, L_txt, D] to the same; both may be written to when grad is off."""
        shift, scale, img_gate = modulation.img_attn
        img_q, img_k, img_v = split_heads(self.img_attn_qkv(modulated_norm(img, shift, scale)), self.num_heads)
        img_q = rotate_image(self.img_attn_q_norm(img_q), rope)
        img_k = rotate_image(self.img_attn_k_norm(img_k), rope)

        shift, scale, txt_gate = modulation.txt_attn
        txt_q, txt_k, txt_v = split_heads(self.txt_attn_qkv(modulated_norm(txt, shift, scale)), self.num_heads)
        txt_q, txt_k = self.txt_attn_q_norm(txt_q), self.txt_attn_k_norm(txt_k)

        attended = attention(
            torch.cat((img_q, txt_q), dim=1),
            torch.cat((img_k, txt_k), dim=1),
            torch.cat((img_v, txt_v), dim=1),
        ).flatten(2)
        img_attended, txt_attended = attended.split((img.shape[1], txt.shape[1]), dim=1)

        img = gated_residual(img, self.img_attn_proj(img_attended), img_gate)
        txt = gated_residual(txt, self.txt_attn_proj(txt_attended), txt_gate)
        return _feed_forward(img, self.img_mlp, modulation.img_mlp), _feed_forward(
            txt, self.txt_mlp, modulation.txt_mlp
        )


def _feed_forward(x: Tensor, mlp: FeedForward, modulation: Modulation) -> Tensor:
    return gated_residual(x, mlp(modulated_norm(x, modulation.shift, modulation.scale)), modulation.gate)


class SingleStreamBlock(nn.Module):
    """Image and text as one sequence; attention and feed-forward side by side between two fused layers.

    Source: Dehghani et al. 2023, sec. 2 (parallel layers); Kong et al. 2024, sec. 4.2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv_rows = (0, 3 * width)
        self.mlp_rows = (3 * width, 3 * width + config.mlp_width)
        self.modulation = ModulationProjection(width, 1)
        self.linear1 = Linear(width, self.mlp_rows[1])
        self.q_norm = HeadNorm(config.head_size)
        self.k_norm = HeadNorm(config.head_size)
        self.linear2 = Linear(width + config.mlp_width, width)

    def forward(self, x: Tensor, modulation: Modulation, rope: Rope, attention: AttentionBackend) -> Tensor:
        """Image then text tokens [B, L, D] to the same; x may be written to when grad is off."""
        normed = modulated_norm(x, modulation.shift, modulation.scale).to(x.dtype)
        q, k, v = split_heads(self.linear1(normed, rows=self.qkv_rows), self.num_heads)
        q, k = rotate_image(self.q_norm(q), rope), rotate_image(self.k_norm(k), rope)
        attended = attention(q, k, v).flatten(2)
        inner = gelu_tanh(self.linear1(normed, rows=self.mlp_rows))
        return gated_residual(x, self.linear2(torch.cat((attended, inner), dim=-1)), modulation.gate)
