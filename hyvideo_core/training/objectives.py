"""What is minimised: reconstruction for the autoencoder's halves, flow matching and its distillation for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import matmul_attention, sdpa
from ..model.transformer import Transformer

GUIDANCE_UNIT = 1000.0


@dataclass(frozen=True, slots=True)
class TextCondition:
    """Text of a batch: states (B, L, D) of one length, pooled (B, P)."""

    states: Tensor
    pooled: Tensor

    def to(self, device: torch.device) -> TextCondition:
        """The same on another device."""
        return TextCondition(self.states.to(device), self.pooled.to(device))

    def expand(self, batch: int) -> TextCondition:
        """One caption's condition for a whole batch."""
        return TextCondition(self.states.expand(batch, -1, -1), self.pooled.expand(batch, -1))


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevels:
    """Which noise levels are trained on: uniform for a share, else logit-normal around a higher level.

    The layout of a clip is decided at high noise, where a shifted sampler spends most of its steps.

    Source: Esser et al. 2024, sec. 3.1.
    """

    uniform_share: float = 0.5
    mean: float = 1.0
    deviation: float = 1.0

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """(B,) in 0..1."""
        uniform = torch.rand(batch, generator=generator)
        normal = torch.sigmoid(torch.randn(batch, generator=generator) * self.deviation + self.mean)
        return torch.where(torch.rand(batch, generator=generator) < self.uniform_share, uniform, normal)


def noised(latents: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The point on the straight path from latents (level 0) to noise (level 1), and the velocity along it.

    Args:
        latents, noise: (B, C, T, H, W).
        levels: (B,).
    Source: Liu et al. 2022, "Flow straight and fast"; Lipman et al. 2023.
    """
    level = levels.view(-1, 1, 1, 1, 1)
    return latents + level * (noise - latents), noise - latents


def velocity(model: Transformer, point: Tensor, levels: Tensor, text: TextCondition, scale: Tensor) -> Tensor:
    """The model's velocity in float32, at noise levels (B,) and guidance scales (B,)."""
    guidance = scale * GUIDANCE_UNIT if model.config.has_guidance else None
    attention = sdpa if point.is_cuda else matmul_attention
    return model(point, levels * 1000.0, [text.states], text.pooled, guidance, attention=attention).float()


def flow_matching_loss(
    model: Transformer, latents: Tensor, noise: Tensor, levels: Tensor, text: TextCondition
) -> Tensor:
    """Mean squared error of the velocity; the guidance input, where there is one, says 1: unguided."""
    point, target = noised(latents, noise, levels)
    return F.mse_loss(velocity(model, point, levels, text, torch.ones_like(levels)), target)


def guided_velocity(
    teacher: Transformer, point: Tensor, levels: Tensor, text: TextCondition, empty: TextCondition, scale: Tensor
) -> Tensor:
    """Classifier-free guidance of a plain model: unconditional + scale * (conditional - unconditional).

    Source: Ho and Salimans 2022.
    """
    ones = torch.ones_like(levels)
    with torch.no_grad():
        conditional = velocity(teacher, point, levels, text, ones)
        unconditional = velocity(teacher, point, levels, empty.expand(len(levels)), ones)
    return unconditional + scale.view(-1, 1, 1, 1, 1) * (conditional - unconditional)


def distillation_loss(
    student: Transformer, point: Tensor, levels: Tensor, text: TextCondition, scale: Tensor, target: Tensor
) -> Tensor:
    """Error of one guided forward against the teacher's two, weighted by 1 / scale^2.

    Unweighted, strong guidance would drown the weak one, since the target's size grows with the scale.

    Source: Meng et al. 2023, "On distillation of guided diffusion models".
    """
    error = (velocity(student, point, levels, text, scale) - target).square().mean(dim=(1, 2, 3, 4))
    return (error / scale.square()).mean()


def reconstruction_loss(video: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Absolute plus squared error, weighted per pixel; the first keeps edges sharp, the second is what PSNR sees.

    Args:
        video, target: (B, 3, F, H, W).
        weight: broadcastable, around the objects above 1: they are small, and background alone is an easy optimum.
    """
    error = video.float() - target
    return (weight * (error.abs() + 2.0 * error.square())).sum() / (weight.expand_as(error)).sum()


def latent_likelihood(moments: Tensor, target: Tensor) -> Tensor:
    """How well predicted moments (B, 2C, T, H, W) explain latents (B, C, T, H, W).

    The mean learns by squared error alone; the log-variance learns, apart from it, how large that error is.
    """
    mean, log_variance = moments.float().chunk(2, dim=1)
    squared = (mean - target).square()
    spread = log_variance.clamp(-12.0, 6.0)
    return squared.mean() + 0.05 * (spread + squared.detach() / spread.exp()).mean()


def psnr(video: Tensor, target: Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB, for videos in -1..1."""
    error = ((video.clamp(-1, 1) - target) / 2).square().mean(dim=(1, 2, 3, 4))
    return float((-10 * torch.log10(error)).mean())
