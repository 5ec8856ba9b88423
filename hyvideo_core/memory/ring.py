"""Device memory in which groups of weights take turns: first come, first gone, each in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .device import StreamDevice
from .groups import WeightGroup


@dataclass(eq=False, slots=True)
class Slot:
    """A piece of the ring with a group in it.

    Attributes:
        ready: mark behind the copy.
        done: mark behind the last computation with it; None before that.
        is_open: it may be asked for, or is in use; else the next group may take its place once `done` is reached.
    """

    group: WeightGroup
    start: int
    stop: int
    memory: Tensor
    ready: Any = None
    done: Any = None
    is_open: bool = True


class Ring:
    """One piece of device memory and the groups that are in it or on their way.

    Args:
        num_bytes: as much as the groups that are to be there at once.
    """

    def __init__(self, device: StreamDevice, num_bytes: int) -> None:
        self._device = device
        self._memory = device.allocate(num_bytes)
        # what was queued before may still use the same memory
        device.copies.wait_event(device.compute.record_event())
        self._slots: list[Slot] = []
        self._next = 0

    def fetch(self, group: WeightGroup) -> Slot | None:
        """Queues the copies of a group; None where everything that is in its way is still needed."""
        # behind the newest, else at the start or behind any other that is in the way
        for start in (self._next, 0, *(slot.stop for slot in self._slots)):
            stop = start + group.num_bytes
            in_the_way = [slot for slot in self._slots if slot.start < stop and start < slot.stop]
            if stop <= self._memory.numel() and not any(slot.is_open for slot in in_the_way):
                return self._fetch_to(group, start, in_the_way)
        return None

    def _fetch_to(self, group: WeightGroup, start: int, in_the_way: Sequence[Slot]) -> Slot:
        for slot in in_the_way:
            if slot.done is not None:
                self._device.copies.wait_event(slot.done)
            self._slots.remove(slot)
        stop = start + group.num_bytes
        slot = Slot(group, start, stop, self._memory[start:stop])
        self._slots.append(slot)
        self._next = stop
        group.fetch(slot.memory, self._device)
        slot.ready = self._device.copies.record_event()
        return slot

    def find(self, group: WeightGroup) -> Slot | None:
        """The slot of a group that was fetched; what was fetched before it and not asked for is given up."""
        found = next((slot for slot in self._slots if slot.group is group and slot.is_open), None)
        if found is not None:
            self._give_up(self._slots[: self._slots.index(found)])
        return found

    def holds(self, group: WeightGroup) -> bool:
        """Whether a group was fetched and not given up."""
        return any(slot.group is group and slot.is_open for slot in self._slots)

    def clear(self) -> None:
        """Gives up everything that is not in use."""
        self._give_up(self._slots)

    def _give_up(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if not slot.group.is_held:
                slot.is_open = False
