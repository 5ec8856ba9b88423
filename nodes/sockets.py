"""Our socket types, and what native sockets carry in our terms."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..hyvideo_core.errors import ConditioningError, ShapeError
from ..hyvideo_core.pipeline import StartLatents
from ..hyvideo_core.text_encoders.conditioning import Conditioning, gather_valid
from .host import device_for, io

logger = logging.getLogger(__name__)

HYVModel = io.Custom("HYV_MODEL")
HYVTextEncoders = io.Custom("HYV_TEXT_ENCODERS")
HYVStepCache = io.Custom("HYV_STEP_CACHE")

TEMPLATE_KEY = "hyv_template"
UNSUPPORTED_ENTRIES = (
    "area",
    "mask",
    "hooks",
    "control",
    "gligen",
    "start_percent",
    "end_percent",
    "timestep_start",
    "timestep_end",
    "concat_latent_image",
    "concat_mask",
    "guiding_frame_index",
    "ref_latent",
)
"""What a native conditioning may ask for and this sampler does not do: refused, never ignored."""
LATENT_MARKS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A CONDITIONING in our terms: one conditioning for all samples or one for each.

    Attributes:
        guidance: the embedded guidance that it carries, which wins over the widget.
        template: the template that our text node used, None if another node made it.
    """

    samples: Sequence[Conditioning]
    guidance: float | None
    template: str | None


def read_conditioning(conditioning: Sequence[Sequence[Any]], name: str) -> Prompts:
    """A CONDITIONING from our text node or a native one.

    Args:
        name: what to call it in errors, "positive" or "negative".
    Raises:
        ConditioningError: several entries, or something in one that is not supported; names it.
    """
    if len(conditioning) != 1:
        raise ConditioningError(
            f"the {name} conditioning has {len(conditioning)} entries, expected one; "
            "combined or scheduled conditionings are not supported, connect a single text encode"
        )
    states, extra = conditioning[0]
    unsupported = [key for key in UNSUPPORTED_ENTRIES if extra.get(key) is not None]
    if unsupported:
        raise ConditioningError(
            f"the {name} conditioning asks for {', '.join(unsupported)}, which this sampler does not do; "
            "remove the node that adds it"
        )
    mask, pooled = extra.get("attention_mask"), extra.get("pooled_output")
    if mask is not None and mask.ndim == 2 and len(mask) == 1:
        mask = mask.expand(len(states), -1)
    rows = gather_valid(states, mask) if mask is not None else list(states.split(1))
    pooled_rows = _pooled_rows(pooled, len(rows), name)
    samples = [Conditioning(states=row, pooled=vector) for row, vector in zip(rows, pooled_rows, strict=True)]
    guidance = extra.get("guidance")
    return Prompts(
        samples=samples,
        guidance=None if guidance is None else float(guidance),
        template=extra.get(TEMPLATE_KEY),
    )


def _pooled_rows(pooled: Tensor | None, num_samples: int, name: str) -> list[Tensor | None]:
    if pooled is None:
        return [None] * num_samples
    if len(pooled) not in (1, num_samples):
        raise ConditioningError(
            f"the {name} conditioning has {len(pooled)} pooled vectors for {num_samples} texts, expected as many"
        )
    return [pooled[index if len(pooled) > 1 else 0][None] for index in range(num_samples)]


# what is cached may be trained on, which tensors that are copied in inference mode can never be
@torch.inference_mode(False)
def write_conditioning(conditioning: Conditioning, template: str) -> list[list[Any]]:
    """A CONDITIONING that our sampler and native ones take; no mask, since nothing is padded."""
    device = device_for("intermediate")
    extra: dict[str, Any] = {TEMPLATE_KEY: template}
    if conditioning.pooled is not None:
        extra["pooled_output"] = conditioning.pooled.to(device)
    return [[conditioning.states.to(device), extra]]


def read_latent(latent: Mapping[str, Any]) -> StartLatents:
    """A LATENT in our terms.

    Raises:
        ShapeError: not the latents of a video.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or samples.ndim != 5:
        shape = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ShapeError(
            f"the latent is {shape}, expected [batch, 16, frames, height/8, width/8]; "
            "connect HunyuanVideo Empty Latent or a HunyuanVideo VAE encode"
        )
    return StartLatents(samples=samples, noise_mask=latent.get("noise_mask"), batch_index=latent.get("batch_index"))


def write_latent(samples: Tensor, source: Mapping[str, Any]) -> dict[str, Any]:
    """A LATENT with new samples and everything else that `source` carried, without the host's marks of empty ones."""
    kept = {key: value for key, value in source.items() if key not in LATENT_MARKS}
    return kept | {"samples": samples}
