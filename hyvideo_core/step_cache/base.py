"""What a step cache is. Its options are frozen and travel in a graph; its state lives as long as one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ..model.transformer import BlockRunner


@dataclass(slots=True)
class CacheReport:
    """Which steps of one branch were reused instead of computed, counted from 1."""

    num_steps: int
    skipped: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.skipped)) or "none"
        return f"{len(self.skipped)} of {self.num_steps} steps reused: {shown}"


class StepCacheRun(Protocol):
    """The state of a cache for one branch of one sample of one run."""

    report: CacheReport

    def wrap(self, run: BlockRunner) -> BlockRunner:
        """A block runner that either walks the blocks with `run` or reuses what they gave before."""


class StepCache(Protocol):
    """Frozen options of a cache."""

    def start(self, num_steps: int) -> StepCacheRun:
        """Fresh state for a run of `num_steps` model calls."""
