"""Rotary positions on three axes: time, height, width."""

from __future__ import annotations

import torch

from .elementwise import Rope


def axis_angles(length: int, size: int, theta: float, device: torch.device | None = None) -> torch.Tensor:
    """Angles of one axis, [length, size / 2] float32: position times theta^(-2j / size)."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device)[: size // 2] / size
    frequencies = 1.0 / (theta**exponents)
    return torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)


def rope_table(
    grid: tuple[int, int, int],
    axes: tuple[int, int, int],
    theta: float,
    device: torch.device | None = None,
) -> Rope:
    """Rotary table of a token grid (frames, rows, columns), in the order of the image tokens.

    Args:
        grid: tokens per axis.
        axes: channels of a head given to each axis; even, their sum is the head size.
        theta: base of the frequencies, 256 for HunyuanVideo.
    Returns:
        cos and sin, each [frames * rows * columns, head size / 2] float32.
    Source: Kong et al. 2024, sec. 4.2.
    """
    tables = []
    for dim, (length, size) in enumerate(zip(grid, axes, strict=True)):
        angles = axis_angles(length, size, theta, device)
        shape = [1, 1, 1, size // 2]
        shape[dim] = length
        # cosines of one axis are few; the whole table only repeats them
        tables.append([table.reshape(shape).expand(*grid, -1) for table in (angles.cos(), angles.sin())])
    cos, sin = (torch.cat(parts, dim=-1).flatten(0, 2) for parts in zip(*tables, strict=True))
    return Rope(cos, sin)
