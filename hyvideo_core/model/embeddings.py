"""Everything that becomes a token or a vector before the blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .linear import Linear

SINUSOID_WIDTH = 256
MAX_PERIOD = 10000.0


def sinusoid(values: Tensor, width: int = SINUSOID_WIDTH) -> Tensor:
    """Sinusoidal embedding of values [B], cosines first: [B, width] float32.

    Source: Vaswani et al. 2017, sec. 3.5, with frequencies MAX_PERIOD^(-k / (width / 2)).
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * steps / half)
    embedding = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return F.pad(embedding, (0, width % 2))


class PatchEmbed(nn.Module):
    """Latents to image tokens: one linear map of each patch."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, patch_size, patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, L, D], frames slowest, columns fastest."""
        pt, ph, pw = self.patch_size
        # kernel equals stride, so the convolution is a matrix product, which is faster
        patches = rearrange(latents, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class ScalarEmbed(nn.Module):
    """A timestep or a guidance value to a vector."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(SINUSOID_WIDTH, hidden_size), nn.SiLU(), Linear(hidden_size, hidden_size))

    def forward(self, values: Tensor) -> Tensor:
        """[B] on the scale 0..1000 to [B, D]."""
        return self.mlp(sinusoid(values))


class PooledEmbed(nn.Module):
    """The pooled text vector to a vector."""

    def __init__(self, in_width: int, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = Linear(in_width, hidden_size)
        self.out_layer = Linear(hidden_size, hidden_size)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, P] to [B, D]."""
        return self.out_layer(F.silu(self.in_layer(pooled)))


class ContextEmbed(nn.Module):
    """The mean text state to a vector."""

    def __init__(self, in_width: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = Linear(in_width, hidden_size)
        self.linear_2 = Linear(hidden_size, hidden_size)

    def forward(self, mean_state: Tensor) -> Tensor:
        """[B, text width] to [B, D]."""
        return self.linear_2(F.silu(self.linear_1(mean_state)))
