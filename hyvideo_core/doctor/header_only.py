"""Files whose weights cannot be read: for those who are to look at headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptFileError
from ..loading.checkpoint import Checkpoint, ReadTensor
from ..loading.comfy_quant import MARK
from ..loading.pickle_file import PickleFile

MAX_NOTE_BYTES = 4096


@contextmanager
def _reading_notes(file: Checkpoint) -> Iterator[ReadTensor]:
    """Reads short notes in bytes from a file; its weights come without numbers."""
    with ExitStack() as stack:
        opened: list[ReadTensor] = []

        def read(name: str) -> Tensor:
            info = file.tensors[name]
            is_note = info.dtype == torch.uint8 and len(info.shape) == 1 and info.shape[0] <= MAX_NOTE_BYTES
            if name.endswith(f".{MARK}") and not is_note:
                raise CorruptFileError(f"{file.name}: {name:.100} is no short text; download it again")
            if not is_note:
                return torch.empty(info.shape, dtype=info.dtype, device="meta")
            if not opened:
                opened.append(stack.enter_context(file.reading()))
            return opened[0](name)

        yield read


@dataclass(frozen=True)
class HeaderOnly(Checkpoint):
    """A file whose weights cannot be read: tensors have shapes and no numbers, except for short notes in bytes."""

    inner: Checkpoint | None = None

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        assert self.inner is not None
        with _reading_notes(self.inner) as read:
            yield read


@dataclass(frozen=True)
class HeaderOnlyPickle(PickleFile):
    """The same for a pickle, which some ways of storing weights are asked for by its type."""

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        plain = PickleFile(path=self.path, tensors=self.tensors, config=self.config, metadata=self.metadata)
        with _reading_notes(plain) as read:
            yield read


def header_only(checkpoint: Checkpoint) -> HeaderOnly | HeaderOnlyPickle:
    """The file without its weights; what it says of them in a few bytes can be read."""
    parts: dict[str, Any] = {
        "path": checkpoint.path,
        "tensors": checkpoint.tensors,
        "config": checkpoint.config,
        "metadata": checkpoint.metadata,
    }
    return HeaderOnlyPickle(**parts) if isinstance(checkpoint, PickleFile) else HeaderOnly(**parts, inner=checkpoint)
