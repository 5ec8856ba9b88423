"""Weights that move together, such as those of one block, and where they are at home."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .device import StreamDevice

ALIGNMENT = 256
"""Bytes; no kernel asks for more of a weight's address."""
PAGE = 4096
"""Bytes; memory is pinned in whole pages, and no two pieces of it may share one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor lies among the bytes of its group."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, memory: Tensor) -> Tensor:
        """The tensor itself, in the bytes of a group."""
        return memory[self.start : self.stop].view(self.dtype).as_strided(self.shape, self.strides)


class WeightGroup:
    """Tensors of any kinds that are fetched and left as one.

    They are changed in place (`tensor.data`), so that every module that shares them sees them where they are: views
    with LoRAs, and layers of any storage format.

    Args:
        tensors: parameters and buffers, on the host; no tensor belongs to two groups.
    Attributes:
        num_bytes: what it takes on the device.
        is_bound: the tensors are on the device, or on their way.
        is_held: they are being computed with, and must stay.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._homes = [tensor.data for tensor in self._tensors]
        self._places = _arrange(self._homes)
        self._arena: Tensor | None = None
        self.num_bytes = _round_up(self._places[-1].stop, ALIGNMENT) if self._places else 0
        self.is_bound = False
        self.is_held = False

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The parameters and buffers themselves."""
        return self._tensors

    @property
    def host_memory(self) -> Sequence[Tensor]:
        """Where the tensors are at home."""
        return self._homes if self._arena is None else [self._arena]

    def pack(self, device: StreamDevice) -> None:
        """Moves the tensors' home into one piece of pinned memory; does nothing the second time."""
        if self._arena is not None or not self._places:
            return
        arena = _page_aligned(self.num_bytes, self._homes[0].device)
        for index, place in enumerate(self._places):
            home = place.view(arena)
            home.copy_(self._homes[index])
            self._homes[index] = home
            if not self.is_bound:
                self._tensors[index].data = home  # frees the old home
        self._arena = arena
        unpin = device.pin(arena)
        if unpin is not None:
            # not when the process ends, which gives the memory back faster
            weakref.finalize(self, _unpin, unpin, arena).atexit = False

    def fetch(self, memory: Tensor, device: StreamDevice) -> None:
        """Queues the copies of all tensors into [num_bytes] of the device."""
        if self._arena is not None:
            device.copy(memory, self._arena)
            return
        for home, place in zip(self._homes, self._places, strict=True):
            if place.stop > place.start:
                flat = home.as_strided((home.numel(),), (1,)) if _is_dense(home) else home.contiguous().flatten()
                device.copy(memory[place.start : place.stop], flat.view(torch.uint8))

    def bind(self, memory: Tensor) -> None:
        """Lets the tensors look at what was fetched."""
        self.is_bound = True
        for tensor, place in zip(self._tensors, self._places, strict=True):
            tensor.data = place.view(memory)

    def unbind(self) -> None:
        """Lets the tensors look home again; nothing is copied back, for nothing has written to them."""
        for tensor, home in zip(self._tensors, self._homes, strict=True):
            tensor.data = home
        self.is_bound = self.is_held = False


def _arrange(homes: Iterable[Tensor]) -> list[Place]:
    """Places one after the other; a tensor keeps its order of strides, on which kernels may depend."""
    places: list[Place] = []
    for home in homes:
        start = _round_up(places[-1].stop, ALIGNMENT) if places else 0
        strides = home.stride() if _is_dense(home) else torch.empty_like(home, device="meta").contiguous().stride()
        size = home.numel() * home.element_size()
        places.append(Place(start, start + size, home.dtype, tuple(home.shape), tuple(strides)))
    return places


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill their memory without gaps, in whatever order of axes."""
    axes = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1)
    expected = 1
    for stride, size in axes:
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _page_aligned(num_bytes: int, device: torch.device) -> Tensor:
    """Memory on the device of the homes, [num_bytes] uint8, that shares no page with any other."""
    memory = torch.empty(_round_up(num_bytes, PAGE) + PAGE, dtype=torch.uint8, device=device)
    start = 0 if memory.is_meta else -memory.data_ptr() % PAGE
    return memory[start : start + num_bytes]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _unpin(unpin: Callable[[], None], arena: Tensor) -> None:  # noqa: ARG001 (memory must outlive its being pinned)
    unpin()
