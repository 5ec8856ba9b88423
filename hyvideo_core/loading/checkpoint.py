"""Weight files opened lazily: names, shapes and dtypes first, tensors only when asked for."""

from __future__ import annotations

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, CorruptFileError, UntrustedFileError

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPER_KEYS = ("module", "state_dict", "model", "ema", "params_ema", "params")
MAX_HEADER_BYTES = 100_000_000
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

ReadTensor = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A weight file, or a folder of shards, of which only the headers were read.

    Attributes:
        path: the file or folder.
        tensors: shape and dtype by name.
        config: what the file says of sizes that shapes cannot tell (its `config` entry), else empty.
        metadata: its other text entries.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name without its folder: messages never show a user's paths."""
        return self.path.name

    @abstractmethod
    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """Opens the file; yields a function from a tensor's name to the tensor, on the CPU, mapped where possible."""


class SafetensorsFile(Checkpoint):
    """One .safetensors file, memory-mapped."""

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        try:
            file = safe_open(self.path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise CorruptFileError(f"{self.name} cannot be read ({error}); download it again") from error
        with file as handle:
            yield handle.get_tensor


class ShardedFolder(Checkpoint):
    """Several .safetensors files that hold one model, as Hugging Face folders do."""

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        with ExitStack() as stack:
            readers = {}
            for file in safetensors_in(self.path):
                shard = _open_safetensors(file)
                read = stack.enter_context(shard.reading())
                readers.update(dict.fromkeys(shard.tensors, read))
            yield lambda name: readers[name](name)


class PickleFile(Checkpoint):
    """A torch.save file, opened without executing anything that it holds."""

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        # weights made in inference mode could never be trained
        with torch.inference_mode(False):
            weights, _ = _unwrap(_load_pickle(self.path, "cpu"), self.name)
        yield weights.__getitem__


def open_checkpoint(path: Path) -> Checkpoint:
    """Headers of a .safetensors file, a folder of them, or a PyTorch pickle.

    Raises:
        CorruptFileError: truncated, or not what its name says.
        UntrustedFileError: a pickle on a PyTorch that would execute it.
        CheckpointError: no such file, or a format that is not read.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path.name} does not exist; choose a file from the list, or refresh it")
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        return _open_safetensors(path)
    if suffix in PICKLE_SUFFIXES:
        weights, config = _unwrap(_load_pickle(path, "meta"), path.name)
        infos = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in weights.items()}
        return PickleFile(path=path, tensors=infos, config=config)
    known = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES)
    raise CheckpointError(f"{path.name}: files ending in '{suffix}' are not read; use one of {known}")


def safetensors_in(folder: Path) -> list[Path]:
    """The shards of a folder: those its index names, else every .safetensors file in it.

    Raises:
        UntrustedFileError: the index points outside the folder.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptFileError(f"{indexes[0].name} is not a list of shards; download the folder again") from error
    for name in names:
        if not (folder / str(name)).resolve().is_relative_to(folder.resolve()):
            raise UntrustedFileError(f"{indexes[0].name} names a file outside its folder; do not use this model")
    return [folder / str(name) for name in names]


def _open_folder(path: Path) -> ShardedFolder:
    files = safetensors_in(path)
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        what = f"lacks {', '.join(missing[:3])}" if missing else "holds no .safetensors file"
        raise CheckpointError(f"the folder {path.name} {what}; download the whole model again")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors.update(_open_safetensors(file).tensors)
    return ShardedFolder(path=path, tensors=tensors, config=_folder_config(path / "config.json"))


def _folder_config(path: Path) -> Mapping[str, Any]:
    return _parse_config(path.read_text(encoding="utf-8"), path.name) if path.is_file() else {}


def _open_safetensors(path: Path) -> SafetensorsFile:
    header, data_bytes = _read_header(path)
    metadata = header.pop("__metadata__", {})
    try:
        metadata = dict(metadata)
        tensors = {name: _tensor_info(path, name, entry) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise CorruptFileError(f"{path.name} has a damaged header; download it again") from error
    if data_bytes < end:
        raise CorruptFileError(
            f"{path.name} is truncated: {data_bytes} bytes of tensors, its header promises {end}; download it again"
        )
    config = _parse_config(metadata.pop("config", "{}"), path.name)
    return SafetensorsFile(path=path, tensors=tensors, config=config, metadata=metadata)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file and the number of bytes behind it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        if length > MAX_HEADER_BYTES:
            raise CorruptFileError(f"{path.name} is not a safetensors file: {_what_it_is(path)}")
        if length > size - 8:
            raise CorruptFileError(
                f"{path.name} is truncated: {size} bytes, its header alone has {length}; download it again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CorruptFileError(f"{path.name} is not a safetensors file: {_what_it_is(path)}") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{path.name} is not a safetensors file: {_what_it_is(path)}")
    return header, size - 8 - length


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run 'git lfs pull' or download the file itself"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, saved in place of the file; download the file itself"
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "it is a PyTorch pickle; rename it to .pt"
    if not start:
        return "it is empty; download it again"
    return "its first bytes are not a header; download it again"


def _tensor_info(path: Path, name: str, entry: Mapping[str, Any]) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path.name}: tensor {name} is stored as {entry['dtype']}, which is not read; "
            "use a bf16, fp16, fp32 or fp8 file"
        )
    return TensorInfo(tuple(int(size) for size in entry["shape"]), DTYPES[entry["dtype"]])


def _parse_config(text: str, name: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, TypeError) as error:
        raise CorruptFileError(f"{name}: its config entry is not JSON; write it again") from error
    if not isinstance(config, dict):
        raise CorruptFileError(f"{name}: its config entry is not a JSON object; write it again")
    return config


def _load_pickle(path: Path, device: str) -> Any:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 6):
        raise UntrustedFileError(
            f"{path.name} is a pickle, and PyTorch {torch.__version__} may execute code from one even with "
            "weights_only; use a .safetensors file, or PyTorch 2.6 or newer"
        )
    try:
        # files from before PyTorch 1.6 are no zip archives and cannot be mapped
        return torch.load(path, map_location=device, weights_only=True, mmap=is_zipfile(path))
    except UnpicklingError as error:
        raise UntrustedFileError(
            f"{path.name} holds more than tensors and was not opened; use a .safetensors file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path.name} is not a readable PyTorch file; download it again") from error


def _unwrap(content: Any, name: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The flat table of tensors inside the layers that trainers put around it, and the config beside it."""
    config: Mapping[str, Any] = {}
    while isinstance(content, dict):
        if isinstance(content.get("config"), dict):
            config = content["config"]
        inner = next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), dict)), None)
        if inner is None:
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}, config
        content = inner
    raise CorruptFileError(f"{name} holds no table of tensors; use the model's weights file")
