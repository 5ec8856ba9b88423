"""Keeping a part of the latents while the rest is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .solvers import euler_step


@dataclass(frozen=True, slots=True)
class KeptRegion:
    """Where mask is 0 the clean latents come back, noised to the level of each step.

    Attributes:
        mask: [1, 1, T, H, W], 1 samples and 0 keeps.
        clean: [1, C, T, H, W], scaled as the model sees them.
        noise: the same shape, the run's own starting noise.
    """

    mask: Tensor
    clean: Tensor
    noise: Tensor

    def restore(self, latents: Tensor, sigma: float) -> Tensor:
        """Latents with the kept region put back at noise level sigma."""
        return self.mask * latents + (1 - self.mask) * mix_noise(self.clean, self.noise, sigma)


def mix_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents on their straight way to noise: (1 - sigma) * clean + sigma * noise."""
    return euler_step(clean, noise - clean, 0.0, sigma)


def fit_mask(mask: Tensor, latents_shape: tuple[int, ...]) -> Tensor:
    """A mask of any size as [B, 1, T, H, W] for latents of [B, C, T, H, W].

    Fewer than five axes are read as [..., frames, height, width], as ComfyUI does; sizes are interpolated and a
    shorter batch is repeated.
    """
    batch, _, *sizes = latents_shape
    if mask.ndim < 5:
        mask = mask.reshape(1, 1, -1, *mask.shape[-2:])
    mask = F.interpolate(mask.float(), size=sizes, mode="trilinear")[:, :1]
    return mask.repeat(-(-batch // mask.shape[0]), 1, 1, 1, 1)[:batch]
