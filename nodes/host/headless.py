"""The host without ComfyUI: for the command line, the tests and workers. Same names as comfyui.py."""

from __future__ import annotations

import math
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ...hyvideo_core.errors import UntrustedFileError
from ...hyvideo_core.memory import Residency, StreamDevice, open_device
from . import headless_io as io
from .contracts import Patcher, Progress, Role
from .folders import (
    EMBEDDED,
    HOST_TOKENIZERS,
    PACK_ROOT,
    TokenizerKind,
    contained,
    find_model,
    list_models,
    tokenizer_folders,
)

__all__ = [
    "OUT_OF_MEMORY",
    "Interrupted",
    "Patcher",
    "Progress",
    "Role",
    "check_interrupt",
    "device_for",
    "empty_cache",
    "extension",
    "free_bytes",
    "free_memory",
    "host_tokenizers",
    "input_folder",
    "io",
    "is_host_vae",
    "make_patcher",
    "make_streamed_patcher",
    "model_files",
    "offload_device_for",
    "output_folder",
    "place",
    "place_streamed",
    "preview_factors",
    "preview_wanted",
    "progress",
    "resolve",
    "show_text",
    "stream_device_for",
    "temp_folder",
    "user_folder",
]

OUT_OF_MEMORY: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError)
CPU = torch.device("cpu")
RESERVED_BYTES = 2**29
"""Left free of weights, for what libraries allocate for themselves."""
# older names of model folders, which many installations still use
_LEGACY_KINDS = {"diffusion_models": ("unet",), "text_encoders": ("clip",)}


class Interrupted(BaseException):
    """The user wants the run to stop; not an Exception, so that no handler of errors swallows it."""


# --- folders


def comfyui_root() -> Path | None:
    """ComfyUI's own folder when the pack lies in its custom_nodes, else None."""
    root = PACK_ROOT.parents[1]
    return root if PACK_ROOT.parent.name == "custom_nodes" and (root / "models").is_dir() else None


def _default_models() -> tuple[Path, ...]:
    root = comfyui_root()
    return (root / "models",) if root else ()


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a run without ComfyUI reads and writes.

    Args:
        output, input, user: created when something is written.
        models: roots that hold one folder per kind of model (`vae`, `diffusion_models`, ...); the first wins.
    """

    output: Path = field(default_factory=lambda: Path.cwd() / "output")
    input: Path = field(default_factory=lambda: Path.cwd() / "input")
    user: Path = field(default_factory=lambda: Path.cwd() / "user")
    models: tuple[Path, ...] = field(default_factory=_default_models)


_folders: list[Folders] = []


def use_folders(folders: Folders) -> None:
    """Sets the folders of this process; before that the defaults hold, relative to the current folder."""
    _folders[:] = [folders]


def _current() -> Folders:
    return _folders[0] if _folders else Folders()


def output_folder() -> Path:
    """Where results go."""
    return _current().output


def input_folder() -> Path:
    """Where images and videos that a graph names are looked for."""
    return _current().input


def user_folder() -> Path:
    """Where settings and caches may be kept."""
    return _current().user


_temp: list[tempfile.TemporaryDirectory[str]] = []


def temp_folder() -> Path:
    """A fresh folder of this process for files that nobody needs afterwards; it goes with the process at the latest."""
    if not _temp:
        _temp.append(tempfile.TemporaryDirectory(prefix="hyvideo-", ignore_cleanup_errors=True))
    return Path(_temp[0].name)


def remove_temp_folder() -> None:
    """Removes what `temp_folder` gave, with all that is in it; the next call gives another one."""
    while _temp:
        _temp.pop().cleanup()


def _user_model_folders(kind: str) -> list[Path]:
    names = (kind, *_LEGACY_KINDS.get(kind, ()))
    return [root / name for root in _current().models for name in names]


def model_files(kind: str) -> list[str]:
    """Names of the models of a kind: the user's first, then the embedded ones."""
    return list_models([*_user_model_folders(kind), EMBEDDED / kind])


