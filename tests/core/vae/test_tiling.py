"""Laws of tiled coding, on coders whose every output cell is known."""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.errors import OptionError, ShapeError
from hyvideo_nodes.hyvideo_core.vae import Tiling, VideoAutoencoder, decode_images, decode_tiled, encode_tiled
from hyvideo_nodes.hyvideo_core.vae.tiling import fade_in, plan_tiles, plan_windows
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

CONFIG = VaeConfig(block_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=3, norm_groups=2)
OFF = Tiling(tile_size=None, temporal_size=None)


class LocalVae:
    """Sizes of the real autoencoder, but each cell is coded on its own: tiles cannot differ from the whole."""

    def __init__(self, config: VaeConfig = CONFIG) -> None:
        self.config = config
        self.tiles: list[weakref.ref[Tensor]] = []
        self.most_alive = 0

    def _made(self, tile: Tensor) -> Tensor:
        self.tiles.append(weakref.ref(tile))
        self.most_alive = max(self.most_alive, sum(tile() is not None for tile in self.tiles))
        return tile

    def decode(self, latents: Tensor) -> Tensor:
        ft, fs = self.config.time_factor, self.config.spatial_factor
        frames = latents.repeat_interleave(ft, dim=2)[:, :, ft - 1 :]
        return self._made(frames.repeat_interleave(fs, dim=3).repeat_interleave(fs, dim=4))

    def encode(self, video: Tensor) -> Tensor:
        ft, fs = self.config.time_factor, self.config.spatial_factor
        cells = video[:, :, ::ft, ::fs, ::fs]
        return self._made(torch.cat([cells, -cells], dim=1))


class NoisyVae(LocalVae):
    """Every tile gets an offset of its own, so that the result shows how tiles were blended."""

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) + float(latents.flatten()[0] * 10) % 1


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {StorageWeakRef(arg.untyped_storage()) for arg in args if isinstance(arg, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and (storage := StorageWeakRef(out.untyped_storage())) not in given:
            self.held[storage] = out.untyped_storage().nbytes()
        self.held = {storage: size for storage, size in self.held.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.held.values()))
        return out


def coder(config: VaeConfig = CONFIG) -> Any:
    return LocalVae(config)


tilings = st.builds(
    lambda size, overlap, run, run_overlap, keep: Tiling(
        tile_size=8 * size,
        overlap=8 * min(overlap, size - 1),
        temporal_size=4 * run,
        temporal_overlap=4 * min(run_overlap, run - 1),
        keep_redundant=keep,
    ),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(1, 5),
    st.integers(0, 4),
    st.booleans(),
)
latent_sizes = st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 11))


@given(size=st.integers(1, 60), tile=st.integers(1, 20), overlap=st.integers(0, 19), lead=st.integers(0, 1))
@pytest.mark.parametrize("keep_redundant", [False, True])
def test_windows_cover_an_axis_without_gaps(
    size: int, tile: int, overlap: int, lead: int, keep_redundant: bool
) -> None:
    windows = plan_windows(size, tile, min(overlap, tile - 1), lead=lead, keep_redundant=keep_redundant)
    assert windows[0].start == windows[0].first == 0
    assert windows[-1].keep_stop == windows[-1].stop == size
    for window in windows:
        assert window.start <= window.first < window.keep_stop <= window.stop <= window.start + tile + lead
    for before, after in pairwise(windows):
        assert after.first == before.keep_stop
        assert after.blend_stop == before.stop
        assert after.start == after.first - lead
    if not keep_redundant:
        assert all(window.stop < size for window in windows[:-1])


def test_official_tiling_has_the_reference_strides() -> None:
    tiling = Tiling.official(VaeConfig())
    assert (tiling.tile_size, tiling.overlap, tiling.temporal_size, tiling.temporal_overlap) == (256, 64, 64, 16)
    plan = plan_tiles((33, 90, 160), VaeConfig(), tiling)
    assert [window.start for window in plan.frames] == [0, 12, 24]
    assert [(window.start, window.stop) for window in plan.rows] == [(0, 32), (24, 56), (48, 80), (72, 90)]
    assert plan.num_tiles == 84


def test_official_tiling_tiles_both_sides_once_one_is_too_large() -> None:
    official = Tiling.official(VaeConfig())
    assert plan_tiles((16, 32, 32), VaeConfig(), official).num_tiles == 1
    assert len(plan_tiles((1, 30, 33), VaeConfig(), official).rows) == 2
    assert len(plan_tiles((17, 32, 32), VaeConfig(), official).frames) == 2


