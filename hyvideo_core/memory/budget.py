"""How much of a device's memory a model's weights may take, and what a run takes besides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..model.chunks import DEFAULT, LOW, BlockSettings
from .layout import REST
from .residency import Residency
from .streaming import MIN_SLOTS

AUTO = "auto"
GIGABYTE = 10**9
Mode = Literal["standard", "low"]
MODES: tuple[Mode, ...] = ("standard", "low")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryOptions:
    """What a model may take of the device.

    Args:
        budget: GB (10^9 bytes) for the weights, those that are being fetched included; None leaves it to the host.
            Less than the fetching needs counts as that much.
        mode: "low" computes attention's inputs for some heads at a time, which takes less memory.
        prefetch: blocks that are fetched ahead.
    Raises:
        OptionError: a value outside its range.
    """

    budget: float | None = None
    mode: Mode = "standard"
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise OptionError(f'the memory budget is {self.budget} GB, expected "{AUTO}" or a number from 0 on')
        if self.mode not in MODES:
            raise OptionError(f'the memory mode is "{self.mode}", expected one of {", ".join(MODES)}')
        if self.prefetch < 1:
            raise OptionError(f"prefetch is {self.prefetch}, expected 1 or more; 2 is usual")

    @property
    def settings(self) -> BlockSettings:
        """How blocks compute in this mode."""
        return LOW if self.mode == "low" else DEFAULT

    @classmethod
    def read_budget(cls, text: str) -> float | None:
        """A budget as a user writes it: "auto", or GB with a point or a comma.

        Raises:
            OptionError: it is neither.
        """
        word = text.strip().lower()
        if word in ("", AUTO):
            return None
        try:
            return float(word.removesuffix("gb").strip().replace(",", "."))
        except ValueError:
            raise OptionError(f'the memory budget is "{text}", expected "{AUTO}" or GB, for example 6.5') from None

    def plan(self, residency: Residency) -> Plan:
        """How a run of a model may use the device."""
        sizes = [residency.groups[name].num_bytes for name in residency.layout.walked]
        largest, rest, most = max(sizes, default=0), residency.groups[REST].num_bytes, residency.most_bytes
        slots = max(MIN_SLOTS, self.prefetch + 1)
        allowed = math.inf if self.budget is None else self.budget * GIGABYTE
        room = int(min(allowed, residency.total_bytes)) - rest
        if room >= most:
            # the device may have less room than was allowed: then there is a ring too
            return Plan(slots, rest + min(slots * largest, sum(sizes)), most)
        # rather one block less ahead than more than was allowed
        slots = max(MIN_SLOTS, min(slots, room // max(largest, 1)))
        ring = min(slots * largest, sum(sizes))
        return Plan(slots, rest + ring, max(0, room - ring))


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run may use the device.

    Attributes:
        slots: see StreamedModel.
        working_bytes: what weights take during the run besides those that are kept.
        kept_bytes: the most that may be kept.
    """

    slots: int
    working_bytes: int
    kept_bytes: int