def resolve(kind: str, name: str) -> Path:
    """The path of a listed model; see folders.find_model for what is refused."""
    return find_model(kind, name, [*_user_model_folders(kind), EMBEDDED / kind])


def why_refused(name: str) -> str | None:
    """Why no model folder may give a model of that name: it leaves the folder, itself or through a link."""
    roots = [root for root in (*_current().models, EMBEDDED) if root.is_dir()]
    try:
        for folder in [EMBEDDED, *(path for root in roots for path in sorted(root.iterdir()) if path.is_dir())]:
            contained(folder, name)
    except UntrustedFileError as error:
        return str(error)
    return None


def host_tokenizers(kind: TokenizerKind) -> list[Path]:
    """Folders with tokenizer files: under the user's text encoders, then those that ComfyUI ships beside its models."""
    shipped = [root.parent / HOST_TOKENIZERS[kind] for root in _current().models]
    return tokenizer_folders(kind, [*_user_model_folders("text_encoders"), *shipped])


# --- progress and interruption


class _TerminalProgress:
    """A bar on stderr; pictures have no place there."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, leave=True)

    def update(self, done: int, preview: Image.Image | None = None) -> None:  # noqa: ARG002
        self._bar.update(done - self._bar.n)
        if done >= self._bar.total:
            self._bar.close()


_interrupt = threading.Event()


def progress(total: int) -> Progress:
    """A progress bar of `total` steps on stderr."""
    return _TerminalProgress(total)


def interrupt() -> None:
    """Asks the running node to stop at its next check; may be called from any thread."""
    _interrupt.set()


def check_interrupt() -> None:
    """Raises Interrupted once after each request to stop."""
    if _interrupt.is_set():
        _interrupt.clear()
        raise Interrupted


def show_text(text: str) -> None:
    """Nothing: a terminal has the log."""


def preview_wanted() -> bool:
    """Never: a terminal shows no pictures, so none need to be made."""
    return False


def preview_factors() -> tuple[list[list[float]], list[float]] | None:
    """None: the factors of the 13B latents come with ComfyUI."""
    return None


# --- devices and memory


def device_for(role: Role) -> torch.device:
    """Where a part computes: the GPU if there is one; results between nodes stay on the CPU."""
    return torch.device("cuda") if role != "intermediate" and torch.cuda.is_available() else CPU


def offload_device_for(role: Role) -> torch.device:  # noqa: ARG001 (the host decides by role)
    """Where a part's weights wait."""
    return CPU


