"""How much training makes the embedded model: every stage's schedule in one place."""

from __future__ import annotations

from dataclasses import dataclass

from .loops import Schedule
from .scenes import SceneMix


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much of everything.

    Attributes:
        codec_clips: clips that the linear codec is fitted on.
        corpus: captions that the tokenizers are learned from.
        clips, held_out_clips: size of the transformer's data set and of the one that judges it.
        mix: what the transformer's clips show.
        batch: clips per step of the transformer.
        shown: clips on a contact sheet.
    """

    codec_clips: int
    corpus: int
    clips: int
    held_out_clips: int
    mix: SceneMix
    pooled: Schedule
    language: Schedule
    decoder: Schedule
    encoder: Schedule
    transformer: Schedule
    distilled: Schedule
    batch: int
    shown: int


STANDARD = Plan(
    codec_clips=600,
    corpus=3000,
    clips=16_000,
    held_out_clips=400,
    mix=SceneMix(moving_camera=0.15),
    pooled=Schedule(steps=400, learning_rate=3e-3, warmup=20, seed=2),
    language=Schedule(steps=350, learning_rate=3e-3, warmup=20, average_decay=0.99, seed=3),
    decoder=Schedule(steps=13_000, learning_rate=8e-4, warmup=100, seed=1, evaluate_every=100),
    encoder=Schedule(steps=1500, learning_rate=8e-4, warmup=100, seed=5, evaluate_every=100),
    transformer=Schedule(steps=4700, learning_rate=1.5e-3, seed=4, save_every=100, evaluate_every=100),
    distilled=Schedule(steps=300, learning_rate=4e-4, seed=6, save_every=100, evaluate_every=100),
    batch=48,
    shown=16,
)
"""About 100 minutes of one idle core; an hour on two, with the two chains of stages side by side."""

QUICK = Plan(
    codec_clips=8,
    corpus=3000,
    clips=24,
    held_out_clips=8,
    mix=SceneMix(moving_camera=0.15),
    pooled=Schedule(steps=2, learning_rate=1e-3),
    language=Schedule(steps=2, learning_rate=1e-3),
    decoder=Schedule(steps=2, learning_rate=1e-4),
    encoder=Schedule(steps=2, learning_rate=1e-4),
    transformer=Schedule(steps=2, learning_rate=1e-4),
    distilled=Schedule(steps=2, learning_rate=1e-4),
    batch=4,
    shown=2,
)
"""Everything once, learning nothing: shows in a minute that a machine can do it."""
