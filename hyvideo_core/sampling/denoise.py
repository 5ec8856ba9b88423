"""The loop from noise to latents. Progress, preview and interruption come in as one callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .masking import VelocityFunction
from .solvers import Solver, euler_step


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a finished step shows.

    Attributes:
        done: steps finished, 1 after the first.
        total: steps of this run.
        sigma: the noise level that the step started from.
        denoised: the clean latents as predicted at this step, scaled as the model sees them.
    """

    done: int
    total: int
    sigma: float
    denoised: Tensor


StepCallback = Callable[[StepResult], None]


def denoise(
    velocity: VelocityFunction,
    latents: Tensor,
    sigmas: Tensor,
    *,
    solver: Solver = euler_step,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Latents at the last sigma, float32.

    Args:
        velocity: the guided model.
        latents: [1, C, T, H, W] at the first sigma.
        sigmas: (steps + 1,), falling.
        on_step: called after each step; may raise to stop the run.
    Raises:
        NonFiniteError: the model gave NaN or infinity; names the step.
    """
    levels = sigmas.tolist()
    total = len(levels) - 1
    for index, (sigma, next_sigma) in enumerate(pairwise(levels)):
        flow = velocity(latents, sigma)
        check_finite(flow, index + 1, total)
        if on_step is not None:
            on_step(StepResult(index + 1, total, sigma, euler_step(latents, flow, sigma, 0.0)))
        latents = solver(latents, flow, sigma, next_sigma)
    return latents


def check_finite(velocity: Tensor, step: int, total: int) -> None:
    """Stops a run at its first NaN instead of decoding black frames hours later.

    Raises:
        NonFiniteError: any value is NaN or infinite.
    """
    if not bool(torch.isfinite(velocity).all()):
        raise NonFiniteError(
            f"the model gave NaN or infinity in step {step} of {total}, expected finite numbers. Likely causes: "
            "float16 overflow (choose precision bf16), a damaged or mismatched weight file, a LoRA of too high "
            "strength, or an unstable attention backend"
        )
