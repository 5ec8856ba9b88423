"""A torch.save file, opened without executing anything that it holds."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from ..errors import CorruptFileError, UntrustedFileError
from .checkpoint import Checkpoint, ReadTensor, TensorInfo, parse_config
from .first_bytes import PICKLE, what_it_is

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPER_KEYS = ("module", "state_dict", "model", "ema", "params_ema", "params")
REMAP_BYTES = 512 * 2**20
MAX_WRAPPERS = 8  # a table may hold itself
# what torch.load raises where the bytes are not those of a pickle
DAMAGES = (
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    RecursionError,
    MemoryError,
    OSError,
    BadZipFile,
    struct.error,
)


class PickleFile(Checkpoint):
    """A torch.save file."""

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        weights: dict[str, Tensor] = {}
        num_read = REMAP_BYTES

        def read(name: str) -> Tensor:
            # tensors that are converted leave their pages in the mapping; a new one lets go of them
            nonlocal num_read, weights
            if num_read >= REMAP_BYTES:
                weights, num_read = self._map(), 0
            if weights[name].is_meta:
                raise CorruptFileError(f"{self.name}: {name:.100} was saved without its numbers; download it again")
            num_read += weights[name].nbytes
            return weights[name]

        yield read

    def _map(self) -> dict[str, Tensor]:
        # weights made in inference mode could never be trained
        with torch.inference_mode(False):
            return _unwrap(load_pickle(self.path, "cpu"), self.name)[0]


def open_pickle(path: Path) -> PickleFile:
    """Names and shapes in a torch.save file, from inside the wrappers that trainers put around them.

    Raises:
        UntrustedFileError: it holds more than tensors, or this PyTorch would execute it.
        CorruptFileError: damaged, or without tensors.
    """
    weights, config = _unwrap(load_pickle(path, "meta"), path.name)
    size = path.stat().st_size
    for name, value in weights.items():
        if value.layout != torch.strided or value.is_quantized:
            raise CorruptFileError(
                f"{path.name}: {name:.100} is a sparse or quantized tensor, which no model has; use the weights file"
            )
        # a tensor may repeat its storage, and so claim any size
        if value.numel() * value.element_size() > size:
            raise CorruptFileError(
                f"{path.name} is damaged: {name:.100} of shape {list(value.shape)} is larger than the file; "
                "download it again"
            )
    infos = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in weights.items()}
    return PickleFile(path=path, tensors=infos, config=config)


def load_pickle(path: Path, device: str) -> Any:
    """What a torch.save file holds.

    Raises:
        UntrustedFileError: it holds more than tensors and plain values, or this PyTorch would execute it.
        CorruptFileError: it is damaged.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 6):
        raise UntrustedFileError(
            f"{path.name} is a pickle, and PyTorch {torch.__version__} may execute code from one even with "
            "weights_only; use a .safetensors file, or PyTorch 2.6 or newer"
        )
    try:
        # files from before PyTorch 1.6 are no zip archives and cannot be mapped
        is_zip = is_zipfile(path)
        if is_zip:
            _refuse_packed(path)
        return torch.load(path, map_location=device, weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        _refuse_foreign(path, error)
        raise UntrustedFileError(
            f"{path.name} holds more than tensors and was not opened; use a .safetensors file"
        ) from error
    except DAMAGES as error:
        _refuse_foreign(path, error)
        raise CorruptFileError(f"{path.name} is not a readable PyTorch file; download it again") from error


def _refuse_packed(path: Path) -> None:
    """Compressed members, which torch.save never writes, could unfold to any size."""
    with ZipFile(path) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != ZIP_STORED]
    if packed:
        raise CorruptFileError(f"{path.name} is compressed, which PyTorch's files are not; download it again")


def _refuse_foreign(path: Path, error: Exception) -> None:
    """Names a file that is no pickle at all."""
    if what := what_it_is(path, PICKLE):
        raise CorruptFileError(f"{path.name} is not a PyTorch file: {what}") from error


def _unwrap(content: Any, name: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The flat table of tensors inside the layers that trainers put around it, and the config beside it."""
    config: Mapping[str, Any] = {}
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, dict):
            break
        given = content.get("config")
        if isinstance(given, dict | str):
            config = given if isinstance(given, dict) else parse_config(given, name)
        inner = next((table for key in WRAPPER_KEYS if isinstance(table := content.get(key), dict) and table), None)
        if inner is None:
            weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
            if weights:
                return weights, config
            break
        content = inner
    raise CorruptFileError(
        f"{name} holds no table of tensors, neither by itself nor as its {', '.join(WRAPPER_KEYS)}; "
        "use the model's weights file"
    )
