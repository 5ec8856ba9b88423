"""A .safetensors file: its header checked in full, its tensors memory-mapped."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, CorruptFileError
from .checkpoint import Checkpoint, ReadTensor, TensorInfo, parse_config
from .first_bytes import SAFETENSORS, what_it_is
from .mapping import mapped

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
MAX_HEADER_BYTES = 20_000_000  # as Python's values they may take forty times as much; real ones have less than 1 MB
MAX_TENSORS = 100_000  # models have some thousands
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class SafetensorsFile(Checkpoint):
    """One .safetensors file, memory-mapped.

    Attributes:
        places: by name, where in the file a tensor's bytes begin, and what they are there; read again if not given.
    """

    places: Mapping[str, tuple[int, TensorInfo]] = field(default_factory=dict, repr=False)

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        places = self.places or open_safetensors(self.path).places

        def read(name: str) -> Tensor:
            start, info = places[name]
            return file.tensor(start, info.shape, info.dtype)

        with mapped(self.path) as file:
            yield read


def open_safetensors(path: Path) -> SafetensorsFile:
    """Header of a .safetensors file.

    Raises:
        CorruptFileError: truncated, damaged or another format.
        CheckpointError: a dtype that is not read.
    """
    header, num_bytes = _read_header(path)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata is not a table of texts")
    tensors, ranges = {}, {}
    for name, entry in header.items():
        tensors[name], ranges[name] = _tensor_entry(path, name, entry)
    _check_places(path, sorted(ranges.values()), num_bytes)
    data_start = path.stat().st_size - num_bytes
    places = {name: (data_start + start, tensors[name]) for name, (start, _) in ranges.items()}
    config = parse_config(metadata.pop("config", "{}"), path.name)
    return SafetensorsFile(path=path, tensors=tensors, config=config, metadata=metadata, places=places)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file and the number of bytes behind it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        if length > MAX_HEADER_BYTES:
            raise _no_header(path)
        if length > size - 8:
            raise CorruptFileError(
                f"{path.name} is truncated: {size} bytes, its header alone has {length}; download it again"
            )
        try:
            text = file.read(length).decode()
            header = json.loads(text, object_pairs_hook=_without_doubles)
            # names with halves of a surrogate pair could not even be printed
            json.dumps(header, ensure_ascii=False).encode()
        except _TwiceError as error:
            raise _damaged(path, f"it has {error!s:.100} twice") from error
        except (ValueError, RecursionError) as error:
            raise _no_header(path) from error
    if not isinstance(header, dict):
        raise _no_header(path)
    if len(header) > MAX_TENSORS:
        raise _damaged(path, f"it lists {len(header)} tensors, more than any model has")
    return header, size - 8 - length


class _TwiceError(ValueError):
    """A name that one table of a header has twice."""


def _without_doubles(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON table; of two entries of one name, readers would disagree which one holds."""
    table = dict(entries)
    if len(table) != len(entries):
        raise _TwiceError(Counter(name for name, _ in entries).most_common(1)[0][0])
    return table


def _no_header(path: Path) -> CorruptFileError:
    what = what_it_is(path, SAFETENSORS) or "its first bytes are not a header; download it again"
    return CorruptFileError(f"{path.name} is not a safetensors file: {what}")


def _tensor_entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """What the header says of a tensor, and where its bytes begin and end."""
    if not isinstance(entry, Mapping):
        raise _damaged(path, f"its entry {name:.100} is no table")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise _damaged(path, f"its entry {name:.100} has no shape or place that could be one")
    kind = entry.get("dtype")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(
            f"{path.name}: tensor {name:.100} is stored as {entry.get('dtype')!s:.40}, which is not read; "
            "use a bf16, fp16, fp32 or fp8 file"
        )
    dtype = DTYPES[kind]
    # a mark may be empty; an empty matrix could claim any size for free
    if prod(shape) * dtype.itemsize != offsets[1] - offsets[0] or (len(shape) > 1 and 0 in shape):
        raise _damaged(path, f"its entry {name:.100} of shape {list(shape)!s:.60} cannot have the bytes given to it")
    return TensorInfo(shape, dtype), (offsets[0], offsets[1])


def _sizes(numbers: Any) -> tuple[int, ...] | None:
    """A list of whole numbers from 0 on; None for every other value."""
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        return None
    return tuple(numbers)


def _check_places(path: Path, places: list[tuple[int, int]], num_bytes: int) -> None:
    """Tensors lie one behind the other, without gaps, up to the end of the file."""
    end = max((end for _, end in places), default=0)
    if num_bytes < end:
        raise CorruptFileError(
            f"{path.name} is truncated: {num_bytes} bytes of tensors, its header promises {end}; download it again"
        )
    for (_, before), (start, _) in zip([(0, 0), *places], [*places, (num_bytes, num_bytes)], strict=True):
        if before != start:
            raise _damaged(path, f"its tensors overlap or leave a gap between bytes {before} and {start}")


def _damaged(path: Path, what: str) -> CorruptFileError:
    return CorruptFileError(f"{path.name} has a damaged header: {what}; download it again")
