"""Weight files written anew, in another layout or precision, for this pack and any other tool."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, OptionError
from ..model import Transformer
from ..vae import VideoAutoencoder
from .build import check_complete
from .checkpoint import Checkpoint, TensorInfo
from .comfy_quant import METADATA as QUANTIZATION
from .containers import open_checkpoint
from .detect import DetectedTransformer, DetectedVae, detect_transformer, detect_vae
from .fp8_policies import MARKER
from .key_maps import COMFY_SCALE, COMFY_VAE, DIFFUSERS, OFFICIAL, Dialect
from .policies import PlainWeights
from .recognise import recognise, refusal
from .safetensors_file import SAFETENSORS_SUFFIXES
from .safetensors_writer import SafetensorsWriter, writing
from .save_pieces import E4M3, Job, MadeFp8, Piece, Wide, scaled_piece

logger = logging.getLogger(__name__)

TRANSFORMER_LAYOUTS = {"official": OFFICIAL, "comfy": COMFY_SCALE, "diffusers": DIFFUSERS}
# diffusers took over the official names of this part
VAE_LAYOUTS = {"official": OFFICIAL, "comfy": COMFY_VAE, "diffusers": OFFICIAL}
DIALECTS = tuple(TRANSFORMER_LAYOUTS)
WIDE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FP8_SCALED = "fp8_scaled"
PRECISIONS = (*WIDE, FP8_SCALED)
EXPECTED = "a HunyuanVideo transformer or VAE, which are what can be saved anew"

Detected = DetectedTransformer | DetectedVae


def save_as(source: Path, target: Path, *, dialect: str, precision: str, overwrite: bool = False) -> None:
    """Writes the transformer or VAE of `source` to a .safetensors file, tensor by tensor.

    Numbers keep their bits where the precision holds them: in the same dtype, in a wider one, and e4m3 weights with
    one scale each. `fp8_scaled` is ComfyUI's `scaled_fp8` layout: the big layers of the blocks in e4m3 with one scale
    each, everything else as it was; fp8 weights stored otherwise are rounded anew, and the log says so. `target`
    appears when it is whole.

    Args:
        dialect: official, comfy or diffusers.
        precision: bf16, fp16, fp32 or fp8_scaled.
        overwrite: replace `target` if it exists, even if it is `source`.
    Raises:
        OptionError: a choice that does not exist, or not for this part; numbers that fp16 does not hold.
        CheckpointError: `source` cannot be read or `target` cannot be written.
    """
    if dialect not in DIALECTS or precision not in PRECISIONS:
        raise OptionError(
            f"no dialect {dialect} with precision {precision}; choose one of {', '.join(DIALECTS)} and one of "
            f"{', '.join(PRECISIONS)}"
        )
    _check_target(source, target, overwrite)
    detected = _detect(open_checkpoint(source))
    check_complete(detected)
    job = _job(detected, dialect, precision)
    pieces = _pieces(job, precision)
    promised = {name: info for piece in pieces for name, info in piece.promised().items()}
    marks = {MARKER: torch.zeros(2, dtype=E4M3)} if precision == FP8_SCALED else {}
    promised |= {name: TensorInfo(tuple(mark.shape), mark.dtype) for name, mark in marks.items()}
    _warn_of_second_rounding(target, pieces)
    checkpoint = job.policy.view.checkpoint
    with writing(target, promised, _metadata(checkpoint)) as writer:
        _write(writer, marks)
        _write_pieces(writer, pieces, checkpoint)
    logger.info("%s: %s tensors, %s names, %s", target.name, len(promised), dialect, precision)


def _pieces(job: Job, precision: str) -> list[Piece]:
    shapes = {key: tuple(empty.shape) for key, empty in job.model.state_dict().items()}
    if precision != FP8_SCALED:
        return [Wide(job, key, shape, WIDE[precision]) for key, shape in shapes.items()]
    with torch.inference_mode(False), job.policy.view.checkpoint.reading() as read:
        return [scaled_piece(job, key, shape, read) for key, shape in shapes.items()]


def _warn_of_second_rounding(target: Path, pieces: list[Piece]) -> None:
    names = [piece.key for piece in pieces if isinstance(piece, MadeFp8) and piece.is_second]
    if names:
        logger.warning(
            "%s: %s fp8 weights are rounded a second time, such as %s: other tools read e4m3 with one scale for each "
            "weight, the source has e5m2 or a scale for each row; the bf16 file, or --precision bf16, loses nothing",
            target.name,
            len(names),
            names[0],
        )


def _write_pieces(writer: SafetensorsWriter, pieces: list[Piece], checkpoint: Checkpoint) -> None:
    # apart, so that the file is no longer open when the new one may take its place
    with torch.inference_mode(False), checkpoint.reading() as read:
        for piece in pieces:
            _write(writer, piece.read(read))


def _write(writer: SafetensorsWriter, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        writer.write(name, tensor)


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.suffix.lower() not in SAFETENSORS_SUFFIXES:
        raise CheckpointError(f"{target.name} would be a safetensors file; let its name end in .safetensors")
    if not target.parent.is_dir():
        raise CheckpointError(
            f"there is no folder {target.absolute().parent.name} for {target.name}; make it or choose another"
        )
    if target.is_dir():
        raise CheckpointError(f"{target.name} is a folder; choose the name of a file")
    if target.exists() and not overwrite:
        what = "is the file to be read" if source.exists() and target.samefile(source) else "exists already"
        raise CheckpointError(f"{target.name} {what}; choose another name, or replace it with --overwrite")


def _detect(checkpoint: Checkpoint) -> Detected:
    part = recognise(checkpoint).part
    if part == "transformer":
        return detect_transformer(checkpoint)
    if part == "vae":
        return detect_vae(checkpoint)
    raise refusal(checkpoint, EXPECTED)


def _job(detected: Detected, dialect: str, precision: str) -> Job:
    with torch.device("meta"):
        if isinstance(detected, DetectedTransformer):
            model: nn.Module = Transformer(detected.config)
            layout: Dialect = TRANSFORMER_LAYOUTS[dialect]
            return Job(model, detected.policy, layout, detected.config.hidden_size)
        if precision == FP8_SCALED:
            raise OptionError(
                f"{detected.view.checkpoint.name} is a VAE, which {FP8_SCALED} is not made for: its layers are "
                f"convolutions; choose one of {', '.join(WIDE)}"
            )
        return Job(VideoAutoencoder(detected.config), PlainWeights(detected.view), VAE_LAYOUTS[dialect], 0)


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The file's own, without what speaks of a quantization that is gone."""
    kept = {key: value for key, value in checkpoint.metadata.items() if key != QUANTIZATION}
    config = {"config": json.dumps(dict(checkpoint.config))} if checkpoint.config else {}
    return {"format": "pt", **kept, **config}
