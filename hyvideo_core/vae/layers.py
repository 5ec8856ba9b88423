"""Building blocks of the causal 3D autoencoder.

Shapes: x is [B, C, T, H, W]. Attributes that own weights carry the checkpoint's names.
With grad off, blocks work in place on what they made themselves, or on an input that nobody needs any more (`reuse`),
and walk long clips in pieces, so large that it changes nothing but the peak of memory.

Source: Kong et al. 2024, "HunyuanVideo", sec. 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import sdpa
from .carry import Carry, Moments

NORM_EPS = 1e-6
PIECE_ELEMENTS = 2**26
"""Input elements that one call takes at most when grad is off: a convolution one frame at least, a norm one group."""


class Frames(Protocol):
    """A clip whose frames are made when they are needed, so that the whole of it never has to exist."""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[B, C, T, H, W]."""

    @property
    def like(self) -> Tensor:
        """A tensor of its dtype and device."""

    def read(self, first: int, stop: int) -> Tensor:
        """Those frames, [B, C, stop - first, H, W]."""

    def write(self, first: int, stop: int, out: Tensor) -> None:
        """Copies them into out, which may have any strides."""


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """The normalisation used everywhere here; statistics run over T, H and W together."""
    return nn.GroupNorm(num_groups, channels, eps=NORM_EPS)


def norm_silu(norm: nn.GroupNorm, x: Tensor, *, reuse: bool = False, carry: Carry | None = None) -> Tensor:
    """SiLU of the normalised input; with grad off one new tensor, and none but a piece of it with `reuse`.

    Groups know nothing of each other, so that their pieces have the whole's numbers, bit for bit.
    """
    known = carry.moments_until_now(norm, moments_of(norm, x)) if carry else None
    if known is not None:
        return F.silu(_normalise(norm, x, known, x if reuse else torch.empty_like(x)), inplace=True)
    if torch.is_grad_enabled() or x.numel() <= PIECE_ELEMENTS:
        return F.silu(norm(x), inplace=not torch.is_grad_enabled())
    out = x if reuse else torch.empty_like(x)
    for sample, groups in group_pieces(norm, x):
        channels = channels_of(norm, groups)
        out[sample, channels] = F.group_norm(
            x[sample, channels], groups.stop - groups.start, norm.weight[channels], norm.bias[channels], norm.eps
        )
    return F.silu(out, inplace=True)


