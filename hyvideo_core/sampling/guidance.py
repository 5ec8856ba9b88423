"""Which conditionings a step evaluates, and how their velocities become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

POSITIVE, NEGATIVE = "positive", "negative"


class Guidance(Protocol):
    """A rule that combines the velocities of several conditionings."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The conditionings that every step evaluates."""

    def combine(self, velocities: Mapping[str, Tensor]) -> Tensor:
        """One velocity from those of all branches."""


@dataclass(frozen=True, slots=True)
class EmbeddedGuidance:
    """The positive prompt alone: guidance-distilled models take the scale as an input."""

    branches: tuple[str, ...] = (POSITIVE,)

    def combine(self, velocities: Mapping[str, Tensor]) -> Tensor:
        """The positive velocity."""
        return velocities[POSITIVE]


@dataclass(frozen=True, slots=True)
class ClassifierFreeGuidance:
    """Away from the negative prompt, at the cost of a second evaluation per step.

    Source: Ho and Salimans 2022, eq. 6, with scale 1 meaning none.
    """

    scale: float
    branches: tuple[str, ...] = (NEGATIVE, POSITIVE)

    def combine(self, velocities: Mapping[str, Tensor]) -> Tensor:
        """negative + scale * (positive - negative), in the velocities' own dtype."""
        negative, positive = velocities[NEGATIVE], velocities[POSITIVE]
        return negative + self.scale * (positive - negative)


def choose_guidance(cfg: float, has_negative: bool) -> Guidance:
    """Classifier-free guidance where it does something, else the positive prompt alone."""
    return ClassifierFreeGuidance(cfg) if has_negative and cfg != 1.0 else EmbeddedGuidance()
