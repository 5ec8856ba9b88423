"""Tiles that fit into the memory that is free: the wanted ones if they do, else the largest that fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..config import VaeConfig
from .memory import Size, decode_bytes, encode_bytes
from .tiling import TilePlan, Tiling, Window, plan_tiles

SLACK = 2**28
"""Free bytes that no tile may take: for workspaces of kernels and what an allocator wastes."""

Steps = tuple[tuple[float, int], ...]
"""(side in pixels, frames) in the order in which they are tried, as far as they are smaller than what is wanted."""

STEPS: Steps = (
    *((math.inf, frames) for frames in (64, 32, 16)),
    *((512, frames) for frames in (64, 32)),
    *((256, frames) for frames in (64, 32, 16)),
    *((192, 16), (128, 16), (128, 8), (64, 8)),
)
CARRIED_STEPS: Steps = (
    *((math.inf, frames) for frames in (64, 32, 16, 8, 4)),
    *((512, frames) for frames in (32, 16, 8)),
    *((256, frames) for frames in (32, 16, 8)),
    *((128, 8), (64, 4)),
)
"""Short chunks of carried clips show no seams, seams between tiles may be seen."""


def tile_bytes(config: VaeConfig, latent_size: Size, itemsize: int, tiling: Tiling, *, encoding: bool = False) -> int:
    """The peak of activations while latents of this size are decoded tile by tile, or made by encoding.

    Weights and the result are not in it.

    Args:
        latent_size: (T, h, w) of the whole video.
        itemsize: bytes of a number in the model's dtype.
    Raises:
        OptionError: tiles that do not fit the model.
    """
    plan = plan_tiles(latent_size, config, tiling)
    size = (_longest(plan.frames), _longest(plan.rows), _longest(plan.columns))
    if encoding:
        return encode_bytes(config, size, itemsize)
    return decode_bytes(config, size, itemsize, plan.chunk) + _strip_bytes(config, plan)


def fit_tiling(
    config: VaeConfig, latent_size: Size, itemsize: int, free_bytes: int, wanted: Tiling | None = None
) -> Tiling:
    """The tiles to decode with when so much memory is free, the weights being there already.

    A function of its arguments alone. Other tiles than the wanted ones change numbers a little, as the statistics of
    norms run over a tile. When not even the smallest tiles fit, they are returned nevertheless.

    Args:
        latent_size, itemsize: as in `tile_bytes`.
        wanted: returned as it is whenever it fits; default: the reference's tiles.
    Raises:
        OptionError: wanted tiles that do not fit the model.
    """
    wanted = Tiling.official(config) if wanted is None else wanted
    tiling = wanted
    for tiling in (wanted, *smaller_tilings(config, wanted)):
        if tile_bytes(config, latent_size, itemsize, tiling) + SLACK <= free_bytes:
            return tiling
    return tiling


def smaller_tilings(config: VaeConfig, wanted: Tiling) -> Iterator[Tiling]:
    """What is tried in place of the wanted tiles, first in shorter runs and then with smaller sides."""
    most = (wanted.tile_size or math.inf, wanted.temporal_size or math.inf)
    for side, frames in CARRIED_STEPS if wanted.carried else STEPS:
        if side > most[0] or frames > most[1] or (side, frames) == most or frames % config.time_factor:
            continue
        tile = None if side == math.inf else int(side)
        yield replace(
            wanted,
            tile_size=tile,
            overlap=_overlap(tile, wanted.tile_size, wanted.overlap, config.spatial_factor),
            temporal_size=frames,
            temporal_overlap=_overlap(frames, wanted.temporal_size, wanted.temporal_overlap, config.time_factor),
        )


def _overlap(size: int | None, wanted_size: int | None, wanted: int, factor: int) -> int:
    """The wanted share of a smaller tile, or a quarter where none was wanted, at least one latent if there is room."""
    share = 0.25 if wanted_size is None else wanted / wanted_size
    if size is None or not share:
        return 0
    return min(max(factor, int(size * share) // factor * factor), size - factor)


def _strip_bytes(config: VaeConfig, plan: TilePlan) -> int:
    """What is kept of tiles, in float32, until their neighbours are there; of carried ones it is kept elsewhere."""
    if plan.chunk is not None:
        return 0
    cells = _shared(plan.rows) * plan.columns[-1].stop + _shared(plan.columns) * _longest(plan.rows)
    frames = _longest(plan.frames) * config.time_factor
    return 4 * config.image_channels * frames * cells * config.spatial_factor**2


def _longest(windows: tuple[Window, ...]) -> int:
    return max(window.stop - window.start for window in windows)


def _shared(windows: tuple[Window, ...]) -> int:
    return max(window.stop - window.keep_stop for window in windows)
