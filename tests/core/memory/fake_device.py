"""A device that is as late and as strict as a real one may be.

Copies happen at the last moment that the marks allow, until then their target holds garbage. Every operation on device
memory is checked: what it reads must have been copied, by the order of marks and not by luck, and what a copy
overwrites must have been read by all who needed it. Any call can be made to fail.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GARBAGE = 0xA5


class DeviceError(Exception):
    """What a call is made to fail with."""


class Interrupt(BaseException):
    """As newer hosts stop a run."""


class Memory(bytearray):
    """Device memory; a class of its own, so that it can be watched being freed."""


@dataclass
class Copy:
    target: weakref.ref
    offset: int
    source: Tensor
    number: int


@dataclass
class FakeStream:
    """A queue; `knows` says up to where each queue is known to be done when the next work of this one starts."""

    name: str
    device: FakeDevice
    position: int = 0
    knows: dict[str, int] = field(default_factory=lambda: {"copies": 0, "compute": 0})

    def record_event(self) -> dict[str, int]:
        self.device.may_fail("record")
        return self.knows | {self.name: self.position}

    def wait_event(self, event: dict[str, int]) -> None:
        self.device.may_fail("wait")
        self.knows = {name: max(self.knows[name], event[name]) for name in self.knows}
        if self.name == "compute":
            self.device.perform_copies(self.knows["copies"])

    def synchronize(self) -> None:
        self.device.perform_copies(self.position)
        self.device.may_fail("synchronize")


class FakeDevice:
    """A stream device on the CPU. Enter it to have operations checked."""

    can_pin = True

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.copies, self.compute = FakeStream("copies", self), FakeStream("compute", self)
        self.pending: list[Copy] = []
        self.reads: list[tuple[int, int, int]] = []  # first and last byte, position on `compute`
        self.writes: list[tuple[int, int, int]] = []  # first and last byte, position on `copies`
        self.alive: list[weakref.ref] = []
        self.faults: list[str] = []
        self.num_calls, self.fails_at, self.failure = 0, -1, DeviceError
        self.peak = self.num_copied = self.num_pinned = 0
        self.checks = _Checks(self)

    # what streaming calls

    def allocate(self, num_bytes: int) -> Tensor:
        self.may_fail("allocate")
        if num_bytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        memory = Memory(bytes([GARBAGE]) * num_bytes)
        self.alive.append(weakref.ref(memory))
        self.peak = max(self.peak, self.live())
        first = _address(memory)
        # what is known of memory that was freed is of no use
        spans = [(_address(ref()), _address(ref()) + len(ref())) for ref in self.alive[:-1]]
        for entries in (self.reads, self.writes):
            entries[:] = [entry for entry in entries if any(_overlap(entry, *span) for span in spans)]
        # somebody on `compute` may have used this memory until now
        self.compute.position += 1
        self.reads.append((first, first + num_bytes, self.compute.position))
        return torch.frombuffer(memory, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.may_fail("copy")
        first, last = _span(target)
        if any(_overlap(entry, first, last) and entry[2] > self.copies.knows["compute"] for entry in self.reads):
            self.faults.append("a copy may overwrite what is still in use")
        self.copies.position += 1
        self.writes = [entry for entry in self.writes if not (first <= entry[0] and entry[1] <= last)]
        self.writes.append((first, last, self.copies.position))
        self.num_copied += target.numel()
        ctypes.memset(first, GARBAGE, target.numel())
        owner = next(
            ref for ref in self.alive if (m := ref()) is not None and _address(m) <= first < _address(m) + len(m)
        )
        self.pending.append(Copy(owner, first - _address(owner()), source.clone(), self.copies.position))

    def pin(self, memory: Tensor):
        self.may_fail("pin")
        self.num_pinned += memory.numel()

        def unpin() -> None:
            self.num_pinned -= memory.numel()

        return unpin

    # what tests ask

    def live(self) -> int:
        """Bytes of device memory that are not freed."""
        self.alive = [ref for ref in self.alive if ref() is not None]
        return sum(len(ref()) for ref in self.alive)

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in device memory."""
        first = tensor.data_ptr()
        return any((m := ref()) is not None and _address(m) <= first < _address(m) + len(m) for ref in self.alive)

    def fail_at(self, call: int, failure: type[BaseException] = DeviceError) -> None:
        """Makes the call with this number from now on fail."""
        self.num_calls, self.fails_at, self.failure = 0, call, failure

    def may_fail(self, what: str) -> None:
        """Counts a call."""
        self.num_calls += 1
        if self.num_calls == self.fails_at:
            raise self.failure(what)

    def perform_copies(self, until: int) -> None:
        """Does the copies up to a mark."""
        while self.pending and self.pending[0].number <= until:
            copy = self.pending.pop(0)
            memory = copy.target()
            if memory is None:
                self.faults.append("a copy went into memory that was freed")
                continue
            source = copy.source.contiguous()
            ctypes.memmove(_address(memory) + copy.offset, source.data_ptr(), source.numel())

    def note_reads(self, tensors: list[Tensor]) -> None:
        """Checks what an operation on `compute` takes."""
        self.compute.position += 1
        spans = {_span(tensor) for tensor in tensors if tensor.numel()}
        for first, last in spans:
            if not any((m := ref()) is not None and _address(m) <= first < _address(m) + len(m) for ref in self.alive):
                continue
            if any(_overlap(entry, first, last) and entry[2] > self.compute.knows["copies"] for entry in self.writes):
                self.faults.append("something was used before it was copied")
            self.reads = [entry for entry in self.reads if not (first <= entry[0] and entry[1] <= last)]
            self.reads.append((first, last, self.compute.position))

    def __enter__(self) -> FakeDevice:
        self.checks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.checks.__exit__(*error)


class _Checks(TorchDispatchMode):
    """Sees every operation; views read nothing."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.fake = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view:
            self.fake.note_reads([leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        return func(*args, **kwargs)


def _address(memory: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and past-last byte of a tensor without gaps."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def _overlap(entry: tuple[int, int, int], first: int, last: int) -> bool:
    return entry[0] < last and first < entry[1]
