"""Which weights of a model stay on the device. The others are fetched for each use; all have their home on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .device import StreamDevice
from .groups import WeightGroup
from .layout import Layout

GOLDEN = 0.618033988749895


class Residency:
    """The weights of one model and which of them are kept on a device.

    Whoever shares the device may have them shrink at any moment of the same thread; a run goes on by fetching what is
    gone.

    Args:
        model: on the host.
    Attributes:
        groups: the model's weights by part of the layout.
        limit: bytes of the most that may be kept.
    """

    def __init__(self, model: nn.Module, layout: Layout, device: StreamDevice) -> None:
        self.layout, self.device = layout, device
        tensors = layout.tensors(model)
        self.groups = {name: WeightGroup(tensors[name]) for name in layout.parts}
        self.limit = self.most_bytes
        self._kept: dict[str, Tensor] = {}

    @property
    def most_bytes(self) -> int:
        """What would be kept with room for everything."""
        return sum(self.groups[name].num_bytes for name in self._order())

    @property
    def total_bytes(self) -> int:
        """All weights that are ever on the device."""
        return sum(group.num_bytes for group in self.groups.values())

    @property
    def kept_bytes(self) -> int:
        """What is kept now."""
        return sum(self.groups[name].num_bytes for name in self._kept)

    def is_kept(self, name: str) -> bool:
        """Whether a part's weights are on the device for good."""
        return name in self._kept

    def grow(self, num_bytes: float) -> int:
        """Keeps more, part by part, up to so many bytes more and up to the limit; gives what that took.

        An error, such as one of too little memory after all, leaves nothing on the device.
        """
        before = self.kept_bytes
        room = min(num_bytes, self.limit - before)
        with ExitStack() as undo:
            undo.callback(self.clear)
            for name in self._order():
                group = self.groups[name]
                if name not in self._kept and not group.is_bound and group.num_bytes <= room:
                    self._keep(name, group)
                    room -= group.num_bytes
            undo.pop_all()
        return self.kept_bytes - before

    def shrink(self, num_bytes: float) -> int:
        """Gives up at least so many bytes if there are as many, what is in use excepted; gives how many it were."""
        before = self.kept_bytes
        with torch.inference_mode(False):
            for name in reversed(self._order()):
                if before - self.kept_bytes >= num_bytes:
                    break
                if name in self._kept and not self.groups[name].is_held:
                    self.groups[name].unbind()
                    del self._kept[name]
        return before - self.kept_bytes

    def limit_to(self, num_bytes: int) -> None:
        """Keeps at most so many bytes from now on."""
        self.limit = num_bytes
        self.shrink(self.kept_bytes - num_bytes)

    def fit(self, num_bytes: float) -> None:
        """Keeps as much as fits into so many bytes and the limit, and no more."""
        most = max(0, min(num_bytes, self.limit))
        self.shrink(self.kept_bytes - most)
        self.grow(most - self.kept_bytes)

    def clear(self) -> None:
        """Leaves nothing on the device, whatever state an error left behind."""
        try:
            self.device.copies.synchronize()  # none may end in memory that is somebody else's by then
        finally:
            with torch.inference_mode(False):
                for group in self.groups.values():
                    group.unbind()
            self._kept.clear()

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """Inside, all weights are seen on the host; what is kept stays kept."""
        with torch.inference_mode(False):
            for name in self._kept:
                self.groups[name].unbind()
            try:
                yield
            finally:
                for name, memory in self._kept.items():
                    self.groups[name].bind(memory)

    def host_memory(self) -> Sequence[Tensor]:
        """All homes, for whoever counts memory."""
        return [memory for group in self.groups.values() for memory in group.host_memory]

    @torch.inference_mode(False)
    def _keep(self, name: str, group: WeightGroup) -> None:
        memory = fetch_now(group, self.device)
        self._kept[name] = memory
        group.bind(memory)

    def _order(self) -> list[str]:
        """Parts that may be kept, the first ones first: spread over the walk, so that each fetch has time."""
        walked = self.layout.walked
        spread = sorted(range(len(walked)), key=lambda index: (index + 1) * GOLDEN % 1)
        names = [*(walked[index] for index in spread), *self.layout.seldom]
        return [name for name in names if self.groups[name].num_bytes]


def fetch_now(group: WeightGroup, device: StreamDevice) -> Tensor:
    """A group in memory of its own; what is queued on `compute` from now on may use it."""
    memory = device.allocate(group.num_bytes)
    # what was queued before may still use the same memory
    device.copies.wait_event(device.compute.record_event())
    group.fetch(memory, device)
    device.compute.wait_event(device.copies.record_event())
    return memory
