"""What loader nodes hand on: frozen recipes that know a file's header, and weights that load at first use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import nn

from ..hyvideo_core.config import ClipTextConfig, LlamaConfig
from ..hyvideo_core.loading import Checkpoint, DetectedTransformer
from ..hyvideo_core.lora import Attached, LoraFile, LoraWeights, with_loras
from ..hyvideo_core.model import Transformer
from ..hyvideo_core.text_encoders.clip import ClipTextEncoder
from ..hyvideo_core.text_encoders.llm import LlamaTextEncoder
from ..hyvideo_core.text_encoders.tokenizers import PromptTokenizer
from . import host

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
MADE_FP8, FP8_MATMUL = "fp8_scaled", "fp8_matmul"
"""Choices of how weights are stored and multiplied, for nodes that offer them."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOAT32_LIMIT_BYTES = 4 * 2**30

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def choose_dtype(precision: str, checkpoint: Checkpoint, device: torch.device, gpu_dtype: torch.dtype) -> torch.dtype:
    """What a model computes in.

    `auto`, and every choice of how weights are stored, is `gpu_dtype` on a GPU. On the CPU it is float32, which is
    fastest there, or bf16 for a model that would take more than 4 GiB.
    """
    if precision in DTYPES:
        return DTYPES[precision]
    if device.type != "cpu":
        return gpu_dtype
    num_parameters = sum(torch.Size(info.shape).numel() for info in checkpoint.tensors.values())
    return torch.float32 if 4 * num_parameters <= FLOAT32_LIMIT_BYTES else torch.bfloat16


class SharedWeights(Generic[ModuleT]):
    """One module and its one patcher, made at first use and shared by every recipe of the same file and precision."""

    def __init__(self, role: host.Role, build: Callable[[], ModuleT]) -> None:
        self.patcher: host.Patcher | None = None
        self._role = role
        self._build = build
        self._beside: tuple[SharedWeights, ...] = ()

    def build(self) -> ModuleT:
        """Another module of the same weights, which belongs to the caller alone."""
        return self._build()

    def load(self) -> host.Patcher:
        """The patcher around the module, read from its file if that has not happened yet."""
        if self.patcher is None:
            self.patcher = host.make_patcher(self._build(), self._role)
        return self.patcher

    def place(self, memory_required: int, beside: Sequence[SharedWeights] = ()) -> tuple[ModuleT, torch.device]:
        """The module on the device where it computes.

        Args:
            memory_required: bytes that the coming run needs besides the weights.
            beside: weights that it needs on the same device.
        """
        patcher = self.load()
        # held until the next run: the host drops a node's result as soon as one of its widgets changes
        self._beside = tuple(beside)
        device = host.place(patcher, memory_required, [other.load() for other in beside])
        return patcher.model, device


_shared: WeakValueDictionary[tuple[object, ...], SharedWeights] = WeakValueDictionary()


def share_weights(
    role: host.Role, checkpoint: Checkpoint, precision: str, build: Callable[[], ModuleT], *changes: object
) -> SharedWeights[ModuleT]:
    """The weights of a file at a precision: those that another recipe already holds, if the file has not changed.

    Args:
        changes: what else tells these weights from others of the file.
    """
    key = (role, *fingerprint(checkpoint.path), precision, *changes)
    weights = _shared.get(key)
    if weights is None:
        weights = _shared[key] = SharedWeights(role, build)
    return weights


def fingerprint(path: Path) -> tuple[str, int, int]:
    """What tells one state of a file, or of the files in a folder, from another without reading them."""
    states = [file.stat() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return (str(path), max(state.st_mtime_ns for state in states), sum(state.st_size for state in states))


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """A LoRA beside a model: what it is, how it is used, and factors that load when a sampler needs them."""

    lora: LoraFile
    strength: float
    blocks: str
    weights: SharedWeights[LoraWeights] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A transformer as HYV_MODEL carries it: what it is, and weights that load when a sampler needs them.

    Attributes:
        detected: what the file holds; its configuration is that of the model with all LoRAs.
        loras: those beside the weights, in their order; merged ones are in `weights`.
        merged: what tells `weights` from those of the file: each merged LoRA.
    """

    detected: DetectedTransformer
    precision: str
    weights: SharedWeights[Transformer] = field(repr=False)
    loras: tuple[LoraRecipe, ...] = ()
    merged: tuple[object, ...] = ()

    def place(self, memory_required: int) -> tuple[Transformer, torch.device]:
        """The model with its LoRAs, on the device where it computes; see SharedWeights.place."""
        model, device = self.weights.place(memory_required, [one.weights for one in self.loras])
        attached = [
            Attached(lora=one.lora, weights=one.weights.load().model, strength=one.strength, blocks=one.blocks)
            for one in self.loras
        ]
        return with_loras(model, attached), device

    @property
    def patcher(self) -> host.Patcher | None:
        """The host's handle on the weights, once they are loaded; its caches look for this name."""
        return self.weights.patcher


@dataclass(frozen=True, kw_only=True)
class TextEncodersRecipe:
    """Both text encoders as HYV_TEXT_ENCODERS carries them; CLIP's weights and the LLM's load on their own."""

    llm_config: LlamaConfig
    llm: SharedWeights[LlamaTextEncoder] = field(repr=False)
    llm_tokenizer: PromptTokenizer = field(repr=False)
    clip_config: ClipTextConfig
    clip: SharedWeights[ClipTextEncoder] = field(repr=False)
    clip_tokenizer: PromptTokenizer = field(repr=False)
