"""Weights that come to the device for as long as they are needed; see `streaming`."""

from .budget import AUTO, MODES, MemoryOptions, Plan
from .device import CudaDevice, PlainDevice, StreamDevice, open_device
from .layout import Layout, llama_layout, transformer_layout
from .residency import Residency
from .streaming import StreamedModel

__all__ = [
    "AUTO",
    "MODES",
    "CudaDevice",
    "Layout",
    "MemoryOptions",
    "PlainDevice",
    "Plan",
    "Residency",
    "StreamDevice",
    "StreamedModel",
    "llama_layout",
    "open_device",
    "transformer_layout",
]
