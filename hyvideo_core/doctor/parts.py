"""Findings on each kind of file that this pack opens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod

from ..config import HYVIDEO_T2_CFGDISTILL, ClipTextConfig, LlamaConfig, TransformerConfig
from ..loading import Checkpoint, DetectedTransformer, DetectedVae, recognise
from ..loading.containers import ShardedFiles
from ..loading.coverage import Coverage, listed
from ..loading.detect import TRANSFORMER_PROBES
from ..loading.fp8_policies import StoredFp8, fp8_weights
from ..loading.gguf import GgufFile
from ..loading.key_maps import TRANSFORMER_DIALECTS, find_view
from ..loading.pickle_file import PickleFile
from ..loading.policies import LinearPolicy, PlainWeights, find_policy
from ..loading.text import LLAMA3_ROWS, clip_view, llama_view, parts_aside
from ..loading.variants import size_words, transformer_variant
from ..quantization.on_load import BIG_LINEARS
from .findings import Findings
from .header_only import HeaderOnly, HeaderOnlyPickle
from .needs import encoder_needs, hints, transformer_needs, vae_needs
from .storage import measure

OTHER_VOCABULARY = (
    f"its vocabulary is not Llama-3's ({LLAMA3_ROWS.start} to {LLAMA3_ROWS.stop - 1} rows), which HunyuanVideo was "
    "trained with"
)
BLOCK = re.compile(r"(double|single|single_transformer|transformer)_blocks\.(\d+)\.")
CONTAINERS = ((GgufFile, "GGUF"), (PickleFile, "PyTorch pickle"))
PLAIN_CAST = "fp8 weights have neither scales nor marks beside them, which makes them a plain cast, used as it is"
FEWER_BLOCKS = (
    f"the published models of this width have {HYVIDEO_T2_CFGDISTILL.num_double_blocks} double and "
    f"{HYVIDEO_T2_CFGDISTILL.num_single_blocks} single blocks; if this is one of them, its last blocks are missing: "
    "download it again"
)
SCALES_UNKNOWN = (
    "headers do not tell plain fp8 weights from those of the official release, whose scales are in a second file "
    "(..._map.pt): the loader looks at the weights, and asks for that file if it is needed"
)


def file_findings(checkpoint: Checkpoint) -> Findings:
    """What can be said of every file."""
    kind = recognise(checkpoint)
    storage = measure(checkpoint, has_fp8=kind.part not in ("vae", "lora"))
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


def transformer_findings(checkpoint: Checkpoint, detected: DetectedTransformer, cover: Coverage) -> Findings:
    """Findings on a transformer file that was opened."""
    found = file_findings(checkpoint)
    config = detected.config
    variant = transformer_variant(config)
    notes = _cast_notes(detected.policy)
    # a loader has looked at the numbers, and refused the file if they are scaled
    if notes and isinstance(checkpoint, HeaderOnly | HeaderOnlyPickle):
        notes = (*notes, SCALES_UNKNOWN)
    if _lacks_blocks(config):
        notes = (*notes, FEWER_BLOCKS)
    described = replace(
        found,
        variant=f"{variant.words}; {model_words(config)}",
        lookalikes=variant.lookalikes,
        hints=tuple(hints(checkpoint.name, checkpoint.metadata, variant.lookalikes)),
        dialect=f"{detected.view.dialect.name} names",
        prefix=detected.view.prefix,
        precision=_precision(detected.policy.label, found),
        memory={**found.memory, **_made_fp8(detected)},
        needs=transformer_needs(config),
        notes=notes,
    )
    return _covered(described, cover)


def _lacks_blocks(config: TransformerConfig) -> bool:
    """Whether a model as wide as the published ones has fewer blocks than they."""
    usual = HYVIDEO_T2_CFGDISTILL
    return config.hidden_size == usual.hidden_size and (
        config.num_double_blocks < usual.num_double_blocks
        or config.num_single_blocks < usual.num_single_blocks
        or config.num_refiner_blocks < usual.num_refiner_blocks
    )


def _cast_notes(policy: LinearPolicy) -> tuple[str, ...]:
    """What headers say of fp8 weights without scales."""
    weights = fp8_weights(policy.view)
    bare = [name for name in weights if isinstance(policy, StoredFp8) and not policy.has_scale(name)]
    if not bare:
        return ()
    if bare == weights:
        return (f"all {PLAIN_CAST}",)
    return (f"{len(bare)} of {len(weights)} {PLAIN_CAST}: {listed(bare)}",)


def _made_fp8(detected: DetectedTransformer) -> dict[str, int]:
    """Bytes of a transformer whose big layers become fp8 while it loads; nothing where the file decides."""
    if not isinstance(detected.policy, PlainWeights):
        return {}
    view, config = detected.view, detected.config
    kinds = ("img_attn_qkv", "img_attn_proj", "img_mlp.fc1", "img_mlp.fc2")
    layers = [f"double_blocks.{i}.{kind}" for i in range(config.num_double_blocks) for kind in kinds]
    layers += [layer.replace("img_", "txt_") for layer in layers]
    layers += [f"single_blocks.{i}.{kind}" for i in range(config.num_single_blocks) for kind in ("linear1", "linear2")]
    small = sum(
        prod(view.info(key).shape)
        for layer in layers
        if (key := f"{layer}.weight") in view and BIG_LINEARS.match(layer)
    )
    total = sum(prod(info.shape) for info in view.checkpoint.tensors.values())
    return {"made fp8 on load (fp8_scaled)": 2 * total - small}


def transformer_sizes(checkpoint: Checkpoint) -> str | None:
    """Sizes of a transformer whose other sizes stay unknown, as far as names and shapes tell."""
    view = find_view(checkpoint, TRANSFORMER_DIALECTS, TRANSFORMER_PROBES)
    if view is None or "img_in.proj.weight" not in view:
        return None
    found = [(match[1], match[2]) for match in map(BLOCK.search, checkpoint.tensors) if match]
    single = len({number for kind, number in found if kind.startswith("single")})
    double = len({number for kind, number in found if not kind.startswith("single")})
    return f"{view.info('img_in.proj.weight').shape[0]} wide, {double} double and {single} single blocks"


def vae_findings(checkpoint: Checkpoint, detected: DetectedVae, cover: Coverage) -> Findings:
    """Findings on an autoencoder file that was opened."""
    found = file_findings(checkpoint)
    described = replace(
        found,
        variant=f"{detected.config.latent_channels} latent channels",
        dialect="official and diffusers' names" if detected.view.dialect.name == "official" else "ComfyUI names",
        prefix=detected.view.prefix,
        needs=vae_needs(detected.config),
    )
    return _covered(described, cover)


def llama_findings(checkpoint: Checkpoint, config: LlamaConfig, cover: Coverage) -> Findings:
    """Findings on a language model file that was opened."""
    found = file_findings(checkpoint)
    view = llama_view(checkpoint)
    policy = find_policy(view)
    layers = f"{config.num_layers} layers, {config.hidden_size} wide, {config.vocab_size} rows"
    beside, usual = parts_aside(cover), LlamaConfig()
    is_llama3 = config.hidden_size == usual.hidden_size and config.vocab_size in LLAMA3_ROWS
    notes = (
        f"holds {beside} besides, which text to video does not need" if beside else None,
        OTHER_VOCABULARY if config.hidden_size == usual.hidden_size and not is_llama3 else None,
        *_cast_notes(policy),
    )
    described = replace(
        found,
        variant=f"Llama-3 8B; {layers}" if is_llama3 and config.num_layers == usual.num_layers else layers,
        dialect="transformers' names",
        prefix=view.prefix,
        precision=_precision(policy.label, found),
        memory=_memory(checkpoint, cover),
        needs=encoder_needs("llm", config),
        notes=tuple(filter(None, notes)),
    )
    return _covered(described, cover)


def clip_findings(checkpoint: Checkpoint, config: ClipTextConfig, cover: Coverage) -> Findings:
    """Findings on a CLIP file that was opened."""
    found = file_findings(checkpoint)
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
