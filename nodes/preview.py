"""A small picture of unfinished latents, for the sampler's preview."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..hyvideo_core.loading import Checkpoint
from . import host

METADATA_KEY = "latent_rgb"


@dataclass(frozen=True, slots=True)
class LatentPreview:
    """A linear map from latent channels to red, green and blue in -1..1."""

    factors: Sequence[Sequence[float]]
    bias: Sequence[float]

    def draw(self, denoised: Tensor) -> Image.Image:
        """The middle frame of latents [1, C, T, H, W], scaled as the model sees them, at latent size."""
        frame = denoised[0, :, denoised.shape[2] // 2].float().movedim(0, -1).cpu()
        rgb = frame @ torch.tensor(self.factors) + torch.tensor(self.bias)
        pixels = ((rgb + 1) * 127.5).clamp(0, 255).byte()
        return Image.fromarray(pixels.numpy())


def find_preview(checkpoint: Checkpoint, num_channels: int) -> LatentPreview | None:
    """The preview for a model's latents, if previews are wanted: stored with the model, else the host's for the 13B."""
    if not host.preview_wanted():
        return None
    if METADATA_KEY in checkpoint.metadata:
        stored = json.loads(checkpoint.metadata[METADATA_KEY])
        return LatentPreview(stored["factors"], stored["bias"])
    factors, bias = host.preview_factors() or ([], [])
    return LatentPreview(factors, bias) if len(factors) == num_channels else None
