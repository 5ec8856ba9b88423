"""The two kinds of transformer block. Image tokens come first, text last; only image tokens have positions.

Activations are made where they are needed and for as many tokens at a time as BlockSettings say; weights are used by
rows, never split. What is alive in the worst moment, attention, is the tokens, their queries, keys and values, and
attention's result: five times the tokens, or with a quarter of the heads at once three times.

Shapes: B batch, L tokens, N heads, E head size, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import AttentionBackend
from ..config import TransformerConfig
from .chunks import DEFAULT, BlockSettings, assembled, updated
from .elementwise import Affine, HeadNorm, Modulation, Rope, affine, affines, gelu_tanh
from .linear import Linear
from .modulation import DoubleModulation, ModulationProjection

NormedChunk = Callable[[slice], Tensor]
"""Some tokens of a stream after their modulated norm, [B, L, D]."""


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3D], q first, to views q, k, v of [B, L, N, E]."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return q, k, v


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


@dataclass(frozen=True, slots=True)
class HeadSource:
    """Where one stream of tokens gets its queries, keys and values.

    Attributes:
        length: tokens of the stream.
        normed: its tokens after their norm.
        qkv: the layer whose first 3D output channels are q, k and v.
        q_norm, k_norm: of the heads.
        rope: positions; those of no token for text.
    """

    length: int
    normed: NormedChunk
    qkv: Any  # a Linear, or what loading put in its place
    q_norm: HeadNorm
    k_norm: HeadNorm
    rope: Rope

    def heads(self, chunk: slice, group: slice, num_heads: int, settings: BlockSettings) -> Tensor:
        """Some heads of some tokens, normed and rotated, [B, L, 3, N, E]."""
        qkv = self._layer_rows(self.normed(chunk), group, num_heads).unflatten(-1, (3, group.stop - group.start, -1))
        return settings.kernels.normed_heads(qkv, self.q_norm, self.k_norm, self.rope.part(chunk))

    def _layer_rows(self, normed: Tensor, group: slice, num_heads: int) -> Tensor:
        size = self.q_norm.weight.shape[0]
        width, first, last = num_heads * size, group.start * size, group.stop * size
        if last - first == width:
            return self.qkv(normed, rows=(0, 3 * width))
        return torch.cat([self.qkv(normed, rows=(part + first, part + last)) for part in (0, width, 2 * width)], dim=-1)


def attend(
    sources: Sequence[HeadSource], num_heads: int, attention: AttentionBackend, settings: BlockSettings
) -> Tensor:
    """Attention over all tokens of all sources, one source after the other: [B, L, N, E]."""
    length = sum(source.length for source in sources)

    def attended(group: slice) -> Tensor:
        pieces = (
            source.heads(chunk, group, num_heads, settings)
            for source in sources
            for chunk in settings.chunks(source.length)
        )
        return attention(*assembled(pieces, length).unbind(2))

    return assembled(map(attended, settings.head_groups(num_heads)), num_heads, dim=2)


def norm_chunks(x: Tensor, affine: Affine, settings: BlockSettings, *, is_reused: bool) -> NormedChunk:
    """The modulated norm of tokens x [B, L, D] as they are when it is asked for.

    Args:
        is_reused: several layers take it: cast for all of them, and kept if one chunk is all.
    """

    def normed(chunk: slice) -> Tensor:
        wide = settings.kernels.modulated_norm(x[:, chunk], affine)
        return wide.to(x.dtype) if is_reused else wide

    if not is_reused or len(settings.chunks(x.shape[1])) > 1:
        return normed
    whole = normed(slice(None))
    return lambda _: whole


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
        self,
        img: Tensor,
        txt: Tensor,
        modulation: DoubleModulation,
        rope: Rope,
        attention: AttentionBackend,
        settings: BlockSettings = DEFAULT,
    ) -> tuple[Tensor, Tensor]:
        """Image [B, L_img, D] and text [B, L_txt, D] to the same; both are written to when grad is off."""
        img_attn, img_mlp, txt_attn, txt_mlp = affines(modulation)
        is_reused = len(settings.head_groups(self.num_heads)) > 1
        sources = (
            HeadSource(
                img.shape[1],
                norm_chunks(img, img_attn, settings, is_reused=is_reused),
                self.img_attn_qkv,
                self.img_attn_q_norm,
                self.img_attn_k_norm,
                rope,
            ),
            HeadSource(
                txt.shape[1],
                norm_chunks(txt, txt_attn, settings, is_reused=is_reused),
                self.txt_attn_qkv,
                self.txt_attn_q_norm,
                self.txt_attn_k_norm,
                rope.part(slice(0, 0)),
            ),
        )
        attended = attend(sources, self.num_heads, attention, settings)
        img_attended, txt_attended = attended.split((img.shape[1], txt.shape[1]), dim=1)
        img_gates = modulation.img_attn.gate, modulation.img_mlp.gate
        txt_gates = modulation.txt_attn.gate, modulation.txt_mlp.gate
        return (
            _finish(img, img_attended, self.img_attn_proj, self.img_mlp, img_mlp, img_gates, settings),
            _finish(txt, txt_attended, self.txt_attn_proj, self.txt_mlp, txt_mlp, txt_gates, settings),
        )


def _finish(
    x: Tensor,
    attended: Tensor,
    proj: nn.Module,
    mlp: FeedForward,
    affine: Affine,
    gates: tuple[Tensor, Tensor],
    settings: BlockSettings,
) -> Tensor:
    """The rest of a stream after attention [B, L, N, E]: projection, then feed-forward, each gated into x [B, L, D]."""
    kernels, (attn_gate, mlp_gate) = settings.kernels, gates

    def step(chunk: slice) -> Tensor:
        part, normed = kernels.gated_norm(x[:, chunk], proj(attended[:, chunk].flatten(2)), attn_gate, affine)
        return kernels.gated_residual(part, mlp(normed), mlp_gate)

    return updated(x, settings.chunks(x.shape[1]), step)


class SingleStreamBlock(nn.Module):
    """Image and text as one sequence; attention and feed-forward side by side between two fused layers.

    Source: Dehghani et al. 2023, sec. 2 (parallel layers); Kong et al. 2024, sec. 4.2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.mlp_rows = (3 * width, 3 * width + config.mlp_width)
        self.modulation = ModulationProjection(width, 1)
        self.linear1 = Linear(width, self.mlp_rows[1])
        self.q_norm = HeadNorm(config.head_size)
        self.k_norm = HeadNorm(config.head_size)
        self.linear2 = Linear(width + config.mlp_width, width)

    def forward(
        self,
        x: Tensor,
        modulation: Modulation,
        rope: Rope,
        attention: AttentionBackend,
        settings: BlockSettings = DEFAULT,
    ) -> Tensor:
        """Image then text tokens [B, L, D] to the same; x is written to when grad is off."""
        normed = norm_chunks(x, affine(modulation.shift, modulation.scale), settings, is_reused=True)
        source = HeadSource(x.shape[1], normed, self.linear1, self.q_norm, self.k_norm, rope)
        attended = attend([source], self.num_heads, attention, settings)

        def step(chunk: slice) -> Tensor:
            # one product of both, not the sum of two: that would round twice
            both = torch.cat((attended[:, chunk].flatten(2), self._inner(normed(chunk))), dim=-1)
            return settings.kernels.gated_residual(x[:, chunk], self.linear2(both), modulation.gate)

        return updated(x, settings.chunks(x.shape[1]), step)

    def _inner(self, normed: Tensor) -> Tensor:
        return gelu_tanh(self.linear1(normed, rows=self.mlp_rows))
