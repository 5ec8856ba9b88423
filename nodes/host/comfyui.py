"""The host ComfyUI: the one file that imports it. Same names as headless.py; works from 0.8.0 on."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy_api.latest import ComfyExtension
from comfy_api.latest import io as host_io
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...hyvideo_core.memory import Residency, StreamDevice, open_device
from . import headless_io
from .contracts import Patcher, Progress, Role
from .folders import (
    EMBEDDED,
    HOST_TOKENIZERS,
    MODEL_EXTENSIONS,
    TokenizerKind,
    find_model,
    is_shard,
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

Interrupted = memory.InterruptProcessingException
OUT_OF_MEMORY: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError)
_NO_HTML = str.maketrans({"<": "‹", ">": "›"})
_PRIVATE_PREFIX = "hyvideo_"
_SCHEMA_FIELDS = {spec.name for spec in fields(host_io.Schema)}


def _schema(**values: Any) -> Any:
    """The host's Schema, without the fields that it does not know yet."""
    return host_io.Schema(**{name: value for name, value in values.items() if name in _SCHEMA_FIELDS})


io = SimpleNamespace(
    **{name: getattr(host_io, name) for name in headless_io.__all__ if name != "Schema"},
    Schema=_schema,
)

# --- folders

# Keys of our own keep the embedded files out of the native loaders' lists, where they could not be used
for _folder in sorted(EMBEDDED.iterdir()) if EMBEDDED.is_dir() else ():
    if _folder.is_dir():
        folder_paths.add_model_folder_path(_PRIVATE_PREFIX + _folder.name, str(_folder))


def output_folder() -> Path:
    """Where results go."""
    return Path(folder_paths.get_output_directory())


def input_folder() -> Path:
    """Where images and videos that a graph names are looked for."""
    return Path(folder_paths.get_input_directory())


def user_folder() -> Path:
    """Where settings and caches may be kept."""
    return Path(folder_paths.get_user_directory())


def temp_folder() -> Path:
    """Where files go that nobody needs tomorrow; the host empties it when it starts."""
    return Path(folder_paths.get_temp_directory())


def _model_folders(*kinds: str) -> list[Path]:
    # asked afresh each time: other packs and extra_model_paths.yaml may add folders later
    known = [kind for kind in kinds if kind in folder_paths.folder_names_and_paths]
    return [Path(folder) for kind in known for folder in folder_paths.get_folder_paths(kind)]


def _native_files(kind: str) -> list[str]:
    """What the host itself lists: links that the user put into a model folder too, as for every other loader."""
    names = folder_paths.get_filename_list(kind) if kind in folder_paths.folder_names_and_paths else []
    folders = _model_folders(kind)
    # forward slashes on every system, so that graphs travel
    return [
        name.replace("\\", "/")
        for name in names
        if Path(name).suffix.lower() in MODEL_EXTENSIONS and not any(is_shard(folder / name) for folder in folders)
    ]


def model_files(kind: str) -> list[str]:
    """Names of the models of a kind: the user's first, then the embedded ones."""
    return list_models(_model_folders(kind, _PRIVATE_PREFIX + kind), known=_native_files(kind))


def resolve(kind: str, name: str) -> Path:
    """The path of a listed model; see folders.find_model for what is refused."""
    if name in _native_files(kind):
        return Path(folder_paths.get_full_path_or_raise(kind, name))
    return find_model(kind, name, _model_folders(kind, _PRIVATE_PREFIX + kind))


def host_tokenizers(kind: TokenizerKind) -> list[Path]:
    """Folders with tokenizer files: under the user's text encoders, then those that ComfyUI ships."""
    root = Path(memory.__file__).resolve().parents[1]
    return tokenizer_folders(kind, [*_model_folders("text_encoders"), root / HOST_TOKENIZERS[kind]])


# --- progress and interruption


class _NodeProgress:
    """The bar of the running node; previews are scaled as the native ones are."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar = comfy.utils.ProgressBar(total)

    def update(self, done: int, preview: Image.Image | None = None) -> None:
        size = getattr(latent_preview, "MAX_PREVIEW_RESOLUTION", 512)
        self._bar.update_absolute(done, self._total, None if preview is None else ("JPEG", preview, size))


def progress(total: int) -> Progress:
    """The progress bar of the node that is running, with `total` steps."""
    return _NodeProgress(total)


def check_interrupt() -> None:
    """Raises Interrupted if the user pressed Cancel."""
    memory.throw_exception_if_processing_interrupted()


def show_text(text: str) -> None:
    """Shows text on the node that is running."""
    context = get_executing_context()
    if context is not None:
        # the front end takes it as HTML, and names come from files
        PromptServer.instance.send_progress_text(text.translate(_NO_HTML), context.node_id)


def preview_wanted() -> bool:
    """Whether the user has switched sampling previews on, for the server or for this prompt."""
    # the host writes the prompt's own choice into the same place before it runs
    return latent_preview.args.preview_method != latent_preview.LatentPreviewMethod.NoPreviews


def preview_factors() -> tuple[list[list[float]], list[float]] | None:
    """How the 16 channels of 13B latents, scaled as the model sees them, map to red, green and blue in -1..1.

    Returns:
        16 rows of 3 factors, and 3 offsets.
    """
    latents = comfy.latent_formats.HunyuanVideo
    return latents.latent_rgb_factors, latents.latent_rgb_factors_bias


# --- devices and memory


def device_for(role: Role) -> torch.device:
    """Where a part computes, as the host's options say."""
    getters = {
        "transformer": memory.get_torch_device,
        "vae": memory.vae_device,
        "text_encoders": memory.text_encoder_device,
        "intermediate": memory.intermediate_device,
    }
    return torch.device(getters[role]())