def moments_of(norm: nn.GroupNorm, x: Tensor) -> Moments:
    """What the norm would find in x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, variance = torch.empty(2, x.shape[0], norm.num_groups, dtype=dtype, device=x.device)
    for sample, groups in group_pieces(norm, x):
        values = x[sample, channels_of(norm, groups)].to(dtype).reshape(groups.stop - groups.start, -1)
        variance[sample, groups], mean[sample, groups] = torch.var_mean(values, dim=1, correction=0)
        del values  # before the next ones are made
    return Moments(x[0].numel() // norm.num_groups, mean, variance)


def _normalise(norm: nn.GroupNorm, x: Tensor, moments: Moments, out: Tensor) -> Tensor:
    """The norm by given moments, written to out, which may be x."""
    width = norm.num_channels // norm.num_groups
    scale = (moments.variance + norm.eps).rsqrt().repeat_interleave(width, dim=1) * norm.weight
    shift = norm.bias - moments.mean.repeat_interleave(width, dim=1) * scale
    for sample, groups in group_pieces(norm, x):
        channels = channels_of(norm, groups)
        scaled = x[sample, channels] * scale[sample, channels, None, None, None]
        out[sample, channels] = scaled.add_(shift[sample, channels, None, None, None])
        del scaled  # before the next one is made
    return out


def group_pieces(norm: nn.GroupNorm, x: Tensor) -> Iterator[tuple[slice, slice]]:
    """(samples, groups) of every piece of x that is normalised at once."""
    step = min(norm.num_groups, max(1, PIECE_ELEMENTS * norm.num_groups // x[0].numel()))
    for sample, first in product(range(x.shape[0]), range(0, norm.num_groups, step)):
        yield slice(sample, sample + 1), slice(first, min(first + step, norm.num_groups))


def channels_of(norm: nn.GroupNorm, groups: slice) -> slice:
    """The channels of a run of groups."""
    width = norm.num_channels // norm.num_groups
    return slice(groups.start * width, groups.stop * width)


class CausalConv3d(nn.Module):
    """Convolution in which a frame sees itself and earlier frames only; all borders are replicated."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride)

    def forward(self, x: Tensor, *, reuse: bool = False, carry: Carry | None = None) -> Tensor:
        """[B, C, T, H, W] to [B, C_out, ceil(T / st), ceil(H / sh), ceil(W / sw)].

        Args:
            reuse: a long result may lie where x was.
            carry: x is the next chunk of a clip; only without strides.
        """
        out_channels, reach = self.conv.out_channels, self.conv.kernel_size[0] - 1
        fits = reuse and out_channels <= x.shape[1] and self.conv.stride == (1, 1, 1)
        clip = Clip(x, carry.frames_before(self, x, reach) if carry and reach else None)
        return self.convolve(clip, skip=clip.num_before, into=x[:, :out_channels] if fits else None)

    def convolve(self, clip: Frames, *, skip: int = 0, into: Tensor | None = None) -> Tensor:
        """The same for frames that are made when they are needed.

        Args:
            clip: asked for falling ranges.
            skip: output frames at the start that nobody wants, because a chunk before has made them.
            into: where a result of several pieces is written, the memory of the input's own frames included.
        """
        stride = self.conv.stride[0]
        num_out = (clip.shape[2] - 1) // stride + 1
        piece = max(1, PIECE_ELEMENTS * clip.shape[2] // (math.prod(clip.shape) * stride))
        if torch.is_grad_enabled() or piece >= num_out - skip:
            return self._convolve_range(clip, skip, num_out)
        # the last frames first: no earlier frame needs what they overwrite
        for first in reversed(range(skip, num_out, piece)):
            part = self._convolve_range(clip, first, min(first + piece, num_out))
            if into is None:
                into = part.new_empty(*part.shape[:2], num_out - skip, *part.shape[3:])
            into[:, :, first - skip : first - skip + part.shape[2]] = part
            del part  # before the next one is made
        assert into is not None
        return into

    def _convolve_range(self, clip: Frames, first: int, stop: int) -> Tensor:
        """Output frames first..stop; each needs its own input frame and the kernel's reach before it."""
        stride, reach, side = self.conv.stride[0], self.conv.kernel_size[0] - 1, self.conv.kernel_size[1] // 2
        begin, end = first * stride - reach, (stop - 1) * stride + 1
        lead, begin = max(0, -begin), max(0, begin)
        if not reach:
            x = clip.read(begin, end)
        elif torch.is_grad_enabled():
            x = F.pad(clip.read(begin, end), (side, side, side, side, lead, 0), mode="replicate")
        else:
            x = bordered(clip, begin, end, lead, side, layout_of(self.conv.weight))
        return self.conv(x).contiguous()  # norms and residual paths lay channels out first, whatever the weights do


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames that are there, behind those of the chunk before."""

    like: Tensor
    before: Tensor | None = None

    @property
    def num_before(self) -> int:
        """Frames of the chunk before."""
        return 0 if self.before is None else self.before.shape[2]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[B, C, T, H, W]."""
        b, c, t, h, w = self.like.shape
        return b, c, self.num_before + t, h, w

    def read(self, first: int, stop: int) -> Tensor:
        """Those frames, [B, C, stop - first, H, W]; without a chunk before, a view."""
        parts = self._parts(first, stop)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def write(self, first: int, stop: int, out: Tensor) -> None:
        """Copies them into out."""
        for part in self._parts(first, stop):
            out[:, :, : part.shape[2]] = part
            out = out[:, :, part.shape[2] :]

    def _parts(self, first: int, stop: int) -> list[Tensor]:
        skip = self.num_before
        own = self.like[:, :, max(0, first - skip) : max(0, stop - skip)]
        return [own] if self.before is None or first >= skip else [self.before[:, :, first:stop], own]


@dataclass(frozen=True, slots=True)
class Enlarged:
    """The nearest-neighbour enlargement of frames by (ft, fh, fw); the first one is not repeated in time."""

    like: Tensor
    factors: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[B, C, 1 + ft * (T - 1), fh * H, fw * W]."""
        (b, c, t, h, w), (ft, fh, fw) = self.like.shape, self.factors
        return b, c, 1 + ft * (t - 1), fh * h, fw * w

    def read(self, first: int, stop: int) -> Tensor:
        """Those frames."""
        return enlarge_frames(self.like, self.factors, first, stop)

    def write(self, first: int, stop: int, out: Tensor) -> None:
        """Copies them into out."""
        ft, fh, fw = self.factors
        cells = out.unflatten(4, (-1, fw)).unflatten(3, (-1, fh))
        for frame in range(first, stop):
            cells[:, :, frame - first] = self.like[:, :, (frame + ft - 1) // ft, :, None, :, None]


def bordered(clip: Frames, first: int, stop: int, lead: int, side: int, layout: torch.memory_format) -> Tensor:
    """Frames first..stop with replicated borders: `lead` frames in front, `side` cells at each side of a frame.

    By copying alone, and without another copy in between.
    """
    b, c, _, h, w = clip.shape
    shape = (b, c, lead + stop - first, h + 2 * side, w + 2 * side)
    x = torch.empty(shape, dtype=clip.like.dtype, device=clip.like.device, memory_format=layout)
    frames = x[:, :, lead:]
    rows = frames[..., side:-side, :]
    clip.write(first, stop, rows[..., side:-side])
    rows[..., :side], rows[..., -side:] = rows[..., side : side + 1], rows[..., -side - 1 : -side]
    frames[..., :side, :], frames[..., -side:, :] = frames[..., side : side + 1, :], frames[..., -side - 1 : -side, :]
    x[:, :, :lead] = x[:, :, lead : lead + 1]
    return x


def layout_of(weight: Tensor) -> torch.memory_format:
    """What a convolution with this weight computes in."""
    last = weight.is_contiguous(memory_format=torch.channels_last_3d) and not weight.is_contiguous()
    return torch.channels_last_3d if last else torch.contiguous_format


def use_channels_last(model: nn.Module, channels_last: bool) -> None:
    """Lay out the weights of all convolutions so that these compute channels last, or as before.

    Faster on some devices; the order of additions, and so the rounding, may differ.
    """
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    with torch.inference_mode(False):  # weights that were made in it could never be trained
        for module in model.modules():
            if isinstance(module, nn.Conv3d) and not module.weight.is_contiguous(memory_format=layout):
                module.weight.data = module.weight.data.contiguous(memory_format=layout)


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a residual path."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, num_groups)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = group_norm(out_channels, num_groups)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, *, reuse: bool = False, carry: Carry | None = None) -> Tensor:
        """[B, C, T, H, W] to [B, C_out, T, H, W].

        Args:
            reuse: x may be overwritten.
            carry: x is the next chunk of a clip; only with grad off.
        """
        if torch.is_grad_enabled():
            h = self.conv2(norm_silu(self.norm2, self.conv1(norm_silu(self.norm1, x))))
            return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        # the shortcut first, so that the rest can lie where x was
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        h = norm_silu(self.norm1, x, reuse=reuse and residual is not x, carry=carry)
        h = self.conv1(h, reuse=True, carry=carry)
        h = norm_silu(self.norm2, h, reuse=True, carry=carry)
        h = self.conv2(h, reuse=True, carry=carry)
        return h.add_(residual) if residual is x else residual.add_(h)


class FrameCausalAttention(nn.Module):
    """One-head attention in which a pixel sees its own frame and all earlier ones.

    A frame's queries against the prefix of keys need no mask: the frames are walked one by one.
    """

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.group_norm = group_norm(channels, num_groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to the same."""
        frame = x.shape[3] * x.shape[4]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (linear(tokens).unsqueeze(2) for linear in (self.to_q, self.to_k, self.to_v))
        del tokens
        seen = self._look_back(q, k, v, frame)
        del q, k, v
        out = self.to_out[0](seen.squeeze(2)).transpose(1, 2).reshape(x.shape)
        return x + out  # not in place: x is laid out channels first, and out is not

    @staticmethod
    def _look_back(q: Tensor, k: Tensor, v: Tensor, frame: int) -> Tensor:
        """Frame by frame, each [B, T * H * W, 1, C]; with grad off the result lies where the queries were."""
        stops = range(frame, q.shape[1] + 1, frame)
        seen = (sdpa(q[:, stop - frame : stop], k[:, :stop], v[:, :stop]) for stop in stops)
        if torch.is_grad_enabled():
            return torch.cat(list(seen), dim=1)
        # the queries of several samples come transposed, and the layout decides how the next product is added up
        out = q if q.is_contiguous() else torch.empty_like(q, memory_format=torch.contiguous_format)
        for stop, one in zip(stops, seen, strict=True):
            out[:, stop - frame : stop] = one
        return out


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, num_groups) for _ in range(2)])
        self.attentions = nn.ModuleList([FrameCausalAttention(channels, num_groups)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to the same."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """A strided causal convolution; an odd number of frames keeps its first frame apart: 9 become 5."""

    def __init__(self, channels: int, factors: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=factors)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C, ceil(T / ft), ceil(H / fh), ceil(W / fw)]."""
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement and a causal convolution; the first frame is enlarged in space only."""

    def __init__(self, channels: int, factors: tuple[int, int, int]) -> None:
        super().__init__()
        self.factors = factors
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Tensor, *, carry: Carry | None = None) -> Tensor:
        """[B, C, T, H, W] to [B, C, 1 + ft * (T - 1), fh * H, fw * W].

        Args:
            carry: x is the next chunk of a clip; later ones become ft * T frames.
        """
        ft, reach = self.factors[0], self.conv.conv.kernel_size[0] - 1
        before = carry.frames_before(self, x, -(-reach // ft)) if carry else None
        clip = x if before is None else torch.cat([before, x], dim=2)
        skip = 0 if before is None else 1 + ft * (before.shape[2] - 1)
        return self.conv.convolve(Enlarged(clip, self.factors), skip=skip)


def enlarge_frames(x: Tensor, factors: tuple[int, int, int], first: int, stop: int) -> Tensor:
    """Frames first..stop of the nearest-neighbour enlargement, by copying alone and thus exact in every dtype.

    Args:
        x: [B, C, T, H, W].
        factors: (ft, fh, fw); the first frame is not repeated in time.
    """
    ft, fh, fw = factors
    begin = (first + ft - 1) // ft
    x = x[:, :, begin : (stop + ft - 2) // ft + 1]
    b, c, t, h, w = x.shape
    repeated = x[:, :, :, None, :, None, :, None].expand(b, c, t, ft, h, fh, w, fw)
    # frame 0 repeated ft times would begin ft - 1 frames before the clip does
    offset = first - (begin * ft - (ft - 1))
    return repeated.reshape(b, c, t * ft, h * fh, w * fw)[:, :, offset : offset + stop - first]
