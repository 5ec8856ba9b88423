"""Whole stages of making a video with streamed weights, on meta: what a card has to have room for.

Everything on the device counts: activations, weights in flight and kept ones, tables. Homes of weights and the decoded
video lie on the host and do not.
"""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import torch
from hyvideo_nodes.benchmarks.memory_meter import Meter, Reading
from hyvideo_nodes.benchmarks.memory_subjects import (
    TEXT_PROMPT_TOKENS,
    empty,
    meta_llama,
    meta_transformer,
    meta_vae,
)
from hyvideo_nodes.benchmarks.sizes import Workload
from hyvideo_nodes.hyvideo_core.memory import (
    MemoryOptions,
    Residency,
    StreamedModel,
    llama_layout,
    open_device,
    transformer_layout,
)
from hyvideo_nodes.hyvideo_core.model.chunks import DEFAULT, BlockSettings
from hyvideo_nodes.hyvideo_core.model.transformer import BlockHold, BlockInputs, BlockRunner, Transformer, walk_blocks
from hyvideo_nodes.hyvideo_core.pipeline import SamplingOptions, StartLatents, sample_latents
from hyvideo_nodes.hyvideo_core.sampling.denoise import StepResult
from hyvideo_nodes.hyvideo_core.text_encoders.conditioning import Conditioning
from hyvideo_nodes.hyvideo_core.vae import Tiling, decode_tiled
from torch import Tensor, nn

STEPS = 50
META = torch.device("meta")


class _SeenEnoughError(Exception):
    """A step is done, and the next ones are like it."""


def transformer_stage(work: Workload, settings: BlockSettings = DEFAULT, *, walked: int | None = None) -> Reading:
    """The first of fifty steps, all weights streamed, the modulation of all steps made before.

    Args:
        walked: how many blocks of each kind compute; all take the same memory, one after the other.
    """
    model = meta_transformer(work.config)
    residency = Residency(model, transformer_layout(model), open_device(META))
    states = torch.zeros(1, work.text_tokens, work.config.text_width)
    pooled = None if work.config.pooled_width is None else torch.zeros(1, work.config.pooled_width)
    start = StartLatents(samples=torch.zeros(1, work.config.in_channels, *work.latent_size))

    def stop(_: StepResult) -> None:
        raise _SeenEnoughError

    meter = Meter(weights=[model])
    with suppress(_SeenEnoughError), meter, _streamed(residency, model) as streamed:
        sample_latents(
            model,
            start,
            [Conditioning(states=states, pooled=pooled)],
            [],
            SamplingOptions(steps=STEPS),
            device=META,
            run=_first_blocks(streamed.hold, walked),
            hold=streamed.hold,
            settings=settings,
            on_step=stop,
        )
    return meter.reading


def text_stage() -> Reading:
    """A prompt through the language model, all its layers streamed."""
    encoder = meta_llama()
    residency = Residency(encoder, llama_layout(encoder), open_device(META))
    ids = empty(1, TEXT_PROMPT_TOKENS, dtype=torch.int64)
    meter = Meter(weights=[encoder])
    with torch.no_grad(), meter, _streamed(residency, encoder):
        encoder(ids)
    return meter.reading


def vae_stage(work: Workload, tiling: Tiling) -> Reading:
    """The decoding of a video tile by tile, weights included.

    Of the rows of tiles and the runs of frames two are enough, since no more than that is ever remembered; carried runs
    are all walked, since their middle block sees all frames.
    """
    vae, config = meta_vae(), meta_vae().config
    frames, height, width = work.latent_size
    if tiling.tile_size is not None:
        height = min(height, (2 * tiling.tile_size - tiling.overlap) // config.spatial_factor)
    if tiling.temporal_size is not None and not tiling.carried:
        frames = min(frames, (2 * tiling.temporal_size - tiling.temporal_overlap) // config.time_factor)
    latents = empty(1, config.latent_channels, frames, height, width, dtype=torch.float32)
    pixels = (config.time_factor * (frames - 1) + 1, height * config.spatial_factor, width * config.spatial_factor)
    video = empty(1, config.image_channels, *pixels, dtype=torch.float32)
    meter = Meter(weights=[video])
    with torch.no_grad(), meter:
        meter.watch([*vae.parameters(), latents])
        decode_tiled(vae, latents, tiling, out=video)
    return meter.reading


def _streamed(residency: Residency, model: nn.Module) -> StreamedModel:
    """As the nodes do it where nobody asks for anything else and nothing has room to stay."""
    options = MemoryOptions()
    return StreamedModel(residency, model, prefetch=options.prefetch, slots=options.plan(residency).slots)


def _first_blocks(hold: BlockHold, number: int | None) -> BlockRunner:
    """A runner that walks the first blocks of each kind."""
    walk = walk_blocks(lambda: None, hold)

    def run(model: Transformer, inputs: BlockInputs) -> Tensor:
        part = SimpleNamespace(double_blocks=model.double_blocks[:number], single_blocks=model.single_blocks[:number])
        return walk(cast(Transformer, part), inputs)

    return run