class ModulePatcher:
    """Holds one module and knows its two devices; stands in for the host's ModelPatcher."""

    def __init__(self, module: torch.nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.model = module
        self.load_device = load_device
        self.offload_device = offload_device

    def model_size(self) -> int:
        """Bytes of all weights and buffers."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def loaded_size(self) -> int:
        """Bytes that are on the load device now."""
        return sum(tensor.nbytes for tensor in self._tensors() if tensor.device.type == self.load_device.type)

    def move(self, device: torch.device) -> None:
        """Moves the whole module; outside inference mode, so that its weights can still be trained."""
        with torch.inference_mode(False):
            self.model.to(device)

    def _tensors(self) -> list[torch.Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]


class StreamedPatcher:
    """What others may ask of a streamed model: to keep less on its device."""

    def __init__(self, residency: Residency, load_device: torch.device, offload_device: torch.device) -> None:
        self.model = self.residency = residency
        self.load_device = load_device
        self.offload_device = offload_device

    def model_size(self) -> int:
        """Bytes that would be kept if there were room for all."""
        return self.residency.limit

    def loaded_size(self) -> int:
        """Bytes that are kept now."""
        return self.residency.kept_bytes

    def move(self, device: torch.device) -> None:
        """Keeps nothing, for any device but its own."""
        if device != self.load_device:
            self.residency.shrink(math.inf)


_placed: list[weakref.ref[ModulePatcher | StreamedPatcher]] = []


def make_patcher(module: torch.nn.Module, role: Role) -> ModulePatcher:
    """The one patcher of a module; keep it as long as the module."""
    return ModulePatcher(module, device_for(role), offload_device_for(role))


def place(patcher: Patcher, memory_required: int = 0, beside: Sequence[Patcher] = ()) -> torch.device:
    """Moves a module wholly to its load device, sending others away first where room is short.

    Args:
        memory_required: bytes that the coming run needs besides the weights.
        beside: modules that are needed at the same time.
    Returns:
        The device on which to compute.
    """
    wanted = [patcher, *beside]
    _placed[:] = [ref for ref in _placed if ref() not in (None, *wanted)]
    own = [one for one in wanted if isinstance(one, ModulePatcher)]
    if len(own) < len(wanted):
        foreign = next(type(one).__name__ for one in wanted if not isinstance(one, ModulePatcher))
        raise TypeError(f"expected a patcher of make_patcher, got {foreign}")
    missing_bytes = sum(one.model_size() - one.loaded_size() for one in own)
    free_memory(missing_bytes + memory_required, patcher.load_device)
    for one in own:
        _placed.append(weakref.ref(one))
        one.move(one.load_device)
    return patcher.load_device


def stream_device_for(role: Role) -> StreamDevice | None:
    """What a part's weights can be streamed to; None where they already lie in the memory that computes."""
    device = device_for(role)
    return None if device.type == "cpu" else open_device(device)


def make_streamed_patcher(residency: Residency, role: Role) -> StreamedPatcher:
    """The one patcher of a streamed model; keep it as long as the model."""
    return StreamedPatcher(residency, device_for(role), offload_device_for(role))


def place_streamed(patcher: Patcher, memory_required: int) -> torch.device:
    """Has a streamed model keep as much as there is room for beside a run, sending others away first.

    Args:
        memory_required: bytes that the coming run needs besides what is kept.
    Returns:
        The device on which to compute.
    """
    if not isinstance(patcher, StreamedPatcher):
        raise TypeError(f"expected a patcher of make_streamed_patcher, got {type(patcher).__name__}")
    _placed[:] = [ref for ref in _placed if ref() not in (None, patcher)]
    needed = memory_required + RESERVED_BYTES
    free_memory(patcher.model_size() - patcher.loaded_size() + needed, patcher.load_device)
    _placed.append(weakref.ref(patcher))
    patcher.residency.fit(patcher.loaded_size() + free_bytes(patcher.load_device) - needed)
    return patcher.load_device


def free_memory(num_bytes: int, device: torch.device) -> None:
    """Sends modules away, the longest unused first, until that many bytes are free on a GPU; nothing on the CPU."""
    for patcher in [ref() for ref in _placed]:
        if device.type == "cpu" or _free_bytes(device) >= num_bytes:
            return
        if patcher is not None and patcher.load_device == device:
            patcher.move(patcher.offload_device)
            empty_cache()


def free_bytes(device: torch.device) -> int:
    """What can still be allocated on a GPU; on the CPU as if without end, where the system pages."""
    return sys.maxsize if device.type == "cpu" else _free_bytes(device)


def _free_bytes(device: torch.device) -> int:
    """What the driver has left plus what torch's allocator holds without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def empty_cache() -> None:
    """Gives unused memory back to the driver."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_host_vae(candidate: object) -> bool:  # noqa: ARG001 (there is no host)
    """Never: ComfyUI's own VAE class does not exist here."""
    return False


# --- registration


class _Extension:
    def __init__(self, nodes: Sequence[type[io.ComfyNode]]) -> None:
        self._nodes = list(nodes)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return self._nodes


def extension(nodes: Sequence[type[io.ComfyNode]]) -> Any:
    """What the entry point returns: an object whose get_node_list gives the nodes."""
    return _Extension(nodes)
