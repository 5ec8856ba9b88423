"""What streaming needs of a device: memory, copies that run beside the computation, and events between the two."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """A queue of work, with the methods of torch.cuda.Stream that are used here."""

    def record_event(self) -> Any:
        """A mark behind all work that was queued so far."""

    def wait_event(self, event: Any) -> None:
        """Lets work that is queued from now on wait until a mark of any stream is reached."""

    def synchronize(self) -> None:
        """Blocks until all work is done."""


class StreamDevice(Protocol):
    """A device with two queues. Memory that is freed may be used again by whatever is queued on `compute` later.

    Attributes:
        device: as PyTorch names it.
        copies: where `copy` queues.
        can_pin: `pin` is worth moving weights for.
    """

    device: torch.device
    copies: Stream
    can_pin: bool

    @property
    def compute(self) -> Stream:
        """Where the caller's operations queue."""

    def allocate(self, num_bytes: int) -> Tensor:
        """Memory of the device, [num_bytes] uint8, free to use for what is queued on `compute` from now on."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queues a copy of bytes from the host."""

    def pin(self, memory: Tensor) -> Callable[[], None] | None:
        """Lets copies from a piece of host memory run beside the computation.

        Returns:
            What ends that, to be called before the memory is freed; None where the system refuses.
        """


class DoneAtOnce:
    """A queue for devices on which every call returns when its work is done, or which keep one order themselves."""

    def record_event(self) -> None:
        """See Stream."""

    def wait_event(self, event: None) -> None:
        """See Stream."""

    def synchronize(self) -> None:
        """See Stream."""


class PlainDevice:
    """Any device without a second queue, the CPU and meta included: copies run between the blocks."""

    can_pin = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies: Stream = DoneAtOnce()

    @property
    def compute(self) -> Stream:
        """See StreamDevice."""
        return self.copies

    def allocate(self, num_bytes: int) -> Tensor:
        """See StreamDevice."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See StreamDevice."""
        target.copy_(source)

    def pin(self, memory: Tensor) -> None:  # noqa: ARG002
        """See StreamDevice; there is nothing that it would be good for."""
        return


class CudaDevice:
    """An NVIDIA or AMD GPU, with a stream of its own for copies."""

    can_pin = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies: Stream = torch.cuda.Stream(device)
        self._has_refused = False

    @property
    def compute(self) -> Stream:
        """See StreamDevice."""
        return torch.cuda.current_stream(self.device)

    def allocate(self, num_bytes: int) -> Tensor:
        """See StreamDevice."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See StreamDevice."""
        with torch.cuda.stream(self.copies):  # type: ignore[arg-type]  # it is one
            target.copy_(source, non_blocking=True)

    def pin(self, memory: Tensor) -> Callable[[], None] | None:
        """See StreamDevice. Registers the memory: PyTorch's own pinned memory comes in powers of two."""
        runtime: Any = torch.cuda.cudart()
        address = memory.data_ptr()
        if self._has_refused or int(runtime.cudaHostRegister(address, memory.nbytes, 0)) == 0:
            return None if self._has_refused else lambda: runtime.cudaHostUnregister(address)
        self._has_refused = True
        logger.info(
            "the system lets no more memory be pinned, so some weights are copied more slowly; "
            "closing other programs or a smaller precision helps"
        )
        self._forget_error()
        return None

    def _forget_error(self) -> None:
        """Takes the refusal out of CUDA's memory, where the next kernel would report it as its own."""
        try:
            torch.zeros(1, device=self.device).add_(1)
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            logger.debug("the refusal was reported once and is forgotten", exc_info=True)


def open_device(device: torch.device) -> StreamDevice:
    """The way to stream to a device."""
    return CudaDevice(device) if device.type == "cuda" else PlainDevice(device)