def test_redundant_tiles_are_left_out_by_default() -> None:
    assert plan_tiles((29, 56, 160), VaeConfig(), Tiling.official(VaeConfig())).num_tiles == 3 * 3 * 7
    assert plan_tiles((29, 56, 160), VaeConfig(), Tiling()).num_tiles == 2 * 2 * 7
    assert plan_tiles((17, 30, 33), VaeConfig(), Tiling()).num_tiles == 2


@pytest.mark.parametrize(("size", "frames"), [(48, 12), (40, 20), (72, 28), (24, 8)])
def test_official_tiling_of_any_tile_size_gives_the_right_size(size: int, frames: int) -> None:
    config = VaeConfig(sample_size=size, sample_frames=frames)
    latents = torch.randn(1, 3, 9, 11, 10)
    whole = coder().decode(latents)
    assert torch.equal(decode_tiled(coder(), latents, Tiling.official(config)), whole)


@settings(max_examples=40, deadline=None)
@given(tiling=tilings, size=latent_sizes)
def test_any_tiles_of_a_local_coder_give_the_whole(tiling: Tiling, size: tuple[int, int, int]) -> None:
    latents = torch.randn(1, 3, *size)
    video = coder().decode(latents)
    assert torch.equal(decode_tiled(coder(), latents, tiling), video)
    assert torch.equal(encode_tiled(coder(), video, tiling), coder().encode(video))


@settings(max_examples=25, deadline=None)
@given(tiling=tilings, size=latent_sizes)
def test_blending_equals_in_place_blending_of_a_full_list_of_tiles(tiling: Tiling, size: tuple[int, int, int]) -> None:
    latents = torch.rand(1, 3, *size)
    plan = plan_tiles(size, CONFIG, tiling)
    runs: list[Tensor] = []
    for t in plan.frames:
        grid: list[list[Tensor]] = []
        for i, row in enumerate(plan.rows):
            grid.append([])
            for j, column in enumerate(plan.columns):
                part = latents[:, :, t.start : t.stop, row.start : row.stop, column.start : column.stop]
                tile = NoisyVae().decode(part)[:, :, t.first - t.start :]
                if i:
                    blend(grid[i - 1][j], tile, 3, tiling.overlap)
                if j:
                    blend(grid[i][j - 1], tile, 4, tiling.overlap)
                grid[i].append(tile)
        kept = [
            torch.cat(
                [tile[..., : 8 * (c.keep_stop - c.first)] for tile, c in zip(tiles, plan.columns, strict=True)], 4
            )
            for tiles in grid
        ]
        rows = [part[..., : 8 * (r.keep_stop - r.first), :] for part, r in zip(kept, plan.rows, strict=True)]
        runs.append(torch.cat(rows, 3))
        if len(runs) > 1:
            blend(runs[-2], runs[-1], 2, tiling.temporal_overlap)
    num_kept = [4 * (t.keep_stop - t.first) - (3 if t.first == 0 else 0) for t in plan.frames]
    expected = torch.cat([run[:, :, :kept] for run, kept in zip(runs, num_kept, strict=True)], 2)
    noisy: Any = NoisyVae()
    assert torch.allclose(decode_tiled(noisy, latents, tiling), expected, atol=1e-5)


