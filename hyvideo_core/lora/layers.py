"""A layer with LoRAs beside it: the layer itself stays as it is, whatever its weight is stored as.

Shapes: O out, I in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .factors import Factor, Rows
from .read_parts import Change

LENGTH_EPS = 1e-12


class SidePath(nn.Module, ABC):
    """What one change adds to some rows of a layer's output.

    Attributes:
        rows: first and past-last output channel that it changes.
        strength: what the change is multiplied by.
        replaces: it gives the whole output of its rows, so that the layer's own is not needed.
    """

    replaces = False

    def __init__(self, rows: Rows, strength: float) -> None:
        super().__init__()
        self.rows, self.strength = rows, strength

    @abstractmethod
    def apply_to(self, y: Tensor, x: Tensor, base: Any, rows: Rows) -> None:
        """Writes the change into the layer's output.

        Args:
            y: [..., b - a], the output channels (a, b) of the layer below.
            x: [..., I], in the layer's dtype.
            base: the layer below.
            rows: (a, b), within `self.rows`.
        """

    @abstractmethod
    def merge_into(self, weight: Tensor) -> None:
        """Writes the change into the layer's weight [O, I]."""

    def _own(self, rows: Rows) -> Rows:
        """Output channels of the layer, counted from the first one of this path."""
        return rows[0] - self.rows[0], rows[1] - self.rows[0]


class AddedPath(SidePath):
    """A change that is added. A factor for fewer input channels than the layer has leaves the others alone."""

    def __init__(self, factor: Factor, rows: Rows, strength: float) -> None:
        super().__init__(rows, strength)
        self.factor = factor

    def apply_to(self, y: Tensor, x: Tensor, base: Any, rows: Rows) -> None:  # noqa: ARG002
        """See SidePath.apply_to."""
        self.factor.add_to(y, x[..., : self.factor.in_features], self._own(rows), self.strength)

    def merge_into(self, weight: Tensor) -> None:
        """See SidePath.merge_into."""
        part = weight[self.rows[0] : self.rows[1], : self.factor.in_features]
        part.add_(self.factor.dense().to(weight), alpha=self.strength)


class OutputGainPath(SidePath):
    """DoRA with one length for each output channel.

    Source: Liu et al. 2024, "DoRA", eq. 5.
    """

    gain: Tensor

    def __init__(self, factor: Factor, gain: Tensor, rows: Rows, strength: float) -> None:
        super().__init__(rows, strength)
        self.factor = factor
        self.register_buffer("gain", gain)

    def apply_to(self, y: Tensor, x: Tensor, base: Any, rows: Rows) -> None:
        """See SidePath.apply_to."""
        first, last = self._own(rows)
        gain = self.gain[first:last]
        offset = 0 if base.bias is None else base.bias[rows[0] : rows[1]]
        changed = (y - offset) * (1 + self.strength * (gain - 1))
        y.copy_(changed + self.factor(x, (first, last)) * (self.strength * gain) + offset)

    def merge_into(self, weight: Tensor) -> None:
        """See SidePath.merge_into."""
        part = weight[self.rows[0] : self.rows[1]]
        changed = (part + self.factor.dense().to(weight)) * self.gain[:, None].to(weight)
        part.lerp_(changed, self.strength)


class InputGainPath(SidePath):
    """DoRA with one length for each input channel."""

    gain: Tensor
    replaces = True

    def __init__(self, factor: Factor, gain: Tensor, rows: Rows, strength: float) -> None:
        super().__init__(rows, strength)
        self.factor = factor
        self.register_buffer("gain", gain)

    def apply_to(self, y: Tensor, x: Tensor, base: Any, rows: Rows) -> None:
        """See SidePath.apply_to."""
        y.copy_(base(x * (1 + self.strength * (self.gain - 1)), rows=rows))
        y.add_(self.factor((x * self.gain).to(x.dtype), self._own(rows)), alpha=self.strength)

    def merge_into(self, weight: Tensor) -> None:
        """See SidePath.merge_into."""
        part = weight[self.rows[0] : self.rows[1]]
        part.lerp_((part + self.factor.dense().to(weight)) * self.gain.to(weight), self.strength)


class ReplacedPath(SidePath):
    """Another weight in the place of the layer's; a strength between 0 and 1 lies between both."""

    def __init__(self, weight: nn.Parameter, rows: Rows, strength: float) -> None:
        super().__init__(rows, strength)
        self.weight = weight

    def apply_to(self, y: Tensor, x: Tensor, base: Any, rows: Rows) -> None:
        """See SidePath.apply_to."""
        first, last = self._own(rows)
        bias = None if base.bias is None else base.bias[rows[0] : rows[1]]
        y.lerp_(F.linear(x[..., : self.weight.shape[1]], self.weight[first:last], bias), self.strength)

    def merge_into(self, weight: Tensor) -> None:
        """See SidePath.merge_into."""
        part = weight[self.rows[0] : self.rows[1], : self.weight.shape[1]]
        part.lerp_(self.weight.to(weight), self.strength)


