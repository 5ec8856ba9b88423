"""Noise levels: which steps a run takes from pure noise (1) to a clean video (0)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import OptionError

TIMESTEP_SCALE = 1000.0


def flow_sigmas(num_steps: int, shift: float) -> Tensor:
    """Noise levels for rectified flow, shifted towards high noise.

    Args:
        num_steps: model calls, at least 1.
        shift: above 1 spends more steps at high noise.
    Returns:
        (num_steps + 1,) float32 on the CPU, falling from 1 to 0.
    Raises:
        OptionError: num_steps < 1, or a shift that is not positive.
    Source: Esser et al. 2024, sec. 5.3.2.
    """
    if num_steps < 1:
        raise OptionError(f"steps is {num_steps}, expected at least 1; 20 to 50 steps are usual")
    if not 0 < shift < math.inf:
        raise OptionError(f"flow_shift is {shift}, expected a positive number; 7.0 is the model's own")
    linear = torch.linspace(1, 0, num_steps + 1)
    return shift * linear / (1 + (shift - 1) * linear)


def partial_sigmas(num_steps: int, shift: float, denoise: float) -> Tensor:
    """The last `num_steps` levels of a run of int(num_steps / denoise) steps, for latents that are not pure noise.

    Args:
        denoise: how much of the way to noise the latents are taken, above 0 up to 1.
    Returns:
        (num_steps + 1,) float32 on the CPU.
    Raises:
        OptionError: a value outside its range.
    """
    if not 0 < denoise <= 1:
        raise OptionError(f"denoise is {denoise}, expected above 0 and at most 1; 1.0 starts from pure noise")
    return flow_sigmas(max(num_steps, int(num_steps / denoise)) if num_steps > 0 else num_steps, shift)[
        -(num_steps + 1) :
    ]


def check_sigmas(sigmas: Tensor) -> None:
    """Refuses noise levels that are no way from noise to a video.

    Raises:
        OptionError: fewer than two levels, levels outside 0..1, or levels that rise.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise OptionError(
            f"sigmas of shape {list(sigmas.shape)}, expected at least two noise levels; "
            "use a scheduler for flow models, with steps and denoise above 0"
        )
    low, high = float(sigmas.min()), float(sigmas.max())
    if not 0 <= low <= high <= 1:  # false for NaN too
        raise OptionError(
            f"sigmas from {high:g} to {low:g}, expected noise levels between 1 and 0; use a scheduler for flow models"
        )
    if bool((sigmas.diff() > 0).any()):
        raise OptionError("the sigmas rise, expected noise levels that fall from 1 to 0; flip them")
