"""LoRAs: files of every trainer, as side paths beside the layers of a model or merged into copies of them."""

from .blocks import BlockFilter, describe_blocks, parse_blocks
from .factors import Dense, Factor, Hadamard, Kronecker, LowRank
from .layers import LoraLinear
from .lora_file import Coverage, LoraFile, LoraWeights, load_lora, open_lora
from .recognise import LoraKind, recognise_lora
from .view import Attached, merge_loras, with_loras, with_merged_loras

__all__ = [
    "Attached",
    "BlockFilter",
    "Coverage",
    "Dense",
    "Factor",
    "Hadamard",
    "Kronecker",
    "LoraFile",
    "LoraKind",
    "LoraLinear",
    "LoraWeights",
    "LowRank",
    "describe_blocks",
    "load_lora",
    "merge_loras",
    "open_lora",
    "parse_blocks",
    "recognise_lora",
    "with_loras",
    "with_merged_loras",
]
