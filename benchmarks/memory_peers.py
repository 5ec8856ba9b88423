"""The same parts of diffusers' models, measured the same way."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from hyvideo_nodes.benchmarks.memory_meter import Reading, measure
from hyvideo_nodes.benchmarks.memory_subjects import TILE_FRAMES, TILE_SIDE, empty
from hyvideo_nodes.benchmarks.sizes import Workload
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from torch import nn


def _block(kind: type[nn.Module], work: Workload) -> Reading:
    """A block with its own modulation, its mask of padded text and its rotary table, as the whole model calls it."""
    config = work.config
    with torch.device("meta"):
        block = kind(config.num_heads, config.head_size, mlp_ratio=config.mlp_ratio, qk_norm="rms_norm").bfloat16()
    inputs = (
        empty(1, work.image_tokens, config.hidden_size),
        empty(1, work.text_tokens, config.hidden_size),
        empty(1, config.hidden_size),
        empty(1, 1, 1, work.tokens, dtype=torch.bool),
        tuple(empty(work.image_tokens, config.head_size, dtype=torch.float32) for _ in range(2)),
    )
    return measure(lambda: block(*inputs), inputs=inputs, weights=[block])


def single_block(work: Workload) -> Reading:
    """A single-stream block."""
    return _block(HunyuanVideoSingleTransformerBlock, work)


def double_block(work: Workload) -> Reading:
    """A double-stream block."""
    return _block(HunyuanVideoTransformerBlock, work)


def vae_tile(side: int = TILE_SIDE, frames: int = TILE_FRAMES) -> Reading:
    """The decoding of one tile in float16."""
    config = VaeConfig()
    with torch.device("meta"):
        vae: Any = AutoencoderKLHunyuanVideo()
    vae.half().eval()
    vae.disable_tiling()
    vae.use_framewise_decoding = False
    cells = side // config.spatial_factor
    latents = empty(1, config.latent_channels, (frames - 1) // config.time_factor + 1, cells, cells, dtype=torch.half)
    return measure(lambda: vae.decode(latents, return_dict=False), inputs=latents, weights=[vae])