def blend(before: Tensor, tile: Tensor, axis: int, extent: int) -> None:
    """Cell by cell, into the tile: the rule as the reference states it."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    for x in range(extent):
        mixed = before.select(axis, before.shape[axis] - extent + x) * (1 - x / extent)
        tile.select(axis, x).copy_(mixed + tile.select(axis, x) * (x / extent))


def test_tiles_larger_than_the_video_are_the_untiled_model_bit_for_bit() -> None:
    vae = VideoAutoencoder(CONFIG).eval()
    latents, video = torch.randn(1, 3, 3, 2, 4), torch.rand(1, 3, 9, 16, 32) * 2 - 1
    with torch.no_grad():
        decoded, moments = vae.decode(latents), vae.encode(video)
    for tiling in (
        OFF,
        Tiling(),
        Tiling.official(CONFIG),
        Tiling(tile_size=32, temporal_size=12, overlap=24, temporal_overlap=8),
    ):
        assert torch.equal(decode_tiled(vae, latents, tiling), decoded)
        assert torch.equal(encode_tiled(vae, video, tiling), moments)


def test_a_constant_shows_no_seam() -> None:
    for value in (0.1, 1 / 3, -0.7):
        latents = torch.full((1, 3, 9, 10, 7), value)
        tiled = decode_tiled(coder(), latents, Tiling(tile_size=40, overlap=24, temporal_size=12, temporal_overlap=8))
        assert torch.equal(tiled, torch.full_like(tiled, value))


def test_fading_starts_with_the_tile_before() -> None:
    tile = torch.zeros(1, 1, 6)
    fade_in(tile, torch.ones(1, 1, 4), 2)
    assert torch.equal(tile[0, 0], torch.tensor([1, 0.75, 0.5, 0.25, 0, 0]))


def test_only_one_tile_is_alive_and_memory_does_not_grow_with_the_number_of_tiles() -> None:
    def peak(latents: Tensor) -> tuple[int, int]:
        vae: Any = LocalVae()
        out = torch.empty_like(vae.decode(latents))
        vae.tiles.clear()
        vae.most_alive = 0
        tiling = Tiling(tile_size=32, overlap=8, temporal_size=8, temporal_overlap=4)
        with PeakBytes() as bytes_held:
            decode_tiled(vae, latents, tiling, out=out)
        assert vae.most_alive == 1
        return len(vae.tiles), bytes_held.peak

    (few, low), (many, high) = peak(torch.randn(1, 3, 5, 8, 12)), peak(torch.randn(2, 3, 17, 32, 12))
    assert many > 20 * few
    assert 0 < high <= low


def test_every_tile_is_reported_and_the_report_can_stop_the_work() -> None:
    latents = torch.randn(2, 3, 1, 5, 9)
    tiling, seen = Tiling(tile_size=32, overlap=8), []
    decode_tiled(coder(), latents, tiling, on_tile=lambda done, total: seen.append((done, total)))
    total = 2 * plan_tiles((1, 5, 9), CONFIG, tiling).num_tiles
    assert seen == [(done, total) for done in range(1, total + 1)]

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    vae = coder()
    with pytest.raises(KeyboardInterrupt):
        decode_tiled(vae, latents, tiling, on_tile=stop)
    assert len(vae.tiles) == 2


def test_output_may_be_any_strided_view() -> None:
    latents = torch.randn(2, 3, 5, 5, 6)
    tiling = Tiling(tile_size=24, overlap=8, temporal_size=8, temporal_overlap=4)
    buffer = torch.full((2, 17, 40, 48, 4), float("nan"))
    out = buffer[..., :3].permute(0, 4, 1, 2, 3)
    result = decode_tiled(coder(), latents, tiling, out=out)
    assert result is out
    assert torch.equal(buffer[..., :3].permute(0, 4, 1, 2, 3), coder().decode(latents))
    assert buffer[..., 3].isnan().all()


def test_images_are_channels_last_in_0_to_1() -> None:
    latents = torch.randn(2, 3, 2, 3, 4)
    images = decode_images(coder(), latents, Tiling(tile_size=16, overlap=8))
    expected = (coder().decode(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).flatten(0, 1)
    assert images.shape == (10, 24, 32, 3)
    assert images.is_contiguous()
    assert torch.allclose(images, expected)


def test_half_precision_is_blended_and_given_back_in_float32() -> None:
    vae = VideoAutoencoder(CONFIG).bfloat16()
    tiling = Tiling(tile_size=16, overlap=8)
    assert decode_tiled(vae, torch.randn(1, 3, 1, 2, 3), tiling).dtype == torch.float32
    assert encode_tiled(vae, torch.randn(1, 3, 1, 8, 24), tiling).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile_size": 0}, "tile_size 0: expected at least 1"),
        ({"tile_size": 64, "overlap": 64}, "overlap 64: expected 0 or more and less than tile_size 64"),
        ({"overlap": -8}, "overlap -8"),
        ({"temporal_size": 16, "temporal_overlap": 20}, "temporal_overlap 20.*temporal_size 16"),
    ],
)
def test_impossible_tilings_are_refused_by_name(options: dict[str, int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Tiling(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile_size": 100}, "tile_size 100 pixels: this model needs multiples of 8; use 96 or 104"),
        ({"temporal_size": 18}, "temporal_size 18 frames: this model needs multiples of 4; use 16 or 20"),
    ],
)
def test_tiles_that_split_a_latent_are_refused_with_the_nearest_sizes(options: dict[str, int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        decode_tiled(coder(), torch.zeros(1, 3, 2, 2, 2), Tiling(**options))


def test_wrong_inputs_and_outputs_are_refused() -> None:
    with pytest.raises(ShapeError, match="latents of shape"):
        decode_tiled(coder(), torch.zeros(1, 16, 2, 2, 2), OFF)
    with pytest.raises(ShapeError, match="4 frames"):
        encode_tiled(coder(), torch.zeros(1, 3, 4, 16, 16), OFF)
    for out in (torch.zeros(1, 3, 5, 16, 8), torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8)):
        with pytest.raises(ShapeError, match=r"out is .*expected floats \[1, 3, 5, 16, 16\]"):
            decode_tiled(coder(), torch.zeros(1, 3, 2, 2, 2), OFF, out=out)
