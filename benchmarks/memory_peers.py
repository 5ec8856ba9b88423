"""The same parts of other people's models, measured the same way."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from hyvideo_nodes.benchmarks.memory_meter import Reading, measure
from hyvideo_nodes.benchmarks.memory_subjects import TILE_FRAMES, TILE_SIDE, empty
from hyvideo_nodes.benchmarks.rivals import build_comfyui, has_comfyui
from hyvideo_nodes.benchmarks.sizes import Workload
from hyvideo_nodes.hyvideo_core.config import VaeConfig


def peers() -> dict[str, dict[str, Callable[[Workload], Reading]]]:
    """A subject for each kind of block, by whose it is: of diffusers, and of ComfyUI where that can run."""
    found: dict[str, dict[str, Callable[[Workload], Reading]]] = {}
    if importlib.util.find_spec("diffusers"):
        found["diffusers"] = {"single": single_block, "double": double_block}
    if has_comfyui():
        found["ComfyUI"] = {"single": comfyui_single_block, "double": comfyui_double_block}
    return found


def _diffusers_block(kind: str, work: Workload) -> Reading:
    """A block with its own modulation, its mask of padded text and its rotary table, as the whole model calls it."""
    from diffusers.models.transformers import transformer_hunyuan_video as theirs

    config = work.config
    with torch.device("meta"):
        block = getattr(theirs, kind)(
            config.num_heads, config.head_size, mlp_ratio=config.mlp_ratio, qk_norm="rms_norm"
        ).bfloat16()
    inputs = (
        empty(1, work.image_tokens, config.hidden_size),
        empty(1, work.text_tokens, config.hidden_size),
        empty(1, config.hidden_size),
        empty(1, 1, 1, work.tokens, dtype=torch.bool),
        tuple(empty(work.image_tokens, config.head_size, dtype=torch.float32) for _ in range(2)),
    )
    return measure(lambda: block(*inputs), inputs=inputs, weights=[block])


def single_block(work: Workload) -> Reading:
    """Diffusers' single-stream block."""
    return _diffusers_block("HunyuanVideoSingleTransformerBlock", work)


def double_block(work: Workload) -> Reading:
    """Diffusers' double-stream block."""
    return _diffusers_block("HunyuanVideoTransformerBlock", work)


def _comfyui_block(kind: str, work: Workload, *lengths: int) -> Reading:
    """A block with its own modulation and its rotary table, which are 2 x 2 matrices for each pair of channels."""
    config = work.with_config(num_double_blocks=1, num_single_blocks=1).config
    block: Any = getattr(build_comfyui(config, torch.device("meta"), torch.bfloat16), kind)[0]
    tokens = [empty(1, length, config.hidden_size) for length in lengths]
    vec = empty(1, config.hidden_size)
    positions = empty(1, 1, work.tokens, config.head_size // 2, 2, 2, dtype=torch.float32)
    return measure(lambda: block(*tokens, vec=vec, pe=positions), inputs=(tokens, vec, positions), weights=[block])


def comfyui_single_block(work: Workload) -> Reading:
    """ComfyUI's single-stream block."""
    return _comfyui_block("single_blocks", work, work.tokens)


def comfyui_double_block(work: Workload) -> Reading:
    """ComfyUI's double-stream block."""
    return _comfyui_block("double_blocks", work, work.image_tokens, work.text_tokens)


def vae_tile(side: int = TILE_SIDE, frames: int = TILE_FRAMES) -> Reading:
    """The decoding of one tile in float16 by diffusers."""
    from diffusers import AutoencoderKLHunyuanVideo

    config = VaeConfig()
    with torch.device("meta"):
        vae: Any = AutoencoderKLHunyuanVideo()
    vae.half().eval()
    vae.disable_tiling()
    vae.use_framewise_decoding = False
    cells = side // config.spatial_factor
    latents = empty(1, config.latent_channels, (frames - 1) // config.time_factor + 1, cells, cells, dtype=torch.half)
    return measure(lambda: vae.decode(latents, return_dict=False), inputs=latents, weights=[vae])
