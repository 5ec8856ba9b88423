"""The VAE socket: an object with the methods that native VAE nodes use, over our autoencoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..hyvideo_core.config import VaeConfig
from ..hyvideo_core.errors import NonFiniteError, OptionError, ShapeError, WrongModelError
from ..hyvideo_core.shapes import SIZE_STEP, TIME_FACTOR
from ..hyvideo_core.vae.autoencoder import Gaussian, VideoAutoencoder
from ..hyvideo_core.vae.fitting import SLACK, fit_tiling, tile_bytes
from ..hyvideo_core.vae.layers import use_channels_last
from ..hyvideo_core.vae.tiling import Tiling, decode_images, encode_tiled, plan_tiles
from . import host
from .recipes import SharedWeights

logger = logging.getLogger(__name__)

TILED, CARRIED = "tiled", "carried"
MODES = (TILED, CARRIED)


class VideoVae:
    """A HunyuanVideo VAE as the host's nodes and ours see it. Weights load at first use.

    `patcher`, `first_stage_model` and `device` can be set on a copy, as nodes that choose a device do.
    """

    latent_channels: int
    latent_dim = 3

    def __init__(self, config: VaeConfig, weights: SharedWeights[VideoAutoencoder]) -> None:
        self.config = config
        self.latent_channels = config.latent_channels
        self.output_device = host.device_for("intermediate")
        self.downscale_ratio = (lambda frames: (frames + 3) // 4, config.spatial_factor, config.spatial_factor)
        self.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), config.spatial_factor, config.spatial_factor)
        self._weights = weights
        self._patcher: host.Patcher | None = None
        self._device: torch.device | None = None

    @property
    def patcher(self) -> host.Patcher:
        """The host's handle on the weights; loads them."""
        return self._patcher or self._weights.load()

    @patcher.setter
    def patcher(self, patcher: host.Patcher) -> None:
        self._patcher = patcher

    @property
    def first_stage_model(self) -> VideoAutoencoder:
        """The autoencoder itself; loads it."""
        return self.patcher.model

    @first_stage_model.setter
    def first_stage_model(self, model: VideoAutoencoder) -> None:
        if model is not self.patcher.model:
            raise WrongModelError("a HunyuanVideo VAE keeps the module of its patcher; set `patcher` to change it")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device or self.patcher.load_device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device

    @property
    def vae_dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.first_stage_model.dtype

    def throw_exception_if_invalid(self) -> None:
        """Nothing to do: a file that is no VAE was refused by the loader."""

    def get_sd(self) -> Mapping[str, Tensor]:
        """The weights under their official names."""
        return self.first_stage_model.state_dict()

    def spacial_compression_decode(self) -> int:
        """Pixels per latent, each way."""
        return self.config.spatial_factor

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self) -> int:
        """Frames per latent."""
        return self.config.time_factor

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        """Raw latents [B, C, T, h, w] to images [B, F, H, W, 3] in 0..1, tiled as the reference does where it fits."""
        return self.decode_with(samples, Tiling.official(self.config), fit_memory=True)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """The same with tiles in latents, as the host's tiled decode asks for."""
        tiling = native_tiling(
            self.config,
            self.config.spatial_factor,
            self.config.time_factor,
            (tile_x, tile_y),
            overlap,
            tile_t,
            overlap_t,
        )
        return self.decode_with(samples, tiling)

    def encode(self, pixels: Tensor) -> Tensor:
        """Images [N, H, W, 3 or 4] in 0..1 as one video to raw latents [1, C, T, h, w], tiled as the reference does."""
        return self.encode_with(pixels, Tiling.official(self.config))

    def encode_tiled(
        self,
        pixels: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """The same with tiles in pixels and frames, as the host's tiled encode asks for."""
        return self.encode_with(pixels, native_tiling(self.config, 1, 1, (tile_x, tile_y), overlap, tile_t, overlap_t))

    def decode_with(
        self, samples: Tensor, tiling: Tiling, *, fit_memory: bool = False, channels_last: bool = False
    ) -> Tensor:
        """Raw latents to images [B, F, H, W, 3] with any tiling; shows progress, can be interrupted.

        Args:
            fit_memory: take smaller tiles where these do not fit into free memory, and say so.
            channels_last: how convolutions lay out their data; see `use_channels_last`.
        Raises:
            ShapeError: latents of another model.
            NonFiniteError: NaN in the latents.
        """
        samples = samples[:, :, None] if samples.ndim == 4 else samples
        check_samples(samples, self.config)
        size = (samples.shape[2], samples.shape[3], samples.shape[4])
        itemsize = self.patcher.model.dtype.itemsize
        model = self._place(tile_bytes(self.config, size, itemsize, tiling))
        if fit_memory:
            tiling = self._fit(size, itemsize, tiling)
        use_channels_last(model, channels_last)
        on_tile = _tile_progress(len(samples) * plan_tiles(size, self.config, tiling).num_steps)
        images = decode_images(model, samples, tiling, device=self.output_device, on_tile=on_tile)
        return images.unflatten(0, (len(samples), -1))

    def encode_with(self, pixels: Tensor, tiling: Tiling) -> Tensor:
        """Images to raw latents with any tiling; cuts alpha, odd borders and frames beyond 4k+1, as the host does.

        Raises:
            ShapeError: no picture to encode.
        """
        cropped = crop_images(pixels, self.config.spatial_factor, self.config.time_factor)
        video = cropped.movedim(-1, 0)[None].float() * 2 - 1
        frames, side = self.config.time_factor, self.config.spatial_factor
        size = ((video.shape[2] - 1) // frames + 1, video.shape[3] // side, video.shape[4] // side)
        model = self._place(tile_bytes(self.config, size, self.vae_dtype.itemsize, tiling, encoding=True))
        on_tile = _tile_progress(plan_tiles(size, self.config, tiling).num_steps)
        moments = encode_tiled(model, video, tiling, on_tile=on_tile)
        return Gaussian.from_moments(moments).mode.float().to(self.output_device)

    def _place(self, num_bytes: int) -> VideoAutoencoder:
        patcher = self.patcher
        host.place(patcher, num_bytes + SLACK)
        return patcher.model

    def _fit(self, size: tuple[int, int, int], itemsize: int, wanted: Tiling) -> Tiling:
        free = host.free_bytes(self.device)
        tiling = fit_tiling(self.config, size, itemsize, free, wanted)
        if tiling != wanted:
            text = (
                f"decoded with tiles of {describe(tiling)}, as {describe(wanted)} would take "
                f"{tile_bytes(self.config, size, itemsize, wanted) / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are "
                "free; this changes the numbers a little"
            )
            logger.warning("HunyuanVideo VAE: %s (fit_memory)", text)
            host.show_text(text)
        return tiling


def describe(tiling: Tiling) -> str:
    """The size of tiles in words."""
    side = "whole frames" if tiling.tile_size is None else f"{tiling.tile_size} pixels"
    return f"{side} x {'all' if tiling.temporal_size is None else tiling.temporal_size} frames"


def check_samples(samples: Tensor, config: VaeConfig) -> None:
    """Refuses latents that cannot be decoded, before any weight is loaded.

    Raises:
        ShapeError: latents of another model.
        NonFiniteError: NaN in the latents.
    """
    if samples.ndim != 5 or samples.shape[1] != config.latent_channels or min(samples.shape) < 1:
        raise ShapeError(
            f"latents of shape {list(samples.shape)}, expected [batch, {config.latent_channels}, frames, height/8, "
            "width/8]; use latents of HunyuanVideo"
        )
    if not bool(torch.isfinite(samples).all()):
        raise NonFiniteError(
            "the latents hold NaN or infinity, expected finite numbers; sample again (precision bf16 instead of fp16, "
            "another attention backend) instead of decoding them"
        )


def crop_images(pixels: Tensor, side: int = SIZE_STEP, frames: int = TIME_FACTOR) -> Tensor:
    """The middle of images [N, H, W, C] whose sides are multiples of `side`, the first 4k+1 of them, without alpha.

    Raises:
        ShapeError: nothing would be left.
    """
    if pixels.ndim != 4 or pixels.shape[0] < 1 or pixels.shape[3] < 3:
        raise ShapeError(
            f"images of shape {list(pixels.shape)}, expected [frames, height, width, 3]; "
            "connect the frames of one video"
        )
    if min(pixels.shape[1:3]) < side:
        raise ShapeError(
            f"images of {pixels.shape[2]} x {pixels.shape[1]} pixels, expected at least {side} x {side}; "
            "enlarge them first"
        )
    count = (pixels.shape[0] - 1) // frames * frames + 1
    height, width = pixels.shape[1] // side * side, pixels.shape[2] // side * side
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:count, top : top + height, left : left + width, :3]


def widget_tiling(tile_size: int, overlap: int, temporal_size: int, temporal_overlap: int, mode: str = TILED) -> Tiling:
    """Tiling as the widgets say, 0 meaning whole.

    Raises:
        OptionError: an unknown mode, or sizes that contradict each other.
    """
    if mode not in MODES:
        raise OptionError(f"mode {mode!r}: expected {' or '.join(MODES)}; choose one of them")
    return Tiling(
        tile_size=tile_size or None,
        overlap=overlap if tile_size else 0,
        temporal_size=temporal_size or None,
        temporal_overlap=temporal_overlap if temporal_size and mode == TILED else 0,
        carried=mode == CARRIED,
    )


def user_tiling(
    config: VaeConfig,
    tile_size: int,
    overlap: int,
    temporal_size: int,
    temporal_overlap: int,
    mode: str = TILED,
) -> Tiling:
    """Tiling as the widgets say; the reference's own values give exactly the reference's tiles."""
    tiling = widget_tiling(tile_size, overlap, temporal_size, temporal_overlap, mode)
    official = Tiling.official(config)
    return official if replace(tiling, keep_redundant=True) == official else tiling


def native_tiling(
    config: VaeConfig,
    side_unit: int,
    frame_unit: int,
    tile: tuple[int | None, int | None],
    overlap: int | None,
    tile_t: int | None,
    overlap_t: int | None,
) -> Tiling:
    """Tiling as the host's nodes ask for it, in units of so many pixels and frames; None means the reference's."""
    official = Tiling.official(config)
    side, frames = config.spatial_factor, config.time_factor
    sizes = [size * side_unit for size in tile if size]
    tile_size = _floor(min(sizes), side) if sizes else official.tile_size
    temporal = official.temporal_size if tile_t is None else _floor(tile_t * frame_unit, frames)
    shared = official.overlap if overlap is None else overlap * side_unit // side * side
    shared_t = official.temporal_overlap if overlap_t is None else overlap_t * frame_unit // frames * frames
    return Tiling(
        tile_size=tile_size,
        overlap=min(shared, (tile_size or side) - side),
        temporal_size=temporal,
        temporal_overlap=min(shared_t, (temporal or frames) - frames),
    )


def _floor(size: int, factor: int) -> int:
    return max(factor, size // factor * factor)


def _tile_progress(num_steps: int) -> Any:
    """A callback that moves the node's bar and lets the user stop between tiles, or chunks of carried ones."""
    bar = host.progress(num_steps)

    def on_tile(done: int, total: int) -> None:  # noqa: ARG001 (known from the plan)
        host.check_interrupt()
        bar.update(done)

    return on_tile
