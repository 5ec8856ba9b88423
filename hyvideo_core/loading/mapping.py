"""Tensors on a mapped file, whose pages leave memory with them.

A tensor that stays as it is in the file takes no memory of its own: the system reads its pages when they are used and
may drop them again. A tensor that is converted leaves its pages behind in the process, and a whole file of those would
count as a second copy of the model; so they are given back as soon as the tensor is gone.
"""

from __future__ import annotations

import errno
import mmap
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, CorruptFileError

MAP_NORESERVE = 0x4000  # the same on x86 and ARM; Python has no name for it before 3.13


class MappedFile:
    """A file in memory, of which tensors are made without copies. Writing to them never reaches the file."""

    def __init__(self, path: Path, content: mmap.mmap | None) -> None:
        self._path = path
        self._content = content  # empty files cannot be mapped

    def tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor whose bytes begin at `start`; it keeps the file mapped.

        Raises:
            CorruptFileError: the file ends before.
        """
        length = prod(shape) * dtype.itemsize
        if not length:
            return torch.empty(shape, dtype=dtype)
        if self._content is None or start + length > len(self._content):
            raise CorruptFileError(f"{self._path.name} has been cut off since it was opened; download it again")
        # weights made in inference mode could never be trained
        with torch.inference_mode(False):
            flat = torch.frombuffer(self._lent(start, length), dtype=torch.uint8)
            aligned = flat if start % dtype.itemsize == 0 else flat.clone()
            return aligned.view(dtype).reshape(shape)

    def _lent(self, start: int, length: int) -> memoryview:
        assert self._content is not None
        part = memoryview(self._content)[start : start + length]
        # the tensor holds on to this object, so it goes when the last view of the tensor goes
        weakref.finalize(part, _forget, self._content, start, length).atexit = False
        return part


@contextmanager
def mapped(path: Path) -> Iterator[MappedFile]:
    """Opens a file for as long as its tensors live.

    Raises:
        CorruptFileError: it cannot be read.
        CheckpointError: it is larger than the system allows.
    """
    try:
        with path.open("rb") as file:
            is_empty = not path.stat().st_size
            content = None if is_empty else _map(file.fileno())
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise CheckpointError(
                f"{path.name} is larger than what this system lets a program map into memory; enlarge its swap space, "
                "or use a smaller file such as an fp8 one"
            ) from error
        raise CorruptFileError(f"{path.name} cannot be read ({error.strerror}); download it again") from error
    # not closed at the end: tensors that stay in the file need it, and it closes with the last of them
    yield MappedFile(path, content)


def _map(descriptor: int) -> mmap.mmap:
    """A whole file as memory of our own, so that writing to a tensor neither fails nor reaches the file."""
    if sys.platform == "linux":
        # else Linux would set memory aside for all of it, and refuse a file that is larger than memory and swap
        return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)


def _forget(content: mmap.mmap, start: int, length: int) -> None:
    """Gives back the whole pages inside a range; those at its ends may belong to neighbours too."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(content, "madvise"):
        content.madvise(mmap.MADV_DONTNEED, first, last - first)
