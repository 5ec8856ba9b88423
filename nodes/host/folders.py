"""Model folders and the rule that no name from a graph leaves them; the same with and without ComfyUI."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from ...hyvideo_core.errors import CheckpointError, UntrustedFileError

logger = logging.getLogger(__name__)

PACK_ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = PACK_ROOT / "embedded"
MODEL_EXTENSIONS = frozenset({".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt", ".gguf"})
INDEX_SUFFIX = ".index.json"
LONGEST_NAME, LONGEST_PATH = 255, 1000  # bytes of one name, as most file systems allow; characters of all together

TokenizerKind = Literal["llama", "clip"]
# what a folder must hold to count as a tokenizer: any one of these sets
TOKENIZER_FILES: dict[TokenizerKind, tuple[tuple[str, ...], ...]] = {
    "llama": (("tokenizer.json",),),
    "clip": (("vocab.json", "merges.txt"), ("tokenizer.json",)),
}
# where ComfyUI keeps the tokenizers it ships, relative to its own folder
HOST_TOKENIZERS: dict[TokenizerKind, str] = {
    "llama": "comfy/text_encoders/llama_tokenizer",
    "clip": "comfy/sd1_tokenizer",
}


def contained(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`, proved to lie there after every link is followed.

    The file need not exist. Both kinds of slash separate folders, so that graphs travel between systems.

    Raises:
        UntrustedFileError: an absolute name, one with `..` or a NUL, one that no file can have, or one that a link
            leads out of the folder.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or PureWindowsPath(name).drive:
        raise UntrustedFileError(f'"{name}" is an absolute path; give a name relative to the folder that is meant')
    if not name or "\0" in name or ".." in relative.parts:
        raise UntrustedFileError(f'"{name}" is not a plain name; give one that stays in its folder, without ".."')
    if any(len(part.encode(errors="replace")) > LONGEST_NAME for part in relative.parts) or len(name) > LONGEST_PATH:
        raise UntrustedFileError(f'"{name[:40]}..." is too long for the name of a file; shorten it')
    if not _stays_in(folder, folder / relative):
        raise UntrustedFileError(
            f'"{name}" leads through a link out of its folder; move the file into the folder, or add the '
            "folder that holds it to the model folders (extra_model_paths.yaml in ComfyUI, --models-dir here)"
        )
    return folder / relative


def _stays_in(folder: Path, path: Path) -> bool:
    """Whether a path lies in a folder after every link is followed; links in a circle lead nowhere."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # RuntimeError: a circle, before Python 3.13
        return False


def list_models(folders: Sequence[Path], known: Sequence[str] = ()) -> list[str]:
    """Names of model files and model folders, relative and with forward slashes; earlier folders first.

    Args:
        known: names that are listed anyway, before all others, links among them.
    """
    names = dict.fromkeys(known)
    for folder in folders:
        names.update(dict.fromkeys(sorted(_entries(folder, known), key=str.lower)))
    return list(names)


def find_model(kind: str, name: str, folders: Sequence[Path]) -> Path:
    """The file or model folder called `name`, from the first of `folders` that has it.

    Raises:
        UntrustedFileError: a name that leaves the folder.
        CheckpointError: no such file, or not a model file.
    """
    for folder in folders:
        path = contained(folder, name)
        if path.is_file() and path.suffix.lower() in MODEL_EXTENSIONS:
            return path
        if path.is_dir() and _is_model_folder(path):
            return path
    known = list_models(folders)
    raise CheckpointError(
        f'there is no model "{name}" in the folder "{kind}"; '
        f"there is: {_joined(known) or 'nothing'}. Put the file there, or choose one of these"
    )


def is_shard(path: Path) -> bool:
    """Whether a file is a part of a model whose index lies beside it; the folder stands for the whole."""
    return "-of-" in path.stem and any(path.parent.glob("*" + INDEX_SUFFIX))


def tokenizer_folders(kind: TokenizerKind, roots: Sequence[Path]) -> list[Path]:
    """Folders at or under `roots` that hold the files of a tokenizer of this kind, in the order of `roots`."""
    found: dict[Path, None] = {}
    for root in roots:
        for folder, _, files in sorted(os.walk(root)):
            if any(set(needed) <= set(files) for needed in TOKENIZER_FILES[kind]):
                found[Path(folder)] = None
    return list(found)


def _entries(folder: Path, known: Sequence[str]) -> Iterator[str]:
    """Every usable entry under a folder; linked folders are not entered, since names through them are refused."""
    for current, subfolders, files in os.walk(folder):
        here = Path(current)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if here != folder and _is_model_folder(here):
            yield here.relative_to(folder).as_posix()
        for name in files:
            path = here / name
            if path.suffix.lower() not in MODEL_EXTENSIONS or is_shard(path):
                continue
            listed_name = path.relative_to(folder).as_posix()
            if not path.is_symlink() or _stays_in(folder, path):
                yield listed_name
            elif listed_name not in known:
                _warn_of_link(path)


@functools.cache
def _warn_of_link(path: Path) -> None:
    """Says once why a file is missing from the lists; those are made anew all the time."""
    logger.warning("%s is not offered: it is a link that leads out of the model folder", path)


def _is_model_folder(folder: Path) -> bool:
    """Whether a folder is one model in the Hugging Face manner: an index of shards, or a config beside weights."""
    names = [path.name for path in folder.iterdir()]
    if any(name.endswith(INDEX_SUFFIX) for name in names):
        return True
    return "config.json" in names and any(name.endswith(".safetensors") for name in names)


def _joined(things: Sequence[object], limit: int = 12) -> str:
    shown = ", ".join(str(thing) for thing in things[:limit])
    return f"{shown} and {len(things) - limit} more" if len(things) > limit else shown
