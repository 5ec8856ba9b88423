"""Seeded starting noise, the same on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_SEEDS = 2**64


def make_noise(shape: tuple[int, ...], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Standard normal noise from one CPU generator per sample.

    Args:
        shape: (B, C, T, H, W).
        seed: sample i uses (seed + batch_index[i]) mod 2**64.
        batch_index: which number each sample has in the batch it came from; 0, 1, ... without it.
    Returns:
        `shape` float32 on the CPU.
    """
    numbers = range(shape[0]) if batch_index is None else batch_index
    samples = [
        torch.randn((1, *shape[1:]), generator=torch.Generator("cpu").manual_seed((seed + number) % NUM_SEEDS))
        for number in numbers
    ]
    return torch.cat(samples)
