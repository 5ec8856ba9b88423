"""Coding a video in overlapping tiles: a pure plan first, then the walk over it.

All planning is in latent cells, where tiles, overlaps and strides are whole numbers; pixels and frames follow from
them, so every tile and overlap gives the right size. Tiles are walked one sample, one run of frames, one row, one
column at a time, and each is written into its place at once.

A tile fades in over whatever its predecessor also covers. Vertically and horizontally the predecessor is the whole
tile above or to the left, faded in itself before, of which only the last strip is kept; in time it is the output.

Source: Kong et al. 2024, "HunyuanVideo", sec. 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..config import VaeConfig
from ..errors import OptionError, ShapeError
from .autoencoder import VideoAutoencoder, check_latents, check_video
from .carried import decode_carried

TileCallback = Callable[[int, int], None]
"""Called with (steps done, all steps) after each tile, or chunk of a carried one; may raise in order to stop."""

FRAMES, HEIGHT, WIDTH = 2, 3, 4  # axes
_ALL = (slice(None), slice(None))  # every sample, every channel


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How large tiles are and how far neighbours share pixels.

    A later run of frames reads one latent more than `temporal_size`, in front, and drops what that makes: it stands in
    for the first frame, which the model codes alone.

    Args:
        tile_size: side of a tile in pixels; None takes whole frames.
        overlap: pixels shared by neighbours.
        temporal_size: frames per run; None takes all frames.
        temporal_overlap: frames shared by successive runs.
        carried: decode runs as one clip: each goes on where the one before stopped, and none overlap, so that
            `temporal_overlap` has no effect (see `carried`). Decoding only.
        keep_redundant: also code trailing tiles whose cells the tile before them covers, as the reference does;
            they change the picture near the far border and take time.
    Raises:
        OptionError: a size below 1, or an overlap outside 0..size - 1.
    """

    tile_size: int | None = 256
    overlap: int = 64
    temporal_size: int | None = 64
    temporal_overlap: int = 16
    keep_redundant: bool = False
    carried: bool = False

    def __post_init__(self) -> None:
        pairs = {"tile_size": "overlap", "temporal_size": "temporal_overlap"}
        for size_name, overlap_name in pairs.items():
            size, overlap = getattr(self, size_name), getattr(self, overlap_name)
            if size is not None and size < 1:
                raise OptionError(f"{size_name} {size}: expected at least 1; enlarge it, or use None for no tiling")
            has_effect = size is not None and not (self.carried and size_name == "temporal_size")
            if overlap < 0 or (has_effect and overlap >= size):
                raise OptionError(f"{overlap_name} {overlap}: expected 0 or more and less than {size_name} {size}")

    @classmethod
    def official(
        cls, config: VaeConfig, *, spatial: bool = True, temporal: bool = True, overlap_factor: float = 0.25
    ) -> Tiling:
        """The tiles of the reference implementation, tile for tile.

        Args:
            config: its sample_size and sample_frames are the tile.
            spatial: tile frames that are larger than a tile.
            temporal: tile clips that are longer than a tile.
            overlap_factor: part of a tile that it shares with the next one.
        """
        tile, frames = config.sample_size // config.spatial_factor, config.sample_frames // config.time_factor
        return cls(
            tile_size=tile * config.spatial_factor if spatial else None,
            overlap=(tile - int(tile * (1 - overlap_factor))) * config.spatial_factor if spatial else 0,
            temporal_size=frames * config.time_factor if temporal else None,
            temporal_overlap=(frames - int(frames * (1 - overlap_factor))) * config.time_factor if temporal else 0,
            keep_redundant=True,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One tile along one axis, in latent cells from the start of the axis.

    The tile reads start..stop and makes first..stop. Up to blend_stop it fades in; from keep_stop on, the next
    window's result counts.
    """

    start: int
    first: int
    blend_stop: int
    keep_stop: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TilePlan:
    """The windows of every axis; tiles are their product, in this order.

    `chunk` is None, or the latent frames that a tile of carried runs decodes at once.
    """

    frames: tuple[Window, ...]
    rows: tuple[Window, ...]
    columns: tuple[Window, ...]
    chunk: int | None = None

    @property
    def num_tiles(self) -> int:
        """Tiles of one sample."""
        return len(self.frames) * len(self.rows) * len(self.columns)

    @property
    def num_steps(self) -> int:
        """How often one sample's progress is reported: after each tile, or after each chunk of one."""
        return self.num_tiles * (1 if self.chunk is None else -(-self.frames[-1].stop // self.chunk))


def plan_windows(size: int, tile: int, overlap: int, *, lead: int = 0, keep_redundant: bool = False) -> list[Window]:
    """Windows that cover one axis.

    Args:
        size: latent cells to cover.
        tile: cells that a window makes.
        overlap: cells shared by neighbours, less than tile.
        lead: cells that a later window reads and drops: 1 in time, 0 in space.
        keep_redundant: keep trailing windows whose cells the one before covers.
    """
    starts = list(range(0, max(1, size - lead), tile - overlap))
    if not keep_redundant:
        starts = [s for s in starts if s == 0 or s + overlap + lead < size]
    stops = [min(size, start + tile + lead) for start in starts]
    firsts = [start + lead if start else 0 for start in starts]
    return [
        Window(start=start, first=first, blend_stop=blend_stop, keep_stop=keep_stop, stop=stop)
        for start, first, blend_stop, keep_stop, stop in zip(
            starts, firsts, [0, *stops], [*firsts[1:], size], stops, strict=False
        )
    ]


def plan_tiles(latent_size: tuple[int, int, int], config: VaeConfig, tiling: Tiling) -> TilePlan:
    """The tiles in which (T, h, w) latents are coded; the same for decoding and encoding.

    Raises:
        OptionError: a tile or overlap that is no whole number of latents.
    """
    num_frames, height, width = latent_size
    size, overlap = _in_latents(tiling, config.spatial_factor, ("tile_size", "overlap"), "pixels")
    run, run_overlap = _in_latents(tiling, config.time_factor, ("temporal_size", "temporal_overlap"), "frames")
    keep = tiling.keep_redundant
    # the reference tiles both sides as soon as one of them is larger than a tile
    if size is None or max(height, width) <= size:
        size, overlap = max(height, width), 0
    chunk = min(run or num_frames, num_frames) if tiling.carried else None
    if run is None or num_frames <= run or tiling.carried:
        run, run_overlap = num_frames, 0
    return TilePlan(
        frames=tuple(plan_windows(num_frames, run, run_overlap, lead=1, keep_redundant=keep)),
        rows=tuple(plan_windows(height, size, overlap, keep_redundant=keep)),
        columns=tuple(plan_windows(width, size, overlap, keep_redundant=keep)),
        chunk=chunk,
    )


def _in_latents(tiling: Tiling, factor: int, names: tuple[str, str], unit: str) -> tuple[int | None, int]:
    size, overlap = (getattr(tiling, name) for name in names)
    if size is None:
        return None, 0
    for name, value in zip(names, (size, overlap), strict=True):
        if value % factor:
            low = value // factor * factor
            near = f"{low} or {low + factor}" if low else f"{factor}"
            raise OptionError(f"{name} {value} {unit}: this model needs multiples of {factor}; use {near}")
    return size // factor, overlap // factor


def decode_tiled(
    vae: VideoAutoencoder,
    latents: Tensor,
    tiling: Tiling,
    *,
    out: Tensor | None = None,
    on_tile: TileCallback | None = None,
) -> Tensor:
    """Video [B, 3, F, H, W], nominally in -1..1 and not clamped, decoded tile by tile without gradients.

    Beside the result, memory holds one tile and the strips of one row of tiles, however many tiles there are.

    Args:
        vae: on the device that decodes.
        latents: [B, C, T, h, w], raw, on any device.
        tiling: tiles larger than the video give exactly what `vae.decode` gives.
        out: where the video is written: any device, floating dtype and strides, for example a permuted view of a
            channels-last buffer. Fading in time passes through it, so float32 is best. Default: a new float32 tensor
            beside the latents.
        on_tile: progress and interruption.
    Raises:
        ShapeError: latents or out that do not fit the model.
        OptionError: tiles that do not.
    """
    check_latents(tuple(latents.shape), vae.config)
    plan = plan_tiles((latents.shape[2], latents.shape[3], latents.shape[4]), vae.config, tiling)
    target = _video_grid(vae.config)
    out = _place_for(latents, plan, target, vae.config.image_channels, out)
    if plan.chunk is not None:
        return _decode_carried(vae, latents, plan, out, _Steps(on_tile, len(latents) * plan.num_steps))
    return _code_tiles(_Coder(vae.decode, source=_LATENT_GRID, target=target), latents, plan, out, on_tile)


def encode_tiled(
    vae: VideoAutoencoder,
    video: Tensor,
    tiling: Tiling,
    *,
    out: Tensor | None = None,
    on_tile: TileCallback | None = None,
) -> Tensor:
    """Moments [B, 2C, T, h, w] of a video [B, 3, F, H, W] in -1..1; everything else as in `decode_tiled`.

    Fading happens between moments, not between latents.

    Raises:
        ShapeError: a video or out that does not fit the model.
        OptionError: tiles that do not, or carried runs.
    """
    check_video(tuple(video.shape), vae.config)
    if tiling.carried:
        raise OptionError("carried runs: expected overlapping ones for encoding; use them for decoding only")
    grid = _video_grid(vae.config)
    size = (
        (video.shape[2] - 1) // vae.config.time_factor + 1,
        video.shape[3] // vae.config.spatial_factor,
        video.shape[4] // vae.config.spatial_factor,
    )
    coder = _Coder(vae.encode, source=grid, target=_LATENT_GRID)
    plan = plan_tiles(size, vae.config, tiling)
    out = _place_for(video, plan, _LATENT_GRID, 2 * vae.config.latent_channels, out)
    return _code_tiles(coder, video, plan, out, on_tile)


def decode_images(
    vae: VideoAutoencoder,
    latents: Tensor,
    tiling: Tiling,
    *,
    device: torch.device | None = None,
    on_tile: TileCallback | None = None,
) -> Tensor:
    """Frames [B * F, H, W, 3], float32 in 0..1 on `device` (default: the latents'), decoded without a further copy.

    Raises:
        ShapeError, OptionError: as `decode_tiled`.
    """
    check_latents(tuple(latents.shape), vae.config)
    b, _, t, h, w = latents.shape
    grid = _video_grid(vae.config)
    images = torch.empty(
        (b, grid.frame_edge(t), h * grid.side, w * grid.side, vae.config.image_channels),
        dtype=torch.float32,
        device=latents.device if device is None else device,
    )
    decode_tiled(vae, latents, tiling, out=images.permute(0, 4, 1, 2, 3), on_tile=on_tile)
    return images.mul_(0.5).add_(0.5).clamp_(0, 1).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class _Grid:
    """How many cells of a tensor one latent cell stands for."""

    time: int
    side: int

    def frame_edge(self, position: int) -> int:
        """Frames before this latent frame; the first latent frame stands for a single frame."""
        return 1 + (position - 1) * self.time if position else 0

    def read(self, t: Window, row: Window, column: Window) -> tuple[slice, ...]:
        """The part of the input that a tile is coded from."""
        # a run that starts later has its first frame where the lead latent's last frame is
        frames = slice(self.frame_edge(t.start + 1) - 1, self.frame_edge(t.stop))
        return (*_ALL, frames, self._side(row.start, row.stop), self._side(column.start, column.stop))

    def write(self, t: Window, row: Window, column: Window) -> tuple[slice, ...]:
        """The part of the output that a tile is written to, all its frames included."""
        frames = slice(self.frame_edge(t.first), self.frame_edge(t.stop))
        return (*_ALL, frames, self._side(row.first, row.keep_stop), self._side(column.first, column.keep_stop))

    def _side(self, start: int, stop: int) -> slice:
        return slice(start * self.side, stop * self.side)


_LATENT_GRID = _Grid(1, 1)


def _video_grid(config: VaeConfig) -> _Grid:
    return _Grid(config.time_factor, config.spatial_factor)


@dataclass(frozen=True, slots=True)
class _Coder:
    """One direction of the autoencoder with the grids of what it reads and makes."""

    code: Callable[[Tensor], Tensor]
    source: _Grid
    target: _Grid

    def tile(self, source: Tensor, t: Window, row: Window, column: Window) -> Tensor:
        """A tile in float32, without what its lead frame made."""
        return self.code(source[self.source.read(t, row, column)])[:, :, t.first - t.start :].float()


def _place_for(source: Tensor, plan: TilePlan, grid: _Grid, channels: int, out: Tensor | None) -> Tensor:
    """Where the result is written: out if it fits, or a new tensor beside the source."""
    sides = (plan.rows[-1].stop * grid.side, plan.columns[-1].stop * grid.side)
    shape = (source.shape[0], channels, grid.frame_edge(plan.frames[-1].stop), *sides)
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=source.device)
    if tuple(out.shape) != shape or not out.is_floating_point():
        raise ShapeError(f"out is {out.dtype} {list(out.shape)}: expected floats {list(shape)}; allocate it like that")
    return out


def _code_tiles(
    coder: _Coder, source: Tensor, plan: TilePlan, out: Tensor, on_tile: TileCallback | None = None
) -> Tensor:
    total = source.shape[0] * plan.num_tiles
    with torch.no_grad():
        for done, _ in enumerate(_walk(coder, source, plan, out), start=1):
            if on_tile is not None:
                on_tile(done, total)
    return out


@dataclass(slots=True)
class _Steps:
    """Counts chunks over all tiles."""

    report: TileCallback | None
    total: int
    done: int = 0

    def __call__(self) -> None:
        self.done += 1
        if self.report is not None:
            self.report(self.done, self.total)


def _decode_carried(vae: VideoAutoencoder, latents: Tensor, plan: TilePlan, out: Tensor, on_chunk: _Steps) -> Tensor:
    """Tiles of all frames; they are put together on the output's device, where there is room for them."""
    assert plan.chunk is not None
    if plan.num_tiles == 1:
        for sample in range(len(latents)):
            own = slice(sample, sample + 1)
            decode_carried(vae, latents[own], plan.chunk, out[own], on_chunk)
        return out
    grid, chunk = _video_grid(vae.config), plan.chunk

    def code(tile: Tensor) -> Tensor:
        sides = (size * grid.side for size in tile.shape[3:])
        video = torch.empty(1, out.shape[1], out.shape[2], *sides, dtype=torch.float32, device=out.device)
        return decode_carried(vae, tile, chunk, video, on_chunk)

    return _code_tiles(_Coder(code, source=_LATENT_GRID, target=grid), latents, plan, out)


def _walk(coder: _Coder, source: Tensor, plan: TilePlan, out: Tensor) -> Iterator[None]:
    """Yields once for each tile that is in place."""
    for sample, t in product(range(source.shape[0]), plan.frames):
        inputs, outputs = source[sample : sample + 1], out[sample : sample + 1]
        above: dict[Window, Tensor] = {}
        for row in plan.rows:
            left: Tensor | None = None
            for column in plan.columns:
                tile = coder.tile(inputs, t, row, column)
                fade_in(tile, above.pop(column, None), HEIGHT)
                fade_in(tile, left, WIDTH)
                keep_height = (row.keep_stop - row.first) * coder.target.side
                keep_width = (column.keep_stop - column.first) * coder.target.side
                # copies, so that the tile itself can go
                above[column] = tile[..., keep_height:, :].clone()
                left = tile[..., keep_width:].clone()
                _place(tile[..., :keep_height, :keep_width], outputs[coder.target.write(t, row, column)], coder, t)
                del tile
                yield


def _place(tile: Tensor, region: Tensor, coder: _Coder, t: Window) -> None:
    """Write a tile over its region of the output, fading in from the frames that the run before left there."""
    num_shared = coder.target.frame_edge(t.blend_stop) - coder.target.frame_edge(t.first)
    if t.first:
        fade_in(tile, region[:, :, :num_shared].to(tile), FRAMES)
    region.copy_(tile)


def fade_in(tile: Tensor, before: Tensor | None, axis: int) -> None:
    """Replace the head of a tile, in place, by a linear passage from `before`, whose first cell stays as it is."""
    if before is None or not before.shape[axis]:
        return
    length = before.shape[axis]
    weight = torch.arange(length, dtype=tile.dtype, device=tile.device) / length
    head = tile.narrow(axis, 0, length)
    # lerp of two equal numbers is that number: a constant stays constant
    head.copy_(torch.lerp(before, head, weight.view(-1, *[1] * (tile.ndim - 1 - axis))))
