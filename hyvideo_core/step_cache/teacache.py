"""TeaCache: reuse the blocks' result while the modulated input has moved little since they last ran."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import OptionError
from ..model.transformer import BlockInputs, BlockRunner, Transformer, first_modulated_input
from .base import CacheReport

POLYNOMIAL = (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02)
"""From the change of the modulated input to that of the output, highest power first; fitted on HunyuanVideo."""
PART = 2**25
"""Numbers that are compared at a time: the whole of a long video would need as much memory again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeaCache:
    """Options of TeaCache.

    Args:
        rel_l1_thresh: accumulated change up to which a step is reused; 0.1 and 0.15 were published.
        start_percent, end_percent: part of the steps in which reuse is allowed, 0 to 1.
    Raises:
        OptionError: a value outside its range.
    Source: Liu et al. 2024, "Timestep Embedding Tells", sec. 3.3, and its published coefficients.
    """

    rel_l1_thresh: float = 0.15
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if self.rel_l1_thresh < 0:
            raise OptionError(f"rel_l1_thresh is {self.rel_l1_thresh}, expected 0 or more; 0.15 is usual")
        if not 0 <= self.start_percent <= self.end_percent <= 1:
            raise OptionError(
                f"start_percent {self.start_percent} and end_percent {self.end_percent}: "
                "expected 0 <= start_percent <= end_percent <= 1"
            )

    def start(self, num_steps: int) -> TeaCacheRun:
        """Fresh state for a run."""
        return TeaCacheRun(self, num_steps)


class TeaCacheRun:
    """Counts steps and change for one branch; holds one modulated input and one residual."""

    def __init__(self, options: TeaCache, num_steps: int) -> None:
        self.report = CacheReport(num_steps)
        self.accumulated = 0.0
        self._options = options
        self._step = 0
        self._previous_input: Tensor | None = None
        self._residual: Tensor | None = None

    def wrap(self, run: BlockRunner) -> BlockRunner:
        """See StepCacheRun.wrap."""

        def run_or_reuse(model: Transformer, inputs: BlockInputs) -> Tensor:
            residual = self._reusable(first_modulated_input(model, inputs))
            if residual is not None:
                self.report.skipped.append(self._step)
                return inputs.img + residual
            self._residual = None  # not in memory while the blocks run
            before = inputs.img.clone()  # the blocks may write into what they are given
            after = run(model, inputs)
            self._residual = before.neg_().add_(after)
            return after

        return run_or_reuse

    def _reusable(self, modulated: Tensor) -> Tensor | None:
        """The published rule: first and last step compute, others once the accumulated change reaches the threshold."""
        previous, self._previous_input = self._previous_input, modulated
        self._step += 1
        if previous is not None and self._step != self.report.num_steps and self._is_active():
            self.accumulated += rescaled_change(modulated, previous)
            if self.accumulated < self._options.rel_l1_thresh:
                return self._residual
        self.accumulated = 0.0
        return None

    def _is_active(self) -> bool:
        # rounded, since 0.58 * 50 is a little below 29
        first = round(self._options.start_percent * self.report.num_steps, 6)
        last = round(self._options.end_percent * self.report.num_steps, 6)
        return first < self._step <= last


def rescaled_change(modulated: Tensor, previous: Tensor) -> float:
    """Expected change of the output, from the relative L1 change of the modulated input."""
    pairs = list(zip(modulated.flatten().split(PART), previous.flatten().split(PART), strict=True))
    moved = sum((new - old).abs().mean() * (old.numel() / previous.numel()) for new, old in pairs)
    level = sum(old.abs().mean() * (old.numel() / previous.numel()) for _, old in pairs)
    change = float(moved / level)
    value = 0.0
    for coefficient in POLYNOMIAL:
        value = value * change + coefficient
    return value
