"""What loader nodes hand on: frozen recipes that know a file's header, and weights that load at first use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import nn

from ..hyvideo_core.config import ClipTextConfig, LlamaConfig
from ..hyvideo_core.kernels import SpeedOptions
from ..hyvideo_core.loading import Checkpoint, DetectedTransformer
from ..hyvideo_core.lora import Attached, LoraFile, LoraWeights, with_loras
from ..hyvideo_core.memory import Layout, MemoryOptions, Residency, StreamedModel
from ..hyvideo_core.model import Transformer
from ..hyvideo_core.model.modulation import BlockHold
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


@dataclass(frozen=True)
class Opened(Generic[ModuleT]):
    """A model that is ready to compute.

    Attributes:
        device: where its inputs belong.
        hold: what brings the weights of one of its parts there; see model.modulation.BlockHold.
    """

    model: ModuleT
    device: torch.device
    hold: BlockHold


class SharedWeights(Generic[ModuleT]):
    """One module and its one patcher, made at first use and shared by every recipe of the same file and precision.

    Args:
        layout: the parts in which the weights can be streamed to a GPU; None for a model that is always placed whole.
    """

    def __init__(
        self, role: host.Role, build: Callable[[], ModuleT], layout: Callable[[ModuleT], Layout] | None = None
    ) -> None:
        self.patcher: host.Patcher | None = None
        self._role = role
        self._build = build
        self._layout = layout
        self._streamed: tuple[ModuleT, Residency] | None = None
        self._beside: tuple[SharedWeights, ...] = ()

    def build(self) -> ModuleT:
        """Another module of the same weights, which belongs to the caller alone."""
        return self._build()

    def load(self) -> host.Patcher:
        """The patcher around the module, read from its file if that has not happened yet."""
        if self.patcher is None:
            module = self._build()
            device = host.stream_device_for(self._role) if self._layout else None
            if self._layout is None or device is None:
                self.patcher = host.make_patcher(module, self._role)
            else:
                self._streamed = module, Residency(module, self._layout(module), device)
                self.patcher = host.make_streamed_patcher(self._streamed[1], self._role)
        return self.patcher

    def place(self, memory_required: int, beside: Sequence[SharedWeights] = ()) -> tuple[ModuleT, torch.device]:
        """The module on the device where it computes.

        Args:
            memory_required: bytes that the coming run needs besides the weights.
            beside: weights that it needs on the same device.
        """
        patcher = self.load()
        self._hold(beside)
        device = host.place(patcher, memory_required, [other.load() for other in beside])
        return patcher.model, device

    @contextmanager
    def open(
        self,
        memory_required: int,
        options: MemoryOptions,
        *,
        beside: Sequence[SharedWeights] = (),
        view: Callable[[ModuleT], ModuleT] | None = None,
    ) -> Iterator[Opened[ModuleT]]:
        """Inside, the module computes: placed as a whole on the CPU, streamed to a GPU.

        Args:
            memory_required, beside: as for `place`.
            options: what the weights may take there.
            view: gives the module with changed layers, from it and what is `beside`.
        """
        patcher = self.load()
        if self._streamed is None:
            module, device = self.place(memory_required, beside)
            yield Opened(view(module) if view else module, device, nullcontext)
            return
        self._hold(beside)
        module, residency = self._streamed
        plan = options.plan(residency)
        residency.limit_to(plan.kept_bytes)
        device = host.place_streamed(patcher, memory_required + plan.working_bytes)
        with residency.at_home():
            shown = view(module) if view else module
        with StreamedModel(residency, shown, prefetch=options.prefetch, slots=plan.slots) as stream:
            logger.info(
                "%s: %.1f of %.1f GB of weights stay on %s, the others are streamed",
                self._role.replace("_", " "),
                residency.kept_bytes / 1e9,
                residency.total_bytes / 1e9,
                device,
            )
            yield Opened(shown, device, stream.hold)

    def _hold(self, beside: Sequence[SharedWeights]) -> None:
        """Until the next run: the host drops a node's result as soon as one of its widgets changes."""
        self._beside = tuple(beside)


_shared: WeakValueDictionary[tuple[object, ...], SharedWeights] = WeakValueDictionary()


def share_weights(
    role: host.Role,
    checkpoint: Checkpoint,
    precision: str,
    build: Callable[[], ModuleT],
    *changes: object,
    layout: Callable[[ModuleT], Layout] | None = None,
) -> SharedWeights[ModuleT]:
    """The weights of a file at a precision: those that another recipe already holds, if the file has not changed.

    Args:
        changes: what else tells these weights from others of the file.
        layout: see SharedWeights.
    """
    key = (role, *fingerprint(checkpoint.path), precision, *changes)
    weights = _shared.get(key)
    if weights is None:
        weights = _shared[key] = SharedWeights(role, build, layout)
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
        memory: what the weights may take of a GPU.
        speed: what computes the blocks.
    """

    detected: DetectedTransformer
    precision: str
    weights: SharedWeights[Transformer] = field(repr=False)
    loras: tuple[LoraRecipe, ...] = ()
    merged: tuple[object, ...] = ()
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    speed: SpeedOptions = field(default_factory=SpeedOptions)

    def place(self, memory_required: int) -> tuple[Transformer, torch.device]:
        """The model with its LoRAs, whole on the device where it computes; see SharedWeights.place."""
        model, device = self.weights.place(memory_required, [one.weights for one in self.loras])
        return self._with_loras(model), device

    def open(self, memory_required: int) -> AbstractContextManager[Opened[Transformer]]:
        """The model with its LoRAs, ready to compute as its memory options say; see SharedWeights.open."""
        return self.weights.open(
            memory_required, self.memory, beside=[one.weights for one in self.loras], view=self._with_loras
        )

    def _with_loras(self, model: Transformer) -> Transformer:
        attached = [
            Attached(lora=one.lora, weights=one.weights.load().model, strength=one.strength, blocks=one.blocks)
            for one in self.loras
        ]
        return with_loras(model, attached)

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
