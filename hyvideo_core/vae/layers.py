"""Building blocks of the causal 3D autoencoder.

Shapes: x is [B, C, T, H, W]. Attributes that own weights carry the checkpoint's names.
With grad off, blocks work in place on what they made themselves and walk long clips in pieces, which changes nothing
but the peak of memory.

Source: Kong et al. 2024, "HunyuanVideo", sec. 4.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import sdpa

NORM_EPS = 1e-6
PIECE_ELEMENTS = 2**26
"""Input elements that one convolution call takes at most (one frame at least) when grad is off."""

FrameSource = Callable[[int, int], Tensor]
"""(first, stop) to those frames, [B, C, stop - first, H, W]."""


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """The normalisation used everywhere here; statistics run over T, H and W together."""
    return nn.GroupNorm(num_groups, channels, eps=NORM_EPS)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the normalised input; one new tensor when grad is off."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


class CausalConv3d(nn.Module):
    """Convolution in which a frame sees itself and earlier frames only; all borders are replicated."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C_out, ceil(T / st), ceil(H / sh), ceil(W / sw)]."""
        return self.convolve(lambda first, stop: x[:, :, first:stop], x.shape[2], x[:, :, 0].numel())

    def convolve(self, frames: FrameSource, num_frames: int, frame_elements: int) -> Tensor:
        """The same on frames that are made when they are needed, so that the whole input never has to exist.

        Args:
            frames: called with growing ranges.
            num_frames: T of the input.
            frame_elements: B * C * H * W of the input.
        """
        stride = self.conv.stride[0]
        num_out = (num_frames - 1) // stride + 1
        piece = max(1, PIECE_ELEMENTS // (frame_elements * stride))
        if torch.is_grad_enabled() or piece >= num_out:
            return self._convolve_range(frames, 0, num_out)
        out: Tensor | None = None
        for first in range(0, num_out, piece):
            stop = min(first + piece, num_out)
            part = self._convolve_range(frames, first, stop)
            if out is None:
                out = part.new_empty(*part.shape[:2], num_out, *part.shape[3:])
            out[:, :, first:stop] = part
        assert out is not None
        return out

    def _convolve_range(self, frames: FrameSource, first: int, stop: int) -> Tensor:
        """Output frames first..stop; each needs its own input frame and the kernel's reach before it."""
        stride, reach = self.conv.stride[0], self.conv.kernel_size[0] - 1
        begin = first * stride - reach
        x = frames(max(0, begin), (stop - 1) * stride + 1)
        if reach:
            side = self.conv.kernel_size[1] // 2
            x = F.pad(x, (side, side, side, side, max(0, -begin), 0), mode="replicate")
        return self.conv(x)


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a residual path."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, num_groups)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = group_norm(out_channels, num_groups)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C_out, T, H, W]."""
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(norm_silu(self.norm2, h))
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return residual + h if torch.is_grad_enabled() else h.add_(residual)


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
        num_frames, frame = x.shape[2], x.shape[3] * x.shape[4]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (linear(tokens).unsqueeze(2) for linear in (self.to_q, self.to_k, self.to_v))
        seen = [
            sdpa(q[:, stop - frame : stop], k[:, :stop], v[:, :stop])
            for stop in range(frame, num_frames * frame + 1, frame)
        ]
        out = self.to_out[0](torch.cat(seen, dim=1).squeeze(2))
        return x + out.transpose(1, 2).reshape(x.shape)


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

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, C, 1 + ft * (T - 1), fh * H, fw * W]."""
        ft, fh, fw = self.factors
        return self.conv.convolve(
            lambda first, stop: enlarge_frames(x, self.factors, first, stop),
            1 + ft * (x.shape[2] - 1),
            x[:, :, 0].numel() * fh * fw,
        )


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