class LoraLinear(nn.Module):
    """A linear layer, however it stores its weight, with the changes of one LoRA file.

    Several files wrap one another, the first one innermost.

    Args:
        base: called as `base(x, rows=...)`, with `dequantized()`, `bias`, `compute_dtype` and both sizes.
        changes: with the rows that each is for; no two share rows.
        strength: what all of them are multiplied by.
    """

    def __init__(self, base: Any, changes: Sequence[tuple[Change, Rows]], strength: float) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.strength = strength
        self.paths: Sequence[SidePath] = nn.ModuleList(  # type: ignore[assignment]
            path for change, rows in changes if (path := _side_path(change, rows, strength, base)) is not None
        )
        self.bias_changes = [(change.bias, rows) for change, rows in changes if change.bias is not None]
        # named as parameters too, so that whoever moves the layer's weights moves them
        self.biases = nn.ParameterList(bias for bias, _ in self.bias_changes)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What comes out of this layer."""
        return self.base.compute_dtype

    @property
    def bias(self) -> Tensor | None:
        """The bias with its changes, [O]."""
        bias: Tensor | None = self.base.bias
        if bias is None or not self.bias_changes:
            return bias
        changed = bias.clone()
        for change, (first, last) in self.bias_changes:
            changed[first:last].add_(change.to(changed), alpha=self.strength)
        return changed

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """[..., in] to [..., out], or [..., b - a] for rows (a, b), in `compute_dtype`."""
        start, stop = rows or (0, self.out_features)
        spans = [(path, span) for path in self.paths if (span := _overlap(path.rows, (start, stop)))]
        if sum(span[1] - span[0] for path, span in spans if path.replaces) == stop - start:
            y = x.new_empty(*x.shape[:-1], stop - start, dtype=self.compute_dtype)
        else:
            y = self.base(x, rows=rows)
        narrow = x.to(self.compute_dtype)
        for path, span in spans:
            path.apply_to(y[..., span[0] - start : span[1] - start], narrow, self.base, span)
        for change, own in self.bias_changes:
            if span := _overlap(own, (start, stop)):
                part = change[span[0] - own[0] : span[1] - own[0]]
                y[..., span[0] - start : span[1] - start].add_(part, alpha=self.strength)
        return y

    def dequantized(self, rows: Rows | None = None) -> Tensor:
        """The weight with its changes merged, [O, I] or [b - a, I] for rows (a, b), in `compute_dtype`."""
        weight = self.merged().to(self.compute_dtype)
        return weight if rows is None else weight[rows[0] : rows[1]]

    def merged(self) -> Tensor:
        """The weight with its changes merged, [O, I], float32, in memory of its own."""
        weight = dense_weight(self.base)
        for path in self.paths:
            path.merge_into(weight)
        return weight


class PatchLinear(nn.Module):
    """The patch embedding's convolution as a linear layer over flat patches; shares its parameters."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv
        self.out_features, self.in_features = conv.weight.shape[0], conv.weight[0].numel()

    @property
    def compute_dtype(self) -> torch.dtype:
        """What comes out of this layer."""
        return self.conv.weight.dtype

    @property
    def bias(self) -> Tensor | None:
        """[O]."""
        return self.conv.bias

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """[..., I] to [..., O], or [..., b - a] for rows (a, b)."""
        first, last = rows or (0, self.out_features)
        bias = None if self.conv.bias is None else self.conv.bias[first:last]
        return F.linear(x.to(self.compute_dtype), self.dequantized()[first:last], bias)

    def dequantized(self) -> Tensor:
        """The kernel as a matrix, [O, I]."""
        return self.conv.weight.flatten(1)


class LoraPatchEmbed(nn.Module):
    """Latents to image tokens, with LoRAs beside the convolution.

    Args:
        proj: the convolution of the model, or a wider copy of it.
        linear: it, as PatchLinear, wrapped in the changes.
    """

    def __init__(self, proj: nn.Conv3d, linear: LoraLinear, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj, self.linear, self.patch_size = proj, linear, patch_size

    def forward(self, latents: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, L, D], frames slowest, columns fastest."""
        pt, ph, pw = self.patch_size
        pattern = "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)"
        return self.linear(rearrange(latents, pattern, pt=pt, ph=ph, pw=pw))


def dense_weight(layer: Any) -> Tensor:
    """A layer's weight, [O, I], float32, in memory of its own."""
    if isinstance(layer, LoraLinear):
        return layer.merged()
    return layer.dequantized().detach().to(torch.float32, copy=True)


def _overlap(first: Rows, second: Rows) -> Rows | None:
    start, stop = max(first[0], second[0]), min(first[1], second[1])
    return (start, stop) if start < stop else None


def _side_path(change: Change, rows: Rows, strength: float, base: Any) -> SidePath | None:
    if change.replacement is not None:
        return ReplacedPath(change.replacement, rows, strength)
    if change.factor is None:
        return None
    if change.magnitude is None:
        return AddedPath(change.factor, rows, strength)
    # lengths are those of the weight below with the whole change, whatever the strength
    weight = dense_weight(base)[rows[0] : rows[1]]
    weight += change.factor.dense().to(weight)
    kind, axis = (OutputGainPath, 1) if change.magnitude.shape[1] == 1 else (InputGainPath, 0)
    lengths = torch.linalg.vector_norm(weight, dim=axis).clamp_min(LENGTH_EPS)
    gain = change.magnitude.flatten().to(lengths) / lengths
    return kind(change.factor, gain, rows, strength)
