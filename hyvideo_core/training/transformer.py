"""What the transformer learns: flow matching on drawn clips, then its own guidance, distilled into one forward."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    hidden_size=192,
    num_heads=6,
    num_double_blocks=2,
    num_single_blocks=4,
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
    for layer in (model.txt_in.input_embedder, model.txt_in.c_embedder.linear_1):
        layer.weight.data.div_(text_deviation)
    return model


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Clips of one size: `batch` of them make a step, `share` says how often a step is theirs."""

    name: str
    clips: ClipSet
    batch: int
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step learns from: latents and noise (B, C, T, H, W), noise levels (B,), text and the empty prompt."""

    latents: Tensor
    noise: Tensor
    levels: Tensor
    text: TextCondition
    empty: TextCondition

    def to(self, device: torch.device) -> Batch:
        """The same on the device of a model."""
        return Batch(*(getattr(self, name).to(device) for name in Batch.__slots__))


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowTask:
    """Flow matching on pictures and clips of several sizes, with dropped captions to be guided away from.

    The pooled text alone is dropped a little more often: what it says can always be read in the states too.
    """

    sources: tuple[Source, ...]
    levels: NoiseLevels = TRAINED_LEVELS
    drop_text: float = 0.1
    drop_pooled: float = 0.1

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch of one size with all captions in place."""
        shares = torch.tensor([source.share for source in self.sources])
        source = self.sources[int(torch.multinomial(shares, 1, generator=generator))]
        latents, text = source.clips.sample(source.batch, generator)
        noise = torch.randn(latents.shape, generator=generator)
        levels = self.levels.sample(source.batch, generator)
        return Batch(latents, noise, levels, text, source.clips.empty.expand(source.batch))

    def draw_dropped(self, generator: torch.Generator) -> Batch:
        """A batch whose captions may be missing, in whole or in the pooled part."""
        batch = self.draw(generator)
        chance = float(torch.rand(1, generator=generator))
        if chance < self.drop_text:
            return replace(batch, text=batch.empty)
        if chance < self.drop_text + self.drop_pooled:
            return replace(batch, text=TextCondition(batch.text.states, batch.empty.pooled))
        return batch

    def loss(self, model: Transformer, generator: torch.Generator) -> Tensor:
        """Loss of one batch."""
        device = _device_of(model)
        batch = self.draw_dropped(generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return flow_matching_loss(model, batch.latents, batch.noise, batch.levels, batch.text)

    def evaluate(self, model: Transformer, num_batches: int = 4) -> dict[str, float]:
        """Loss by source on a fixed grid of noise levels with the captions in place."""
        return {source.name: self._evaluate(model, source, num_batches) for source in self.sources}

    def _evaluate(self, model: Transformer, source: Source, num_batches: int) -> float:
        device, generator = _device_of(model), torch.Generator().manual_seed(-1)
        alone = replace(self, sources=(source,))
        levels = (torch.arange(source.batch) + 0.5) / source.batch
        losses = []
        for _ in range(num_batches):
            batch = replace(alone.draw(generator), levels=levels).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                losses.append(float(flow_matching_loss(model, batch.latents, batch.noise, batch.levels, batch.text)))
        return sum(losses) / num_batches


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationTask:
    """One forward that knows its guidance scale, from a plain model's two."""

    flow: FlowTask
    teacher: Transformer

    def loss(self, student: Transformer, generator: torch.Generator) -> Tensor:
        """Loss of one batch at random scales."""
        device = _device_of(student)
        batch = self.flow.draw(generator).to(device)
        low, high = GUIDANCE_RANGE
        scale = (low + (high - low) * torch.rand(len(batch.levels), generator=generator)).to(device)
        point, _ = noised(batch.latents, batch.noise, batch.levels)
        with torch.autocast(device.type, torch.bfloat16):
            strength = 1.0 + GUIDANCE_SLOPE * (scale - 1.0)
            target = guided_velocity(self.teacher, point, batch.levels, batch.text, batch.empty, strength)
            return distillation_loss(student, point, batch.levels, batch.text, scale, target)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
