"""Files to findings, from headers alone: no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import HYVIDEO_T2_CFGDISTILL, ClipTextConfig, LlamaConfig, TransformerConfig
from ..errors import CorruptFileError, HyVideoError
from ..loading import (
    Checkpoint,
    DetectedTransformer,
    DetectedVae,
    Kind,
    detect_transformer,
    detect_vae,
    open_checkpoint,
    recognise,
)
from ..loading.build import coverage
from ..loading.checkpoint import ReadTensor
from ..loading.comfy_quant import MARK
from ..loading.containers import ShardedFiles
from ..loading.coverage import Coverage
from ..loading.fp8_policies import CastFp8
from ..loading.gguf import GgufFile
from ..loading.pickle_file import PickleFile
from ..loading.policies import find_policy
from ..loading.signatures import Part
from ..loading.text import (
    clip_coverage,
    clip_view,
    detect_clip,
    detect_llama,
    llama_coverage,
    llama_view,
    parts_aside,
)
from ..loading.variants import size_words, transformer_variant
from ..lora import recognise_lora
from .findings import Findings, LoraFindings
from .needs import encoder_needs, hints, lora_needs, transformer_needs, vae_needs
from .storage import measure

PUBLISHED_MODEL = "the published 13B model"
MAX_MARK_BYTES = 4096
CONTAINERS = ((GgufFile, "GGUF"), (PickleFile, "PyTorch pickle"), (ShardedFiles, "safetensors in several files"))
SCALES_UNKNOWN = (
    "headers do not tell plain fp8 weights from those of the official release, whose scales are in a second file "
    "(..._map.pt): the loader looks at the weights, and asks for that file if it is needed"
)


@dataclass(frozen=True)
class HeaderOnly(Checkpoint):
    """A file whose weights cannot be read: tensors have shapes and no numbers, except for short notes in bytes."""

    inner: Checkpoint | None = None

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        with ExitStack() as stack:
            opened: list[ReadTensor] = []

            def read(name: str) -> Tensor:
                info = self.tensors[name]
                is_note = info.dtype == torch.uint8 and len(info.shape) == 1 and info.shape[0] <= MAX_MARK_BYTES
                if name.endswith(f".{MARK}") and not is_note:
                    raise CorruptFileError(f"{self.name}: {name:.100} is no short text; download it again")
                if self.inner is None or not is_note:
                    return torch.empty(info.shape, dtype=info.dtype, device="meta")
                if not opened:
                    opened.append(stack.enter_context(self.inner.reading()))
                return opened[0](name)

            yield read


def inspect(path: Path, model: Path | DetectedTransformer | None = None) -> Findings:
    """What a file, or a folder of shards, is. Never raises for what is wrong with it: that is a finding.

    Args:
        path: the file.
        model: for a LoRA, the transformer that it is to fit; None for the published 13B model.
    """
    try:
        checkpoint = _header_only(open_checkpoint(path))
        kind = recognise(checkpoint)
        found = _common(checkpoint, kind)
    except HyVideoError as error:
        return Findings(file=path.name, problem=str(error))
    except OSError as error:
        problem = f"{path.name} cannot be opened ({error.strerror or 'the system refuses it'}); check that it is there"
        return Findings(file=path.name, problem=problem)
    try:
        return _examine(checkpoint, kind.part, found, model)
    except HyVideoError as error:
        return replace(found, problem=str(error))


def _header_only(checkpoint: Checkpoint) -> Checkpoint:
    # a pickle's marks lie in the pickle itself, and policies ask for its type
    if isinstance(checkpoint, PickleFile):
        return checkpoint
    return HeaderOnly(
        path=checkpoint.path,
        tensors=checkpoint.tensors,
        config=checkpoint.config,
        metadata=checkpoint.metadata,
        inner=checkpoint,
    )


def _common(checkpoint: Checkpoint, kind: Kind) -> Findings:
    """What can be said of every file."""
    storage = measure(checkpoint, has_fp8=kind.part != "vae")
    return Findings(
        file=checkpoint.name,
        kind=kind.words,
        opened_by=kind.home.loader if kind.home else None,
        folder=kind.home.folder if kind.home else None,
        container=_container(checkpoint),
        hints=tuple(hints(checkpoint.name, checkpoint.metadata, ())),
        precision=storage.words,
        stored=storage.stored,
        num_tensors=len(checkpoint.tensors),
        num_parameters=storage.num_parameters,
        memory=storage.memory,
    )


def _container(checkpoint: Checkpoint) -> str:
    opened = checkpoint.inner if isinstance(checkpoint, HeaderOnly) else checkpoint
    if isinstance(opened, ShardedFiles):
        count = len({home.path for home in opened.homes.values()})
        return "1 file in a folder" if count == 1 else f"{count} files that make one model"
    return next((words for container, words in CONTAINERS if isinstance(opened, container)), "safetensors")


def _examine(
    checkpoint: Checkpoint, part: Part | None, found: Findings, model: Path | DetectedTransformer | None
) -> Findings:
    """What can be said of the files that this pack opens."""
    if part == "transformer":
        detected = detect_transformer(checkpoint)
        return _transformer(checkpoint, detected, coverage(detected), found)
    if part == "vae":
        vae = detect_vae(checkpoint)
        return _vae(vae, coverage(vae), found)
    if part == "llm":
        llama = detect_llama(checkpoint)
        return _llama(checkpoint, llama, llama_coverage(checkpoint, llama), found)
    if part == "clip":
        clip = detect_clip(checkpoint)
        return _clip(checkpoint, clip, clip_coverage(checkpoint, clip), found)
    return _lora(checkpoint, found, model) if part == "lora" else found


def transformer_findings(checkpoint: Checkpoint, detected: DetectedTransformer, cover: Coverage) -> Findings:
    """Findings on a transformer file that a loader has opened."""
    return _transformer(checkpoint, detected, cover, _common(checkpoint, recognise(checkpoint)))


def vae_findings(checkpoint: Checkpoint, detected: DetectedVae, cover: Coverage) -> Findings:
    """Findings on an autoencoder file that a loader has opened."""
    return _vae(detected, cover, _common(checkpoint, recognise(checkpoint)))


def llama_findings(checkpoint: Checkpoint, config: LlamaConfig, cover: Coverage) -> Findings:
    """Findings on a language model file that a loader has opened."""
    return _llama(checkpoint, config, cover, _common(checkpoint, recognise(checkpoint)))


def clip_findings(checkpoint: Checkpoint, config: ClipTextConfig, cover: Coverage) -> Findings:
    """Findings on a CLIP file that a loader has opened."""
    return _clip(checkpoint, config, cover, _common(checkpoint, recognise(checkpoint)))


def _transformer(checkpoint: Checkpoint, detected: DetectedTransformer, cover: Coverage, found: Findings) -> Findings:
    config = detected.config
    variant = transformer_variant(config)
    may_need_scales = isinstance(detected.policy, CastFp8) and isinstance(checkpoint, HeaderOnly)
    described = replace(
        found,
        variant=f"{variant.words}; {model_words(config)}",
        lookalikes=variant.lookalikes,
        hints=tuple(hints(checkpoint.name, checkpoint.metadata, variant.lookalikes)),
        dialect=f"{detected.view.dialect.name} names",
        prefix=detected.view.prefix,
        precision=_precision(detected.policy.label, found),
        needs=transformer_needs(config),
        notes=(SCALES_UNKNOWN,) if may_need_scales else (),
    )
    return _covered(described, cover)


def _vae(detected: DetectedVae, cover: Coverage, found: Findings) -> Findings:
    described = replace(
        found,
        variant=f"{detected.config.latent_channels} latent channels",
        dialect="official and diffusers' names" if detected.view.dialect.name == "official" else "ComfyUI names",
        prefix=detected.view.prefix,
        needs=vae_needs(detected.config),
    )
    return _covered(described, cover)


def _llama(checkpoint: Checkpoint, config: LlamaConfig, cover: Coverage, found: Findings) -> Findings:
    view = llama_view(checkpoint)
    layers = f"{config.num_layers} layers, {config.hidden_size} wide, {config.vocab_size} rows"
    beside = parts_aside(cover)
    described = replace(
        found,
        variant=f"Llama-3 8B; {layers}" if config == LlamaConfig(vocab_size=config.vocab_size) else layers,
        dialect="transformers' names",
        prefix=view.prefix,
        precision=_precision(find_policy(view).label, found),
        memory=_memory(checkpoint, cover),
        needs=encoder_needs("llm", config),
        notes=(f"holds {beside} besides, which text to video does not need",) if beside else (),
    )
    return _covered(described, cover)


def _clip(checkpoint: Checkpoint, config: ClipTextConfig, cover: Coverage, found: Findings) -> Findings:
    view = clip_view(checkpoint)
    usual = ClipTextConfig()
    name = "LongCLIP-L" if config.max_positions > usual.max_positions else "CLIP-L"
    sizes = f"{config.num_layers} layers, {config.hidden_size} wide, reads {config.max_positions} tokens"
    beside = parts_aside(cover)
    described = replace(
        found,
        variant=f"{name}; {sizes}" if config.hidden_size == usual.hidden_size else sizes,
        dialect="transformers' names",
        prefix=view.prefix,
        precision=_precision(find_policy(view).label, found),
        memory=_memory(checkpoint, cover),
        needs=encoder_needs("clip", config),
        notes=(f"holds {beside} besides, which is not used",) if beside else (),
    )
    return _covered(described, cover)


def _lora(checkpoint: Checkpoint, found: Findings, model: Path | DetectedTransformer | None) -> Findings:
    if isinstance(model, Path):
        model = detect_transformer(_header_only(open_checkpoint(model)))
    kind = recognise_lora(checkpoint, model.config if model else HYVIDEO_T2_CFGDISTILL)
    if kind is None:
        return found
    lora = LoraFindings(
        dialect=kind.dialect,
        kinds=kind.kinds,
        ranks=kind.ranks,
        targets=kind.targets,
        model=model.view.checkpoint.name if model else PUBLISHED_MODEL,
        matched=kind.coverage.matched,
        expected=kind.coverage.expected,
        strays=tuple(kind.coverage.stray),
        text_encoder=len(kind.coverage.text_encoder),
        refusal=kind.refusal,
    )
    whose = f"a LoRA for {kind.family}" if kind.family else found.kind
    # a LoRA that was compared with nobody's model in particular may still fit the one that it was made for
    problem = kind.refusal if model else None
    return replace(found, kind=whose, dialect=kind.dialect, lora=lora, problem=problem, needs=lora_needs())


def _covered(found: Findings, cover: Coverage) -> Findings:
    """Findings with what a file gives of its model; a file that is not whole has a problem."""
    problem = cover.problem()
    return replace(
        found,
        coverage=str(cover),
        missing=cover.missing,
        stray=cover.stray,
        beside=cover.beside,
        problem=f"{found.file} {problem}" if problem else None,
    )


def _memory(checkpoint: Checkpoint, cover: Coverage) -> Mapping[str, int]:
    """Bytes without what the loader leaves in the file."""
    return measure(checkpoint, kept=checkpoint.tensors.keys() - {*cover.aside, *cover.beside}).memory


def _precision(label: str, found: Findings) -> str | None:
    return found.precision if label == "plain" else f"{label}; {found.precision}"


def model_words(config: TransformerConfig) -> str:
    """The published size by its name, any other by its numbers."""
    size = size_words(config)
    return "13B" if size == size_words(HYVIDEO_T2_CFGDISTILL) else f"the same architecture at another size: {size}"
