"""Keeping a part of the latents while the rest is sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .solvers import euler_step

VelocityFunction = Callable[[Tensor, float], Tensor]
"""(latents [1, C, T, H, W], sigma) to velocity."""


@dataclass(frozen=True, slots=True)
class KeptRegion:
    """Where mask is 0 the clean latents stay; in between, clean and sampled latents are mixed.

    Attributes:
        mask: [1, 1, T, H, W], 1 samples and 0 keeps.
        clean: [1, C, T, H, W], scaled as the model sees them.
        noise: the same shape, the run's own starting noise.
    """

    mask: Tensor
    clean: Tensor
    noise: Tensor

    def guard(self, velocity: VelocityFunction) -> VelocityFunction:
        """The velocity that leads the kept region to its clean latents.

        The model sees the kept region noised to the level of the step, and what it predicts there is replaced, as
        ComfyUI's masked sampling does; for any solver.
        """

        def guarded(latents: Tensor, sigma: float) -> Tensor:
            seen = self._mix(latents, mix_noise(self.clean, self.noise, sigma))
            denoised = euler_step(seen, velocity(seen, sigma), sigma, 0.0)
            return (latents - self._mix(denoised, self.clean)) / sigma

        return guarded

    def _mix(self, sampled: Tensor, kept: Tensor) -> Tensor:
        return self.mask * sampled + (1 - self.mask) * kept


def mix_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents on their straight way to noise: (1 - sigma) * clean + sigma * noise."""
    # in this form exact at both ends
    return (1 - sigma) * clean + sigma * noise


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
