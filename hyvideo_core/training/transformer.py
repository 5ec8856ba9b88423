"""The transformer's two stages: flow matching on drawn clips, then distillation of guidance into one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import TransformerConfig
from ..model.transformer import Transformer
from .clips import ClipSet
from .objectives import (
    NoiseLevels,
    TextCondition,
    distillation_loss,
    flow_matching_loss,
    guided_velocity,
    noised,
)

EMBEDDED_TRANSFORMER = TransformerConfig(
    hidden_size=128,
    num_heads=4,
    num_double_blocks=2,
    num_single_blocks=6,
    rope_axes=(8, 12, 12),
    text_width=96,
    pooled_width=64,
    has_guidance=True,
)
TRAINED_LEVELS = NoiseLevels()
GUIDANCE_RANGE = (1.0, 8.0)
GUIDANCE_SLOPE = 0.5
"""Classifier-free guidance per unit of embedded guidance above 1: the usual 6.0 then stands for 3.5, the most that
this model bears before its colours overshoot."""


def new_transformer(config: TransformerConfig, text_deviation: float, seed: int = 0) -> Transformer:
    """Untrained: every block starts as the identity, the velocity as zero, text states enter unit-sized."""
    torch.manual_seed(seed)
    model = Transformer(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if "mod" in name.lower():
                nn.init.zeros_(module.weight)
    nn.init.zeros_(model.final_layer.linear.weight)
    model.txt_in.input_embedder.weight.data.div_(text_deviation)
    return model


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowTask:
    """Flow matching with dropped captions, so that the model can be guided away from the empty prompt.

    The pooled text alone is dropped a little more often: what it says can always be read in the states too.
    """

    clips: ClipSet
    batch: int = 48
    levels: NoiseLevels = TRAINED_LEVELS
    drop_text: float = 0.1
    drop_pooled: float = 0.1

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, TextCondition]:
        """Latents, noise, levels and text of one batch."""
        latents, text = self.clips.sample(self.batch, generator)
        noise = torch.randn(latents.shape, generator=generator)
        levels = self.levels.sample(self.batch, generator)
        chance = float(torch.rand(1, generator=generator))
        empty = self.clips.empty.expand(self.batch)
        if chance < self.drop_text:
            text = empty
        elif chance < self.drop_text + self.drop_pooled:
            text = TextCondition(text.states, empty.pooled)
        return latents, noise, levels, text

    def loss(self, model: Transformer, generator: torch.Generator) -> Tensor:
        """Loss of one batch."""
        with torch.autocast("cpu", torch.bfloat16):
            return flow_matching_loss(model, *self.draw(generator))

    def evaluate(self, model: Transformer, num_batches: int = 4) -> dict[str, float]:
        """Loss on a fixed grid of noise levels with the captions in place."""
        generator = torch.Generator().manual_seed(-1)
        losses = []
        for _ in range(num_batches):
            latents, text = self.clips.sample(self.batch, generator)
            noise = torch.randn(latents.shape, generator=generator)
            levels = (torch.arange(self.batch) + 0.5) / self.batch
            with torch.autocast("cpu", torch.bfloat16):
                losses.append(float(flow_matching_loss(model, latents, noise, levels, text)))
        return {"held_out": sum(losses) / num_batches}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationTask:
    """One forward that knows its guidance scale, from a plain model's two."""

    flow: FlowTask
    teacher: Transformer

    def loss(self, student: Transformer, generator: torch.Generator) -> Tensor:
        """Loss of one batch at random scales."""
        latents, text = self.flow.clips.sample(self.flow.batch, generator)
        noise = torch.randn(latents.shape, generator=generator)
        levels = self.flow.levels.sample(self.flow.batch, generator)
        low, high = GUIDANCE_RANGE
        scale = low + (high - low) * torch.rand(self.flow.batch, generator=generator)
        point, _ = noised(latents, noise, levels)
        with torch.autocast("cpu", torch.bfloat16):
            strength = 1.0 + GUIDANCE_SLOPE * (scale - 1.0)
            target = guided_velocity(self.teacher, point, levels, text, self.flow.clips.empty, strength)
            return distillation_loss(student, point, levels, text, scale, target)