def offload_device_for(role: Role) -> torch.device:
    """Where a part's weights wait."""
    getters = {
        "transformer": memory.unet_offload_device,
        "vae": memory.vae_offload_device,
        "text_encoders": memory.text_encoder_offload_device,
        "intermediate": memory.intermediate_device,
    }
    return torch.device(getters[role]())


def make_patcher(module: torch.nn.Module, role: Role) -> Patcher:
    """The host's own ModelPatcher; exactly one per module, kept as long as the module."""
    # the plain class, never the dynamic one: that faults weights in at casts which our modules do not make
    return comfy.model_patcher.ModelPatcher(
        module, load_device=device_for(role), offload_device=offload_device_for(role)
    )


def place(patcher: Patcher, memory_required: int = 0, beside: Sequence[Patcher] = ()) -> torch.device:
    """Has the host load a module wholly, sending other models away where room is short.

    Args:
        memory_required: bytes that the coming run needs besides the weights.
        beside: modules that are needed at the same time.
    Returns:
        The device on which to compute.
    """
    # wholly: a module that the host loaded in part counts as loaded ever after, and its forward fails.
    # Outside inference mode: weights that move in it could never be trained.
    with torch.inference_mode(False):
        memory.load_models_gpu([patcher, *beside], memory_required=memory_required, force_full_load=True)
    return patcher.load_device


class HunyuanVideo(torch.nn.Module):
    """What the host sees of a streamed model: nothing that it could move; its log calls it by this name."""


class StreamedPatcher(comfy.model_patcher.ModelPatcher):
    """Tells the host what a streamed model keeps on the device, and has it keep more or less as the host asks."""

    def __init__(
        self, residency: Residency, anchor: HunyuanVideo, load_device: torch.device, offload_device: torch.device
    ) -> None:
        self.residency = residency
        super().__init__(anchor, load_device=load_device, offload_device=offload_device)

    def model_size(self) -> int:
        """Bytes that would be kept if there were room for all."""
        return self.residency.limit

    def loaded_size(self) -> int:
        """Bytes that are kept now."""
        return self.residency.kept_bytes

    def partially_load(
        self,
        device_to: torch.device,  # noqa: ARG002 (there is one)
        extra_memory: float = 0,
        force_patch_weights: bool = False,  # noqa: ARG002
    ) -> int:
        """Keeps up to so many bytes more, or fewer where that is negative; gives how many more it became."""
        if extra_memory < 0:
            return -self.residency.shrink(-extra_memory)
        return self.residency.grow(extra_memory)

    def partially_unload(
        self,
        device_to: torch.device,  # noqa: ARG002 (there is one)
        memory_to_free: float = 0,
        force_patch_weights: bool = False,  # noqa: ARG002
    ) -> int:
        """Keeps at least so many bytes less, if there are as many; gives how many it became."""
        return self.residency.shrink(memory_to_free)

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        """Keeps nothing; but with False, which the host says before it loads the same model again, everything."""
        if unpatch_all:
            self.residency.shrink(math.inf)
        return self.model

    def current_loaded_device(self) -> torch.device:
        """Where the host has to count it."""
        return self.load_device if self.residency.kept_bytes else self.offload_device

    def clone(self, *args: object, **kwargs: object) -> StreamedPatcher:  # noqa: ARG002 (they speak of patches)
        """Another patcher of the same weights."""
        return StreamedPatcher(self.residency, self.model, self.load_device, self.offload_device)


def stream_device_for(role: Role) -> StreamDevice | None:
    """What a part's weights can be streamed to; None where they already lie in the memory that computes."""
    device = device_for(role)
    return None if device.type == "cpu" else open_device(device)


def make_streamed_patcher(residency: Residency, role: Role) -> Patcher:
    """The host's handle on a streamed model, whose weights it cannot move itself; keep it as long as the model."""
    return StreamedPatcher(residency, HunyuanVideo(), device_for(role), offload_device_for(role))


def place_streamed(patcher: Patcher, memory_required: int) -> torch.device:
    """Has a streamed model keep as much as the host has room for beside a run, by its rules and the user's flags.

    Args:
        memory_required: bytes that the coming run needs besides what is kept.
    Returns:
        The device on which to compute.
    """
    if not isinstance(patcher, StreamedPatcher):
        raise TypeError(f"expected a patcher of make_streamed_patcher, got {type(patcher).__name__}")
    memory.load_models_gpu([patcher], memory_required=memory_required)
    if memory.vram_state != memory.VRAMState.HIGH_VRAM:
        # on some cards the host leaves a part of each model there in any case, which a streamed one does not need
        patcher.residency.shrink(memory_required - free_bytes(patcher.load_device))
    return patcher.load_device


def free_memory(num_bytes: int, device: torch.device) -> None:
    """Has the host send models away until that many bytes are free."""
    memory.free_memory(num_bytes, device)


def free_bytes(device: torch.device) -> int:
    """What can still be allocated on a GPU, less what the user reserved; on the CPU as if without end."""
    if device.type == "cpu":
        return sys.maxsize
    return max(0, int(memory.get_free_memory(device) - memory.extra_reserved_memory()))


def empty_cache() -> None:
    """Gives unused memory back to the driver."""
    memory.soft_empty_cache()


def is_host_vae(candidate: object) -> bool:
    """Whether an object is one of ComfyUI's own VAEs."""
    return isinstance(candidate, comfy.sd.VAE)


# --- registration


def extension(nodes: Sequence[Any]) -> ComfyExtension:
    """What the entry point returns to the host."""

    class Extension(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return list(nodes)

    return Extension()
