"""A .safetensors file written tensor by tensor, which exists once it is whole.

Source: the format as the safetensors package documents it: a length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import TensorInfo
from .safetensors_file import DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_MULTIPLE = 8
OPEN_FILES = Path("/proc/self/fd")


class SafetensorsWriter:
    """Takes the tensors of a file in any order; each goes to its place at once."""

    def __init__(self, file: BinaryIO, tensors: Mapping[str, TensorInfo], places: Mapping[str, int]) -> None:
        self._file, self._tensors, self._places = file, tensors, places
        self._missing = set(tensors)

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor of the shape and dtype that were promised for it."""
        promised = self._tensors[name]
        if tensor.shape != promised.shape or tensor.dtype != promised.dtype:
            raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}, promised as {promised}")
        self._file.seek(self._places[name])
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            self._file.write(flat.view(torch.uint8).numpy().data)
        self._missing.remove(name)

    def check(self) -> None:
        """Raises ValueError for tensors that were promised and not written."""
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were never written, such as {min(self._missing)}")


@contextmanager
def writing(path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> Iterator[SafetensorsWriter]:
    """Opens a file that takes its name at the end, and is gone on any failure.

    Args:
        tensors: what will be written, by name.
    Raises:
        CheckpointError: the disk has no room for it.
    """
    header, places, num_bytes = _layout(tensors, metadata)
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        raise CheckpointError(
            f"{path.name} needs {num_bytes / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB left; "
            "make room or choose another folder"
        )
    with _appearing(path) as file:
        file.write(header)
        file.truncate(num_bytes)
        writer = SafetensorsWriter(file, tensors, places)
        yield writer
        writer.check()


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name at the end.

    Until then it has none, where the system can do that, so that a process that is killed leaves nothing behind.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = _nameless_file(path.parent)
    try:
        with unfinished.open("wb") if descriptor is None else os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if descriptor is not None:
                _give_name(descriptor, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _nameless_file(folder: Path) -> int | None:
    """A new file without a name; None where the system or the file system has no such thing."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not OPEN_FILES.is_dir():
        return None
    try:
        return os.open(folder, flag | os.O_RDWR, 0o666)
    except OSError:  # not on every file system; what else may be wrong shows when a named file is made
        return None


def _give_name(descriptor: int, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # with a folder given, Python follows the link to the file itself
        os.link(OPEN_FILES / str(descriptor), path, src_dir_fd=folder)
    finally:
        os.close(folder)


def _layout(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """The header, where each tensor begins, and the size of the whole file."""
    # the widest numbers first, so that all of them lie at multiples of their size
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, end = {}, 0
    for name in names:
        info, starts[name] = tensors[name], end
        end += prod(info.shape) * info.dtype.itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_MULTIPLE)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + start for name, start in starts.items()}, len(header) + end
