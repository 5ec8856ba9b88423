"""Nodes that make latents and turn them into images and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hyvideo_core.errors import OptionError, ShapeError
from ..hyvideo_core.shapes import OFFICIAL_SIZES, SIZE_STEP, VideoShape
from . import host
from .host import io
from .native_vae import decode_natively, encode_natively
from .vae import CARRIED, MODES, TILED, VideoVae, check_samples, crop_images, user_tiling, widget_tiling

logger = logging.getLogger(__name__)

CATEGORY = "HunyuanVideo/latents"
ASPECTS = list(OFFICIAL_SIZES["720p"])
MAX_SIDE = 16384


def tiling_inputs(verb: str) -> list[Any]:
    """The four tiling widgets."""
    return [
        io.Int.Input(
            "tile_size",
            default=256,
            min=0,
            max=MAX_SIDE,
            step=8,
            tooltip=f"Side of the tiles that are {verb}, in pixels. Smaller takes less memory. 0: whole frames.",
        ),
        io.Int.Input(
            "overlap",
            default=64,
            min=0,
            max=MAX_SIDE,
            step=8,
            tooltip="Pixels that neighbouring tiles share and blend over. More hides seams better and takes longer.",
        ),
        io.Int.Input(
            "temporal_size",
            default=64,
            min=0,
            max=MAX_SIDE,
            step=4,
            tooltip=f"Frames that are {verb} at once. Smaller takes less memory. 0: all frames.",
        ),
        io.Int.Input(
            "temporal_overlap",
            default=16,
            min=0,
            max=MAX_SIDE,
            step=4,
            tooltip="Frames that successive runs share and blend over.",
        ),
    ]


class _TiledNode(io.ComfyNode):
    """A node with the four tiling widgets."""

    @classmethod
    def validate_inputs(
        cls,
        tile_size: int | None = None,
        overlap: int | None = None,
        temporal_size: int | None = None,
        temporal_overlap: int | None = None,
        mode: str | None = None,
    ) -> bool | str:
        """Refuses tiles before anything runs; what is linked is None, and checked when it is known."""
        try:
            widget_tiling(tile_size or 0, overlap or 0, temporal_size or 0, temporal_overlap or 0, mode or TILED)
        except OptionError as error:
            return str(error)
        return True


class HYVEmptyLatent(io.ComfyNode):
    """A size to LATENT, the native socket."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVEmptyLatent",
            display_name="HunyuanVideo Empty Latent",
            category=CATEGORY,
            description="Empty latents for a video of this size. Sides are multiples of 16, the length is 4k+1.",
            search_aliases=["hunyuan", "hyvideo", "empty latent video", "size", "length"],
            inputs=[
                io.Int.Input("width", default=960, min=16, max=MAX_SIDE, step=16, tooltip="Pixels, a multiple of 16."),
                io.Int.Input("height", default=544, min=16, max=MAX_SIDE, step=16, tooltip="Pixels, a multiple of 16."),
                io.Int.Input(
                    "length",
                    default=129,
                    min=1,
                    max=MAX_SIDE + 1,
                    step=4,
                    tooltip="Frames: 1, 5, 9, ... 129. The model makes 24 frames per second.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Videos made one after the other."),
            ],
            outputs=[io.Latent.Output("latent", tooltip="Zeros; the sampler uses their size.")],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, length: int | None = None
    ) -> bool | str:
        """Refuses a size before anything runs; what is linked is None, and checked when it is known."""
        width, height = (SIZE_STEP if side is None else side for side in (width, height))
        length = 1 if length is None else length
        if max(width, height, length - 1) > MAX_SIDE:
            return f"{width} x {height}, {length} frames: expected at most {MAX_SIDE} of each; choose a smaller size"
        try:
            VideoShape(frames=length, height=height, width=width)
        except ShapeError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int) -> io.NodeOutput:
        """Checks the size and makes zeros."""
        shape = VideoShape(frames=length, height=height, width=width).to_latent()
        samples = torch.zeros(shape.as_tuple(batch_size), device=host.device_for("intermediate"))
        return io.NodeOutput({"samples": samples})


