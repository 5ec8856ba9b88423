"""One step along the flow."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Solver = Callable[[Tensor, Tensor, float, float], Tensor]
"""(latents, velocity, sigma, next sigma) to the latents at the next sigma."""


def euler_step(latents: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """latents + velocity * (next_sigma - sigma), in float32 whatever comes in."""
    return latents.float() + velocity.float() * (next_sigma - sigma)
