"""The same transformer in other people's code, with our weights, for benchmarks.

Diffusers where it is installed; ComfyUI's own where COMFYUI_DIR names its source and the running Python has what it
needs (its interpreter runs these scripts too).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hyvideo_nodes.benchmarks.sizes import Workload
from hyvideo_nodes.hyvideo_core.config import TransformerConfig
from hyvideo_nodes.hyvideo_core.loading.key_maps import COMFY, COMFY_SCALE, DIFFUSERS, Dialect
from hyvideo_nodes.hyvideo_core.model import Transformer
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one model call and one block take.

    Args:
        latents: [1, C, T, H, W].
        states: [1, L, text width], all of them real tokens.
        pooled, timestep, guidance: [1, width], [1] and [1].
        img, txt, vec: [1, L, D], [1, L, D] and [1, D]: what enters a block.
    """

    latents: Tensor
    states: Tensor
    pooled: Tensor
    timestep: Tensor
    guidance: Tensor
    img: Tensor
    txt: Tensor
    vec: Tensor

    @classmethod
    def random(cls, work: Workload, like: Tensor) -> Inputs:
        """Of the dtype and on the device of `like`."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=like.dtype, device=like.device)

        config = work.config
        return cls(
            latents=draw(1, config.in_channels, *work.latent_size),
            states=draw(1, work.text_tokens, config.text_width),
            pooled=draw(1, config.pooled_width or 1),
            timestep=torch.full((1,), 500.0, device=like.device),
            guidance=torch.full((1,), 6000.0, dtype=like.dtype, device=like.device),
            img=draw(1, work.image_tokens, config.hidden_size),
            txt=draw(1, work.text_tokens, config.hidden_size),
            vec=draw(1, config.hidden_size),
        )


Call = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Rival:
    """One implementation, as calls that are ready to be timed.

    Args:
        name: whose.
        forward: inputs to a model call, which gives the velocity.
        double, single: inputs to a call of the first block of each kind, which gives image and text tokens in one
            tensor. The call copies what goes in, because some blocks write to it; masks and positions, which a step
            makes once for all its blocks, are made before.
    """

    name: str
    forward: Callable[[Inputs], Call]
    double: Callable[[Inputs], Call]
    single: Callable[[Inputs], Call]


def rivals_of(model: Transformer) -> list[Rival]:
    """Those that this Python can run, with the weights of `model`, on its device and in its dtype."""
    found = [_diffusers(model)] if importlib.util.find_spec("diffusers") else []
    if has_comfyui():
        found.append(_comfyui(model))
    return found


def has_comfyui() -> bool:
    """Whether COMFYUI_DIR names its source and this Python has what it needs, as its own interpreter does."""
    return bool(os.environ.get("COMFYUI_DIR")) and importlib.util.find_spec("comfy_kitchen") is not None


def build_comfyui(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """ComfyUI's own model of these sizes."""
    folder = os.environ["COMFYUI_DIR"]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True  # as it chooses on a GPU
    import comfy.ops
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    sizes = _comfyui_sizes(config)
    return HunyuanVideo(**sizes, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)


def _filled(theirs: nn.Module, model: Transformer, *dialects: Dialect) -> nn.Module:
    """Their model with our weights, by the first dialect that has its names, which differ between versions."""
    for dialect in dialects:
        tensors: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            tensors |= dialect.split(name, tensor, model.config.hidden_size)
        if tensors.keys() == theirs.state_dict().keys():
            break
    theirs.load_state_dict(tensors, strict=True, assign=True)
    return theirs.eval().requires_grad_(False)


def _diffusers(model: Transformer) -> Rival:
    from diffusers import HunyuanVideoTransformer3DModel

    config = model.config
    with torch.device("meta"):
        theirs: Any = HunyuanVideoTransformer3DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_size,
            num_layers=config.num_double_blocks,
            num_single_layers=config.num_single_blocks,
            num_refiner_layers=config.num_refiner_blocks,
            mlp_ratio=config.mlp_ratio,
            text_embed_dim=config.text_width,
            pooled_projection_dim=config.pooled_width,
            guidance_embeds=config.has_guidance,
            rope_axes_dim=config.rope_axes,
        )
    theirs = _filled(theirs, model, DIFFUSERS)

    def forward(x: Inputs) -> Call:
        mask = torch.ones(x.states.shape[:2], dtype=torch.bool, device=x.states.device)
        return lambda: theirs(x.latents, x.timestep, x.states, mask, x.pooled, x.guidance, return_dict=False)[0]

    def block(which: nn.Module, x: Inputs) -> Call:
        mask = torch.ones(1, 1, 1, x.img.shape[1] + x.txt.shape[1], dtype=torch.bool, device=x.img.device)
        rope = theirs.rope(x.latents)
        return lambda: torch.cat(which(x.img.clone(), x.txt.clone(), x.vec, mask, rope), dim=1)

    doubles, singles = theirs.transformer_blocks, theirs.single_transformer_blocks
    return Rival("diffusers", forward, partial(block, doubles[0]), partial(block, singles[0]))


def _comfyui(model: Transformer) -> Rival:
    weight = model.img_in.proj.weight
    theirs: Any = build_comfyui(model.config, weight.device, weight.dtype)
    theirs = _filled(theirs, model, COMFY, COMFY_SCALE)

    def forward(x: Inputs) -> Call:
        guidance = x.guidance / 1000  # which it multiplies itself
        return lambda: theirs(x.latents, x.timestep, x.states, y=x.pooled, guidance=guidance)

    def positions(x: Inputs) -> Tensor:
        ids = theirs.img_ids(x.latents)
        return theirs.pe_embedder(torch.cat((ids.new_zeros(1, x.txt.shape[1], 3), ids), dim=1))

    def double(x: Inputs) -> Call:
        pe = positions(x)
        return lambda: torch.cat(theirs.double_blocks[0](x.img.clone(), x.txt.clone(), vec=x.vec, pe=pe), dim=1)

    def single(x: Inputs) -> Call:
        """Text comes first there."""
        pe, num_text = positions(x), x.txt.shape[1]
        return lambda: theirs.single_blocks[0](torch.cat((x.txt, x.img), dim=1), vec=x.vec, pe=pe).roll(-num_text, 1)

    return Rival("ComfyUI", forward, double, single)


def _comfyui_sizes(config: TransformerConfig) -> dict[str, Any]:
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "vec_in_dim": config.pooled_width,
        "context_in_dim": config.text_width,
        "hidden_size": config.hidden_size,
        "mlp_ratio": config.mlp_ratio,
        "num_heads": config.num_heads,
        "depth": config.num_double_blocks,
        "depth_single_blocks": config.num_single_blocks,
        "axes_dim": list(config.rope_axes),
        "theta": int(config.rope_theta),
        "patch_size": list(config.patch_size),
        "qkv_bias": True,
        "guidance_embed": config.has_guidance,
        "byt5": False,
        "meanflow": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
    }
