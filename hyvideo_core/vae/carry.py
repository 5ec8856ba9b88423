"""What a clip that is decoded in consecutive chunks hands from one chunk to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance [B, groups] of so many values each, in float32 at least."""

    count: int
    mean: Tensor
    variance: Tensor

    def joined(self, other: Moments) -> Moments:
        """Those of the values of both.

        Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
        variances".
        """
        count = self.count + other.count
        share = other.count / count
        step = other.mean - self.mean
        variance = self.variance.lerp(other.variance, share) + step.square() * (share * (1 - share))
        return Moments(count, self.mean + step * share, variance)


class Carry:
    """The last frames that every convolution has read, and the moments that every norm has seen so far.

    With the frames, convolutions of chunks are those of the whole clip. Norms are not: the whole clip's statistics are
    not known before its end, so that a chunk is normalised by those of the clip up to its own last frame.
    """

    def __init__(self) -> None:
        self._frames: dict[nn.Module, Tensor] = {}
        self._moments: dict[nn.Module, Moments] = {}

    def frames_before(self, layer: nn.Module, x: Tensor, count: int) -> Tensor | None:
        """Up to `count` frames that came before the chunk x, or None at the start; x's last ones are kept for later."""
        before = self._frames.get(layer)
        recent = x[:, :, -count:]
        if before is not None and x.shape[2] < count:
            recent = torch.cat([before, x], dim=2)[:, :, -count:]
        self._frames[layer] = recent.clone()  # x may be overwritten
        return before

    def moments_until_now(self, norm: nn.Module, moments: Moments) -> Moments | None:
        """Those of the chunk and all before it; None at the start, where the norm finds the chunk's own by itself."""
        before = self._moments.get(norm)
        self._moments[norm] = moments if before is None else before.joined(moments)
        return None if before is None else self._moments[norm]
