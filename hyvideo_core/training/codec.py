"""A linear codec that anchors the latents: principal components of causal 4x8x8 patches.

It gives the transformer something to learn from before any convolution is trained, and gives the autoencoder a
target: the encoder learns pixels -> these latents, the decoder these latents -> pixels, each on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ShapeError
from ..shapes import SPATIAL_FACTOR, TIME_FACTOR

DEVIATION_POWER = 0.75
_PATCHES = "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)"
_FACTORS = {"pt": TIME_FACTOR, "ph": SPATIAL_FACTOR, "pw": SPATIAL_FACTOR}


def to_patches(video: Tensor) -> Tensor:
    """(B, 3, 4k+1, H, W) to (B, k+1, H/8, W/8, 768); the first frame stands for four, as causal padding has it.

    Raises:
        ShapeError: sizes that are not whole patches.
    """
    frames, height, width = video.shape[2:]
    if (frames - 1) % TIME_FACTOR or height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
        raise ShapeError(
            f"a clip of {frames} frames, {height}x{width}, is not whole patches; "
            f"use 4k+1 frames and sides that are multiples of {SPATIAL_FACTOR}"
        )
    first = video[:, :, :1].expand(-1, -1, TIME_FACTOR - 1, -1, -1)
    return rearrange(torch.cat((first, video), dim=2), _PATCHES, **_FACTORS)


def from_patches(patches: Tensor) -> Tensor:
    """The inverse of `to_patches`; the first frame is the mean of its four copies."""
    video = rearrange(patches, "b t h w (c pt ph pw) -> b c (t pt) (h ph) (w pw)", c=3, **_FACTORS)
    first = video[:, :, :TIME_FACTOR].mean(dim=2, keepdim=True)
    return torch.cat((first, video[:, :, TIME_FACTOR:]), dim=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchCodec:
    """Unit-sized latents (B, C, T, H, W) of clips, and back, by one matrix each way.

    Channel k has the deviation of its component to the power of DEVIATION_POWER: whitening would spend the
    transformer's effort on what the eye hardly sees, raw components would leave it blind to detail.
    """

    mean: Tensor
    encode_matrix: Tensor
    decode_matrix: Tensor

    @classmethod
    def fit(cls, clips: Tensor, channels: int) -> PatchCodec:
        """Fitted on clips (B, 3, F, H, W) in -1..1; latents get a mean square of 1 over all channels."""
        patches = to_patches(clips).flatten(0, -2).double()
        mean = patches.mean(dim=0)
        variance, vectors = torch.linalg.eigh((patches - mean).T.cov())
        deviation = variance.flip(0)[:channels].sqrt()
        basis = vectors.flip(1)[:, :channels]
        # eigenvectors come with arbitrary signs: fix them, so that every machine gets the same latents
        basis = basis * basis.sum(dim=0).sign()
        scale = deviation.pow(DEVIATION_POWER - 1)
        scale = scale / (deviation * scale).square().mean().sqrt()
        encode, decode = (basis * scale).float(), (basis / scale).T.float()
        return cls(mean=mean.float(), encode_matrix=encode.contiguous(), decode_matrix=decode.contiguous())

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) to (B, C, T, H/8, W/8)."""
        return rearrange((to_patches(video) - self.mean) @ self.encode_matrix, "b t h w c -> b c t h w")

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 3, F, 8H, 8W), unclamped."""
        return from_patches(rearrange(latents, "b c t h w -> b t h w c") @ self.decode_matrix + self.mean)

    def state_dict(self) -> dict[str, Tensor]:
        """What to store."""
        return {"mean": self.mean, "encode_matrix": self.encode_matrix, "decode_matrix": self.decode_matrix}


def preview_factors(latents: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares map from a latent to the mean colour of its patch, for previews while sampling.

    Args:
        latents: (B, C, T, H, W) as the sampler sees them.
        video: (B, 3, F, 8H, 8W) in -1..1.
    Returns:
        factors (C, 3) and bias (3,), giving -1..1.
    """
    colours = rearrange(to_patches(video), "b t h w (c p) -> (b t h w) c p", c=3).mean(dim=-1)
    rows = rearrange(latents, "b c t h w -> (b t h w) c").float()
    solution = torch.linalg.lstsq(torch.cat((rows, torch.ones_like(rows[:, :1])), dim=1), colours).solution
    return solution[:-1], solution[-1]
