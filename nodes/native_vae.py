"""ComfyUI's own VAE objects in our nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..hyvideo_core.errors import WrongModelError
from ..hyvideo_core.loading.checkpoint import TensorInfo
from ..hyvideo_core.loading.recognise import recognise_tensors
from . import host

HUNYUAN_CHANNELS = 16


def check_native(vae: Any) -> None:
    """Refuses every VAE that is not a native HunyuanVideo one.

    Raises:
        WrongModelError: says what it is, as far as it can be told.
    """
    words = describe_native(vae)
    if words is not None:
        raise WrongModelError(
            f"this VAE is {words}, expected the HunyuanVideo VAE (16 channels); use HunyuanVideo Load VAE, "
            "or Load VAE with hunyuan_video_vae_bf16.safetensors"
        )


def describe_native(vae: Any) -> str | None:
    """What a foreign VAE is, or None for a native HunyuanVideo one."""
    if not host.is_host_vae(vae):
        return f"an unknown object ({type(vae).__name__})"
    if getattr(vae, "latent_dim", 2) != 3:
        return "an image VAE"
    weights: Mapping[str, Tensor] = vae.get_sd()
    kind = recognise_tensors({name: TensorInfo(tuple(weight.shape), weight.dtype) for name, weight in weights.items()})
    if kind.part != "vae":
        return kind.words
    channels = weights["decoder.conv_in.conv.weight"].shape[1]
    return None if channels == HUNYUAN_CHANNELS else f"a video VAE of {channels} channels"


def decode_natively(
    vae: Any, latents: Tensor, tile_size: int, overlap: int, temporal_size: int, temporal_overlap: int
) -> Tensor:
    """Images from a native HunyuanVideo VAE by its own tiled decode; sizes in pixels and frames, 0 meaning whole.

    Raises:
        WrongModelError: another VAE.
    """
    check_native(vae)
    side, frames = vae.spacial_compression_decode(), vae.temporal_compression_decode()
    if not tile_size and not temporal_size:
        return vae.decode(latents)
    # its tiles are in latents, and a size beyond the video means whole
    height, width = latents.shape[-2:]
    tile = max(2, tile_size // side) if tile_size else max(height, width)
    run = max(2, temporal_size // frames) if temporal_size else latents.shape[2]
    return vae.decode_tiled(
        latents,
        tile_x=tile,
        tile_y=tile,
        overlap=min(overlap // side, tile // 2),
        tile_t=run,
        overlap_t=max(1, min(temporal_overlap // frames, run // 2)),
    )


def encode_natively(vae: Any, pixels: Tensor) -> Tensor:
    """Latents from a native HunyuanVideo VAE by its own encode.

    Raises:
        WrongModelError: another VAE.
    """
    check_native(vae)
    return vae.encode(pixels[..., :3])
