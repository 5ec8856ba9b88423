"""Text states to text tokens: two attention blocks that know the timestep."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import AttentionBackend
from ..config import TransformerConfig
from .blocks import FeedForward, split_heads
from .elementwise import NORM_EPS, gated_residual
from .embeddings import ContextEmbed, ScalarEmbed
from .linear import Linear


class RefinerBlock(nn.Module):
    """Self-attention and feed-forward, both gated by the conditioning vector; norms have weights here."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.self_attn_qkv = Linear(width, 3 * width)
        self.self_attn_proj = Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = FeedForward(width, config.refiner_mlp_width, F.silu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, vec: Tensor, attention: AttentionBackend) -> Tensor:
        """Tokens x [B, L, D] and vector [B, D] to tokens [B, L, D]."""
        attn_gate, mlp_gate = self.adaLN_modulation(vec).unsqueeze(1).chunk(2, dim=-1)
        q, k, v = split_heads(self.self_attn_qkv(affine_norm(x, self.norm1)), self.num_heads)
        x = gated_residual(x, self.self_attn_proj(attention(q, k, v).flatten(2)), attn_gate)
        return gated_residual(x, self.mlp(affine_norm(x, self.norm2)), mlp_gate)


def affine_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm with its weights, in float32 as mixed precision does it."""
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


class IndividualTokenRefiner(nn.Module):
    """The refiner's blocks, under the name that checkpoints give them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(config) for _ in range(config.num_refiner_blocks))

    def forward(self, x: Tensor, vec: Tensor, attention: AttentionBackend) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        for block in self.blocks:
            x = block(x, vec, attention)
        return x


class TokenRefiner(nn.Module):
    """Text states of real length to text tokens.

    Padding never enters: where the reference masks it, here the text was cut before, which gives valid tokens
    the same values.

    Source: Kong et al. 2024, sec. 4.2; Ma et al. 2024, "Exploring the role of LLMs in DiTs".
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_embedder = Linear(config.text_width, config.hidden_size)
        self.t_embedder = ScalarEmbed(config.hidden_size)
        self.c_embedder = ContextEmbed(config.text_width, config.hidden_size)
        self.individual_token_refiner = IndividualTokenRefiner(config)

    def forward(self, states: Tensor, timesteps: Tensor, attention: AttentionBackend) -> Tensor:
        """States [B, L, text width] and timesteps [B] (0..1000) to tokens [B, L, D]."""
        mean_state = states.float().mean(dim=1)
        vec = self.t_embedder(timesteps) + self.c_embedder(mean_state)
        return self.individual_token_refiner(self.input_embedder(states), vec, attention)