class HYVResolution(io.ComfyNode):
    """The official size table."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVResolution",
            display_name="HunyuanVideo Resolution",
            category=CATEGORY,
            description="Width and height for which the model was trained.",
            search_aliases=["hunyuan", "hyvideo", "aspect ratio", "720p", "540p"],
            inputs=[
                io.Combo.Input(
                    "resolution",
                    options=list(OFFICIAL_SIZES),
                    default="540p",
                    tooltip="540p is about three times faster.",
                ),
                io.Combo.Input("aspect", options=ASPECTS, default="16:9", tooltip="Width to height."),
            ],
            outputs=[
                io.Int.Output("width", tooltip="Pixels."),
                io.Int.Output("height", tooltip="Pixels."),
            ],
        )

    @classmethod
    def execute(cls, resolution: str, aspect: str) -> io.NodeOutput:
        """Looks the size up."""
        return io.NodeOutput(*OFFICIAL_SIZES[resolution][aspect])


class HYVVAEDecode(_TiledNode):
    """LATENT to IMAGE, tiled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVVAEDecode",
            display_name="HunyuanVideo VAE Decode",
            category=CATEGORY,
            description="Decodes latents tile by tile, so that memory does not grow with the video. The defaults are "
            "the reference's tiles. Also takes ComfyUI's own HunyuanVideo VAE.",
            search_aliases=["hunyuan", "hyvideo", "vae decode tiled"],
            inputs=[
                io.Latent.Input("samples", tooltip="Latents of a HunyuanVideo model."),
                io.Vae.Input("vae", tooltip="A HunyuanVideo VAE, from our loader or ComfyUI's."),
                *tiling_inputs("decoded"),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=TILED,
                    optional=True,
                    tooltip="tiled: runs of frames overlap and blend, as in the reference. carried: each run goes on "
                    "where the one before stopped. Faster, no seams in time, slightly other numbers; tile_size 0 "
                    "decodes whole frames.",
                ),
                io.Boolean.Input(
                    "fit_memory",
                    default=True,
                    optional=True,
                    tooltip="Where these tiles do not fit into free GPU memory, take smaller ones, first of 32 frames. "
                    "That changes the numbers a little, and the log says so. Off: always these tiles.",
                ),
                io.Boolean.Input(
                    "channels_last",
                    default=False,
                    optional=True,
                    tooltip="Another memory layout for convolutions. Faster on some cards; rounds differently.",
                ),
            ],
            outputs=[io.Image.Output("images", tooltip="All frames; several videos follow each other.")],
        )

    @classmethod
    def execute(
        cls,
        samples: Mapping[str, Any],
        vae: Any,
        tile_size: int,
        overlap: int,
        temporal_size: int,
        temporal_overlap: int,
        mode: str = TILED,
        fit_memory: bool = True,
        channels_last: bool = False,
    ) -> io.NodeOutput:
        """Decodes with our VAE, or lets a native one decode."""
        latents: Tensor = samples["samples"]
        if not isinstance(vae, VideoVae):
            if mode == CARRIED or channels_last:
                logger.warning("mode and channels_last have no effect on a VAE of ComfyUI, which decodes its own way")
            images = decode_natively(vae, latents, tile_size, overlap, temporal_size, temporal_overlap)
            return io.NodeOutput(images.flatten(0, 1) if images.ndim == 5 else images)
        check_samples(latents, vae.config)
        tiling = user_tiling(vae.config, tile_size, overlap, temporal_size, temporal_overlap, mode)
        images = vae.decode_with(latents, tiling, fit_memory=fit_memory, channels_last=channels_last)
        return io.NodeOutput(images.flatten(0, 1))


class HYVVAEEncode(_TiledNode):
    """IMAGE to LATENT, tiled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVVAEEncode",
            display_name="HunyuanVideo VAE Encode",
            category=CATEGORY,
            description="Encodes frames as one video. Sides are cut to multiples of 16 and the length to 4k+1 frames.",
            search_aliases=["hunyuan", "hyvideo", "vae encode tiled", "video to video"],
            inputs=[
                io.Image.Input("pixels", tooltip="Frames of one video."),
                io.Vae.Input("vae", tooltip="From HunyuanVideo Load VAE."),
                *tiling_inputs("encoded"),
            ],
            outputs=[io.Latent.Output("latent", tooltip="Latents; sample them with denoise below 1.")],
        )

    @classmethod
    def execute(
        cls,
        pixels: Tensor,
        vae: Any,
        tile_size: int,
        overlap: int,
        temporal_size: int,
        temporal_overlap: int,
    ) -> io.NodeOutput:
        """Encodes with our VAE, or lets a native one encode."""
        cropped = crop_images(pixels)
        if not isinstance(vae, VideoVae):
            return io.NodeOutput({"samples": encode_natively(vae, cropped)})
        tiling = user_tiling(vae.config, tile_size, overlap, temporal_size, temporal_overlap)
        return io.NodeOutput({"samples": vae.encode_with(cropped, tiling)})
