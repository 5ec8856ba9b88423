"""How much training makes the embedded model: every stage's schedule in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .clips import ClipKind
from .loops import Schedule
from .scenes import SceneMix


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stage of the transformer: what share of its steps goes to which kind of clip."""

    name: str
    schedule: Schedule
    shares: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much of everything.

    Attributes:
        codec_clips: clips that the linear codec is fitted on.
        corpus: captions that the tokenizers are learned from.
        kinds: sizes of the transformer's clips.
        mix: what those clips show.
        phases: the transformer's stages, each of which begins where the one before it ended.
        distilled: the last stage, on the last phase's clips.
        shown: clips on a contact sheet.
    """

    codec_clips: int
    corpus: int
    kinds: tuple[ClipKind, ...]
    mix: SceneMix
    pooled: Schedule
    language: Schedule
    decoder: Schedule
    autoencoder: Schedule
    phases: tuple[Phase, ...]
    distilled: Schedule
    shown: int


PICTURE = ClipKind(name="picture", frames=1, height=64, width=64, count=48_000, held_out_count=400, batch=128)
LARGE_PICTURE = ClipKind(name="large picture", frames=1, height=96, width=96, count=8_000, held_out_count=200, batch=64)
SHORT = ClipKind(name="short clip", frames=9, height=64, width=64, count=16_000, held_out_count=200, batch=64)
CLIP = ClipKind(name="clip", frames=17, height=64, width=64, count=48_000, held_out_count=400, batch=48)
WIDE = ClipKind(name="wide clip", frames=17, height=64, width=96, count=2_000, held_out_count=100, batch=32)
LARGE = ClipKind(name="large clip", frames=17, height=96, width=96, count=6_000, held_out_count=100, batch=20)
LONG = ClipKind(name="long clip", frames=33, height=96, width=96, count=6_000, held_out_count=50, batch=12)

STANDARD = Plan(
    codec_clips=600,
    corpus=3000,
    kinds=(PICTURE, LARGE_PICTURE, SHORT, CLIP, WIDE, LARGE, LONG),
    mix=SceneMix(two_objects=0.25, moving_camera=0.25),
    pooled=Schedule(steps=400, learning_rate=3e-3, warmup=20, seed=2),
    language=Schedule(steps=1600, learning_rate=3e-3, warmup=20, average_decay=0.99, seed=3),
    decoder=Schedule(steps=22_000, learning_rate=1e-3, warmup=100, seed=1, evaluate_every=100),
    autoencoder=Schedule(steps=8000, learning_rate=8e-4, warmup=100, seed=5, evaluate_every=100),
    phases=(
        Phase(
            name="pictures",
            schedule=Schedule(steps=4000, learning_rate=1.6e-3, final_share=0.4, seed=4),
            shares={"picture": 0.9, "large picture": 0.1},
        ),
        Phase(
            name="short_clips",
            schedule=Schedule(steps=500, learning_rate=1.2e-3, final_share=0.6, seed=7),
            shares={"short clip": 0.7, "picture": 0.3},
        ),
        Phase(
            name="full_clips",
            schedule=Schedule(steps=4200, learning_rate=1.2e-3, seed=8),
            shares={"clip": 0.8, "picture": 0.05, "wide clip": 0.05, "large clip": 0.05, "long clip": 0.05},
        ),
        Phase(
            name="all_clips",
            schedule=Schedule(steps=7000, learning_rate=1.2e-3, muon=True, seed=9),
            shares={"clip": 0.75, "picture": 0.04, "wide clip": 0.03, "large clip": 0.06, "long clip": 0.12},
        ),
    ),
    distilled=Schedule(steps=400, learning_rate=4e-4, seed=6),
    shown=16,
)
"""Some hours of two cores, with the two chains of stages side by side; no stage is longer than two."""


def _trial(schedule: Schedule) -> Schedule:
    return replace(schedule, steps=2, learning_rate=1e-4)


QUICK = replace(
    STANDARD,
    codec_clips=8,
    kinds=tuple(replace(kind, count=12, held_out_count=4, batch=2) for kind in STANDARD.kinds),
    pooled=_trial(STANDARD.pooled),
    language=_trial(STANDARD.language),
    decoder=_trial(STANDARD.decoder),
    autoencoder=_trial(STANDARD.autoencoder),
    phases=tuple(replace(phase, schedule=_trial(phase.schedule)) for phase in STANDARD.phases),
    distilled=_trial(STANDARD.distilled),
    shown=2,
)
"""Everything once, learning nothing: shows in a minute that a machine can do it."""
