"""Every node of the pack, in one list."""

from __future__ import annotations

from typing import Any

from . import host
from .conditioning import HYVTextEncode
from .inspect_file import HYVInspectFile
from .latents import HYVEmptyLatent, HYVResolution, HYVVAEDecode, HYVVAEEncode
from .loaders import HYVLoadModel, HYVLoadTextEncoders, HYVLoadVAE
from .lora import HYVLoadLora
from .memory import HYVMemory
from .sampling import HYVSampler
from .speed import HYVSpeed
from .step_cache import HYVTeaCache

NODES = [
    HYVLoadModel,
    HYVLoadLora,
    HYVMemory,
    HYVSpeed,
    HYVLoadTextEncoders,
    HYVLoadVAE,
    HYVInspectFile,
    HYVTextEncode,
    HYVEmptyLatent,
    HYVResolution,
    HYVSampler,
    HYVTeaCache,
    HYVVAEDecode,
    HYVVAEEncode,
]


def extension() -> Any:
    """What the entry point hands to the host."""
    return host.extension(NODES)


__all__ = ["NODES", "extension"]
