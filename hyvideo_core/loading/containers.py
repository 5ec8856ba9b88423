"""Any container of weights by its path: one file, shards with or without an index, a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CorruptFileError, UntrustedFileError
from .checkpoint import Checkpoint, ReadTensor, TensorInfo, parse_config
from .coverage import enumerated
from .gguf import GGUF_SUFFIXES, open_gguf
from .pickle_file import PICKLE_SUFFIXES, open_pickle
from .safetensors_file import SAFETENSORS_SUFFIXES, open_safetensors

INDEX_SUFFIX = ".index.json"
FOLDER_ENDINGS = (".safetensors", ".bin")  # the older files only where there are no newer ones
MAX_JSON_BYTES = 16_000_000  # as Python's values they may take forty times as much
# where diffusers' folders keep the weights of each part
SUBFOLDERS = ("transformer", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class ShardedFiles(Checkpoint):
    """Several files that hold one model, as Hugging Face folders do.

    Attributes:
        homes: the shard that each tensor is read from.
    """

    homes: Mapping[str, Checkpoint] = field(default_factory=dict)

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        with ExitStack() as stack:
            shards = {shard.path: shard for shard in self.homes.values()}
            readers = {path: stack.enter_context(shard.reading()) for path, shard in shards.items()}
            yield lambda name: readers[self.homes[name].path](name)


def open_checkpoint(path: Path, subfolders: Sequence[str] = SUBFOLDERS) -> Checkpoint:
    """Headers of a weight file, of the shards that an index names, or of a folder.

    Args:
        subfolders: where to look if a folder holds no weights itself; the first that does is taken.
    Raises:
        CorruptFileError: truncated, or not what its name says.
        UntrustedFileError: a pickle that could execute code, or an index that leads out of its folder.
        CheckpointError: no such file, or a format that is not read.
    """
    try:
        if path.is_dir():
            return _open_folder(path, subfolders)
        if not path.is_file():
            raise CheckpointError(f"{path.name} does not exist; choose a file from the list, or refresh it")
        return _open_index(path) if path.name.lower().endswith(INDEX_SUFFIX) else _open_file(path)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error.strerror}); check that the file and its folder may be read"
        ) from error


def _open_file(path: Path) -> Checkpoint:
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        return open_safetensors(path)
    if suffix in PICKLE_SUFFIXES:
        return open_pickle(path)
    if suffix in GGUF_SUFFIXES:
        return open_gguf(path)
    known = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES + GGUF_SUFFIXES)
    raise CheckpointError(f"{path.name}: files ending in '{suffix}' are not read; use one of {known}")


def _open_folder(path: Path, subfolders: Sequence[str]) -> Checkpoint:
    for folder in (path, *(path / name for name in subfolders)):
        for ending in FOLDER_ENDINGS:
            # a variant's name stands before the ending: model.fp16.safetensors.index.json
            indexes = sorted(_files(folder, ending + INDEX_SUFFIX), key=lambda file: (len(file.name), file.name))
            if indexes:
                return _open_index(indexes[0], path=folder)
            if files := sorted(_files(folder, ending)):
                return _open_shards(folder, files)
    raise CheckpointError(
        f"the folder {path.name} holds no {' or '.join(FOLDER_ENDINGS)} file, nor do {', '.join(subfolders)} in it; "
        "choose the weights file itself, or download the whole model again"
    )


def _files(folder: Path, ending: str) -> list[Path]:
    """The files of a folder whose names end so; whatever else has such a name could not be read, or never end."""
    return [path for path in folder.glob(f"*{ending}") if _is_file(path)]


def _open_shards(folder: Path, files: Sequence[Path]) -> Checkpoint:
    """All files of a folder without an index."""
    homes: dict[str, Checkpoint] = {}
    for shard in map(_open_file, files):
        if twice := next((name for name in shard.tensors if name in homes), None):
            raise CheckpointError(
                f"{shard.name} and {homes[twice].name} in the folder {folder.name} both hold {twice:.100}; "
                "choose one of these files instead of the folder"
            )
        homes.update(dict.fromkeys(shard.tensors, shard))
    return _joined(folder, homes, _folder_config(folder))


def _open_index(index: Path, path: Path | None = None) -> Checkpoint:
    """The shards that an index names; tensors that it forgets count too, so that a loader can name them."""
    weight_map = _weight_map(index)
    folder = index.parent
    files = {name: folder / name for name in sorted(set(weight_map.values()))}
    for file in files.values():
        if not _lies_in(folder, file):
            raise UntrustedFileError(
                f"{index.name} names a file outside its folder, itself or through a link; do not use this model, or "
                "put the files themselves in the place of links"
            )
    if missing := [name for name, file in files.items() if not _is_file(file)]:
        raise CheckpointError(
            f"{index.name} lacks {', '.join(missing[:3])} ({len(missing)} of {len(files)} shards); "
            "download the whole model again"
        )
    shards = {name: _open_file(file) for name, file in files.items()}
    homes: dict[str, Checkpoint] = {}
    for shard in shards.values():
        homes.update(dict.fromkeys(shard.tensors, shard))
    homes.update({name: shards[file] for name, file in weight_map.items()})
    for file_name, shard in shards.items():
        lost = [name for name, home in homes.items() if home is shard and name not in shard.tensors]
        if lost:
            raise CorruptFileError(
                f"{file_name} lacks {enumerated(lost, 'tensor')} (promised by {index.name}); "
                "download the whole model again"
            )
    return _joined(path or index, homes, _folder_config(folder))


def _joined(path: Path, homes: Mapping[str, Checkpoint], config: Mapping[str, Any]) -> Checkpoint:
    shards = list({shard.path: shard for shard in homes.values()}.values())
    tensors: dict[str, TensorInfo] = {name: shard.tensors[name] for name, shard in homes.items()}
    metadata = {key: value for shard in shards for key, value in shard.metadata.items()}
    inner = {key: value for shard in shards for key, value in shard.config.items()}
    return ShardedFiles(path=path, tensors=tensors, config={**inner, **config}, metadata=metadata, homes=homes)


def _weight_map(index: Path) -> Mapping[str, str]:
    """The shard of each tensor, as an index gives it."""
    try:
        weight_map = json.loads(_read_text(index))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{index.name} is not a list of shards; download the folder again") from error
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) and file for file in weight_map.values()):
        raise CorruptFileError(f"{index.name} is not a list of shards; download the folder again")
    if not weight_map:
        raise CorruptFileError(f"{index.name} lists no shards; download the folder again")
    return weight_map


def _lies_in(folder: Path, file: Path) -> bool:
    """Whether a path stays in a folder after every link is followed; names that no file can have lead nowhere."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows
        return False


def _folder_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    return parse_config(_read_text(path), path.name) if path.is_file() else {}


def _read_text(path: Path) -> str:
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise CorruptFileError(f"{path.name} has {size} bytes, far more than such a list needs; download it again")
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors on Windows put a mark before the text
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path.name} is not text; download it again") from error
