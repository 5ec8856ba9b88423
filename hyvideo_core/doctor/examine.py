"""Files to findings, from headers alone: no weight is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import HYVIDEO_T2_CFGDISTILL
from ..errors import ConfigError, HyVideoError
from ..loading import Checkpoint, DetectedTransformer, detect_transformer, detect_vae, open_checkpoint, recognise
from ..loading.build import coverage
from ..loading.text import clip_coverage, detect_clip, detect_llama, llama_coverage
from ..lora import recognise_lora
from .findings import Findings, LoraFindings
from .header_only import header_only
from .needs import lora_needs
from .parts import (
    clip_findings,
    file_findings,
    llama_findings,
    transformer_findings,
    transformer_sizes,
    vae_findings,
)

PUBLISHED_MODEL = "the published 13B model"


def inspect(path: Path, model: DetectedTransformer | None = None) -> Findings:
    """What a file, or a folder of shards, is. Never raises for what is wrong with it: that is a finding.

    Args:
        path: the file.
        model: for a LoRA, the transformer that it is to fit; None for the published 13B model.
    """
    try:
        checkpoint = header_only(open_checkpoint(path))
        found = file_findings(checkpoint)
    except HyVideoError as error:
        return Findings(file=path.name, problem=str(error))
    except OSError as error:
        problem = f"{path.name} cannot be opened ({error.strerror or 'the system refuses it'}); check that it is there"
        return Findings(file=path.name, problem=problem)
    try:
        return _examine(checkpoint, found, model)
    except ConfigError as error:
        return replace(found, variant=transformer_sizes(checkpoint), problem=str(error))
    except HyVideoError as error:
        return replace(found, problem=str(error))


def model_to_fit(path: Path) -> DetectedTransformer:
    """The transformer that LoRAs are to fit, from its header alone.

    Raises:
        CheckpointError: it cannot be read, or is something else.
    """
    return detect_transformer(header_only(open_checkpoint(path)))


def _examine(checkpoint: Checkpoint, found: Findings, model: DetectedTransformer | None) -> Findings:
    """What can be said of the files that this pack opens; of others no more than `found`."""
    part = recognise(checkpoint).part
    if part == "transformer":
        detected = detect_transformer(checkpoint)
        return transformer_findings(checkpoint, detected, coverage(detected))
    if part == "vae":
        vae = detect_vae(checkpoint)
        return vae_findings(checkpoint, vae, coverage(vae))
    if part == "llm":
        llama = detect_llama(checkpoint)
        return llama_findings(checkpoint, llama, llama_coverage(checkpoint, llama))
    if part == "clip":
        clip = detect_clip(checkpoint)
        return clip_findings(checkpoint, clip, clip_coverage(checkpoint, clip))
    return _lora(checkpoint, found, model) if part == "lora" else found


def _lora(checkpoint: Checkpoint, found: Findings, model: DetectedTransformer | None) -> Findings:
    config = model.config if model else HYVIDEO_T2_CFGDISTILL
    kind = recognise_lora(checkpoint, config)
    if kind is None:
        return found
    is_wider = kind.in_channels != config.in_channels
    widens = f"widens the model's input from {config.in_channels} to {kind.in_channels} latent channels"
    lora = LoraFindings(
        dialect=kind.dialect,
        kinds=kind.kinds,
        ranks=kind.ranks,
        targets=kind.targets,
        model=model.view.checkpoint.name if model else PUBLISHED_MODEL,
        matched=kind.coverage.matched,
        expected=kind.coverage.expected,
        strays=tuple(kind.coverage.stray),
        unapplied=kind.coverage.unapplied,
        text_encoder=len(kind.coverage.text_encoder),
        refusal=kind.refusal,
    )
    whose = f"a LoRA for {kind.family}" if kind.family else found.kind
    # a LoRA that was compared with nobody's model in particular may still fit the one that it was made for
    problem = kind.refusal if model else None
    described = replace(
        found,
        kind=whose,
        dialect=kind.dialect,
        lora=lora,
        problem=problem,
        needs=lora_needs(),
        notes=(widens,) if is_wider else (),
    )
    is_foreign = kind.refusal is not None and (kind.family is not None or not kind.coverage.expected)
    return replace(described, opened_by=None, needs=()) if is_foreign else described
