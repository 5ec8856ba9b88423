"""Fused kernels in the place of element-wise functions, compiled blocks, and the options that choose among them."""

from .choice import AUTO, CHOICES, OFF, choose_kernels
from .compiled import CompiledBlocks
from .speed import Speed, SpeedOptions

__all__ = ["AUTO", "CHOICES", "OFF", "CompiledBlocks", "Speed", "SpeedOptions", "choose_kernels"]
