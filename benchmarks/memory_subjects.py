"""What is measured of ours on meta, at the sizes of the published models."""

from __future__ import annotations

from functools import cache

import torch
from hyvideo_nodes.benchmarks.memory_meter import Reading, measure
from hyvideo_nodes.benchmarks.sizes import Workload
from hyvideo_nodes.hyvideo_core.attention import sdpa
from hyvideo_nodes.hyvideo_core.config import LlamaConfig, TransformerConfig, VaeConfig
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.blocks import DoubleStreamBlock, SingleStreamBlock
from hyvideo_nodes.hyvideo_core.model.chunks import DEFAULT, BlockSettings
from hyvideo_nodes.hyvideo_core.model.elementwise import Modulation, Rope
from hyvideo_nodes.hyvideo_core.model.modulation import DoubleModulation
from hyvideo_nodes.hyvideo_core.text_encoders.llm import LlamaTextEncoder, build_llama
from hyvideo_nodes.hyvideo_core.vae import VideoAutoencoder
from torch import Tensor

TEXT_PROMPT_TOKENS = 351  # the video template around a prompt of 256 tokens
TILE_SIDE, TILE_FRAMES = 256, 65
VAE = VaeConfig()


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor on meta."""
    return torch.empty(shape, dtype=dtype, device="meta")


def modulation(config: TransformerConfig) -> Modulation:
    """One triple, as a source that has computed it before gives it."""
    return Modulation(*(empty(1, 1, config.hidden_size) for _ in range(3)))


def rope(work: Workload) -> Rope:
    """The table of the image tokens."""
    half = work.config.head_size // 2
    return Rope(*(empty(work.image_tokens, half, dtype=torch.float32) for _ in range(2)))


def single_block(work: Workload, settings: BlockSettings = DEFAULT) -> Reading:
    """A single-stream block."""
    with torch.device("meta"):
        block = SingleStreamBlock(work.config).bfloat16()
    inputs = (empty(1, work.tokens, work.config.hidden_size), modulation(work.config), rope(work))
    return measure(lambda: block(*inputs, sdpa, settings), inputs=inputs, weights=[block])


def double_block(work: Workload, settings: BlockSettings = DEFAULT) -> Reading:
    """A double-stream block."""
    with torch.device("meta"):
        block = DoubleStreamBlock(work.config).bfloat16()
    img, txt = (empty(1, tokens, work.config.hidden_size) for tokens in (work.image_tokens, work.text_tokens))
    inputs = (img, txt, DoubleModulation(*(modulation(work.config) for _ in range(4))), rope(work))
    return measure(lambda: block(*inputs, sdpa, settings), inputs=inputs, weights=[block])


@cache
def meta_transformer(config: TransformerConfig) -> Transformer:
    """The model of these sizes without values."""
    with torch.device("meta"):
        return Transformer(config).bfloat16().eval().requires_grad_(False)


@cache
def meta_vae(config: VaeConfig = VAE) -> VideoAutoencoder:
    """The autoencoder in float16, without values."""
    with torch.device("meta"):
        return VideoAutoencoder(config).half().eval().requires_grad_(False)


@cache
def meta_llama() -> LlamaTextEncoder:
    """The language model without values."""
    encoder = build_llama(LlamaConfig(), dtype=torch.bfloat16)
    encoder.model.rotary_emb.to("meta")
    return encoder


def transformer_forward(work: Workload, settings: BlockSettings = DEFAULT) -> Reading:
    """One model call, its weights not counted."""
    model, config = meta_transformer(work.config), work.config
    inputs = {
        "latents": empty(1, config.in_channels, *work.latent_size, dtype=torch.float32),
        "timesteps": empty(1, dtype=torch.float32),
        "text": [empty(1, work.text_tokens, config.text_width)],
        "pooled": None if config.pooled_width is None else empty(1, config.pooled_width),
        "guidance": empty(1) if config.has_guidance else None,
    }
    return measure(lambda: model(**inputs, settings=settings), inputs=inputs, weights=[model])


def vae_tile(side: int = TILE_SIDE, frames: int = TILE_FRAMES) -> Reading:
    """The decoding of one tile in float16."""
    vae, cells = meta_vae(), side // VAE.spatial_factor
    latents = empty(1, VAE.latent_channels, (frames - 1) // VAE.time_factor + 1, cells, cells, dtype=torch.half)
    return measure(lambda: vae.decode(latents), inputs=latents, weights=[vae])


def text_encoder() -> Reading:
    """All kept layers of the language model, their weights not counted."""
    encoder, ids = meta_llama(), empty(1, TEXT_PROMPT_TOKENS, dtype=torch.int64)
    return measure(lambda: encoder(ids), inputs=ids, weights=[encoder])
