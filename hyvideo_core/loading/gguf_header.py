"""The header of a GGUF file, read as if its author meant harm.

Every count and length is held against the bytes that are there before anything is read or kept, so that a damaged
file is refused in the time and memory that its own header takes.

Source: the GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NoReturn

from ..errors import CheckpointError, CorruptFileError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 2**16
MAX_HEADER_BYTES = 100_000_000  # the largest vocabularies take 10 MB
MAX_AXES = 8
MAX_THINGS = 100_000  # tensors, and entries of metadata; models have some thousands
LONGEST_KEPT_ARRAY = 64  # shapes and the like; vocabularies are skipped
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the header says of one tensor.

    Attributes:
        shape: the slowest axis first, as in PyTorch; the file has it the other way round.
        type_id: number of the storage type.
        offset: where its bytes begin, counted from the end of the header.
    """

    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A whole header.

    Attributes:
        values: metadata by key, without long arrays.
        tensors: by name.
        data_start: where in the file the tensors' offsets are counted from.
    """

    values: dict[str, Value]
    tensors: dict[str, StoredTensor]
    data_start: int


@dataclass(slots=True)
class _Cursor:
    """Reads forward through a file and never past its end."""

    content: memoryview
    name: str
    position: int = 0

    @property
    def end(self) -> int:
        return min(len(self.content), MAX_HEADER_BYTES)

    def take(self, num_bytes: int) -> int:
        """The position of the next bytes, which are there."""
        start = self.position
        if num_bytes > self.end - start:
            self.fail(f"its header promises {num_bytes} bytes at {start}, the file has {len(self.content)}")
        self.position = start + num_bytes
        return start

    def number(self, code: str) -> int:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self.content, self.take(layout.size))[0]

    def count(self, least_bytes: int, what: str, most: int = MAX_HEADER_BYTES) -> int:
        """A number of things of at least that many bytes each."""
        count = self.number("Q")
        if count > most or count * least_bytes > self.end - self.position:
            self.fail(f"its header promises {count} {what}, more than the file can hold")
        return count

    def text(self) -> str:
        length = self.count(1, "characters")
        start = self.take(length)
        try:
            return str(self.content[start : start + length], "utf-8")
        except UnicodeDecodeError:
            self.fail("its header has a text that is not UTF-8")

    def value(self, kind: int) -> Value | None:
        """A scalar, a text or a short array; None for a long one, which is passed over."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            self.fail(f"its header has a value of type {kind}, which does not exist")
        return self.number(SCALARS[kind])

    def array(self) -> tuple[Scalar, ...] | None:
        kind = self.number("I")
        if kind == STRING:
            count = self.count(8, "texts")
            if count > LONGEST_KEPT_ARRAY:
                self.skip_texts(count)
                return None
            return tuple(self.text() for _ in range(count))
        if kind not in SCALARS:
            self.fail(f"its header has an array of type {kind}, which is not read")
        width = struct.calcsize("<" + SCALARS[kind])
        count = self.count(width, "numbers")
        start = self.take(count * width)
        if count > LONGEST_KEPT_ARRAY:
            return None
        return struct.unpack_from(f"<{count}{SCALARS[kind]}", self.content, start)

    def skip_texts(self, count: int) -> None:
        """Passes over texts; a vocabulary and its merges are 400,000 of them."""
        length, position, end = struct.Struct("<Q"), self.position, self.end - 8
        for _ in range(count):
            if position > end:
                self.fail("its header ends within a list of texts")
            position += 8 + length.unpack_from(self.content, position)[0]
        self.position = position
        self.take(0)

    def fail(self, what: str) -> NoReturn:
        raise CorruptFileError(f"{self.name} is damaged: {what}; download it again")


def parse_gguf_header(content: memoryview, name: str) -> GgufHeader:
    """The header of a GGUF file.

    Args:
        content: the file's bytes; of a memory map only the header's part is read.
        name: the file's name, for messages.
    Raises:
        CorruptFileError: no GGUF file, or a damaged one.
        CheckpointError: an edition of the format that is not read.
    """
    cursor = _Cursor(content, name)
    if content[: len(MAGIC)] != MAGIC:
        raise CorruptFileError(f"{name} is not a GGUF file: it does not begin with {MAGIC.decode()}; download it again")
    cursor.take(len(MAGIC))
    _check_version(cursor.number("I"), name)
    num_tensors = cursor.count(24, "tensors", MAX_THINGS)
    num_values = cursor.count(13, "metadata entries", MAX_THINGS)
    values = {}
    for _ in range(num_values):
        key = cursor.text()
        value = cursor.value(cursor.number("I"))
        if key in values:
            cursor.fail(f"its header has {key:.100} twice")
        if value is not None:
            values[key] = value
    tensors: dict[str, StoredTensor] = {}
    for _ in range(num_tensors):
        key = cursor.text()
        if key in tensors:
            cursor.fail(f"its header names {key:.100} twice")
        tensors[key] = _tensor(cursor, key)
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT:
        cursor.fail(f"its header gives {alignment!r:.40} as alignment")
    return GgufHeader(values, tensors, data_start=-(-cursor.position // alignment) * alignment)


def _check_version(version: int, name: str) -> None:
    if version in VERSIONS:
        return
    what = "for big-endian machines" if version & 0xFFFF == 0 and version else f"of GGUF version {version}"
    raise CheckpointError(f"{name} is {what}, which is not read; download or convert it to version 3, little-endian")


def _tensor(cursor: _Cursor, name: str) -> StoredTensor:
    num_axes = cursor.number("I")
    if num_axes > MAX_AXES:
        cursor.fail(f"its header gives {name:.100} {num_axes} axes")
    sizes = [cursor.number("Q") for _ in range(num_axes)]
    return StoredTensor(tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q"))
