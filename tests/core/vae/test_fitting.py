"""Laws of the tiles that fit into what memory is free."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.vae import Tiling
from hyvideo_nodes.hyvideo_core.vae.fitting import SLACK, fit_tiling, smaller_tilings, tile_bytes
from hyvideo_nodes.hyvideo_core.vae.tiling import plan_tiles

CONFIG = VaeConfig()
GB = 10**9
SIZE_720P = (33, 90, 160)
WEIGHTS = 493 * 10**6
WANTED = [
    Tiling.official(CONFIG),
    Tiling(),
    Tiling(tile_size=None, overlap=0, temporal_size=None, temporal_overlap=0),
    Tiling(tile_size=96, overlap=0, temporal_size=20, temporal_overlap=12),
    Tiling(carried=True),
    Tiling(carried=True, tile_size=None, temporal_size=None),
]


def fit(free: float, wanted: Tiling | None = None, size: tuple[int, int, int] = SIZE_720P) -> Tiling:
    return fit_tiling(CONFIG, size, 2, int(free), wanted)


def test_the_references_tiles_are_taken_whenever_they_fit() -> None:
    official = Tiling.official(CONFIG)
    needed = tile_bytes(CONFIG, SIZE_720P, 2, official) + SLACK
    assert fit(needed) == fit(80 * GB) == official
    assert fit(needed - 1) == replace(official, temporal_size=32, temporal_overlap=8)


@given(
    free=st.integers(0, 100 * GB), frames=st.integers(1, 40), sides=st.tuples(st.integers(1, 170), st.integers(1, 170))
)
@pytest.mark.parametrize("wanted", WANTED)
def test_the_first_of_the_steps_that_fits_is_taken(
    wanted: Tiling, free: int, frames: int, sides: tuple[int, int]
) -> None:
    size = (frames, *sides)
    steps = [wanted, *smaller_tilings(CONFIG, wanted)]
    got = fit(free, wanted, size)
    fits = [tile_bytes(CONFIG, size, 2, step) + SLACK <= free for step in steps]
    assert got == (steps[fits.index(True)] if any(fits) else steps[-1])


@pytest.mark.parametrize("wanted", WANTED)
def test_steps_are_never_larger_than_what_is_wanted_and_can_be_planned(wanted: Tiling) -> None:
    for step in smaller_tilings(CONFIG, wanted):
        assert step.tile_size is None or step.tile_size <= (wanted.tile_size or 10**9)
        assert step.temporal_size <= (wanted.temporal_size or 10**9)
        assert (step.carried, step.keep_redundant) == (wanted.carried, wanted.keep_redundant)
        plan_tiles(SIZE_720P, CONFIG, step)


def test_models_of_other_factors_get_tiles_that_fit_them() -> None:
    config = VaeConfig(time_factor=8, spatial_factor=4)
    steps = list(smaller_tilings(config, Tiling(tile_size=None, temporal_size=None)))
    assert steps
    assert all(step.temporal_size % 8 == step.temporal_overlap % 8 == step.overlap % 4 == 0 for step in steps)


def test_a_card_of_six_gigabytes_decodes_720p_with_the_references_tiles_and_one_of_four_with_33_frames() -> None:
    assert WEIGHTS + tile_bytes(CONFIG, SIZE_720P, 2, Tiling.official(CONFIG)) <= 4.2 * GB
    shorter = Tiling(temporal_size=32, temporal_overlap=8)
    assert WEIGHTS + tile_bytes(CONFIG, SIZE_720P, 2, shorter) <= 2.6 * GB
    assert fit(6 * GB - WEIGHTS) == Tiling.official(CONFIG)
    assert fit(4 * GB - WEIGHTS).temporal_size == 32


def test_small_videos_need_no_more_than_themselves() -> None:
    small = tile_bytes(CONFIG, (1, 8, 8), 2, Tiling.official(CONFIG))
    assert small < tile_bytes(CONFIG, (5, 8, 8), 2, Tiling.official(CONFIG)) < 0.2 * GB
    assert tile_bytes(CONFIG, (5, 8, 8), 4, Tiling.official(CONFIG)) > small
    assert tile_bytes(CONFIG, (17, 32, 32), 2, Tiling(), encoding=True) < 2.6 * GB
