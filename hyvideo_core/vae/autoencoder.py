"""The causal 3D autoencoder: video to latents and back.

Shapes: video [B, 3, F, H, W] in -1..1, latents [B, C, T, h, w] with F = ft * (T - 1) + 1, H = fs * h, W = fs * w.
Latents are raw: the factor that the transformer wants (`VaeConfig.scaling_factor`) is applied by the caller.
A model in float16 or bfloat16 computes in that dtype, with float32 sums inside norms and softmax.

Source: Kong et al. 2024, "HunyuanVideo", sec. 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..config import VaeConfig
from ..errors import ConfigError, ShapeError
from .carry import Carry
from .layers import CausalConv3d, Downsample, MidBlock, ResnetBlock, Upsample, group_norm, norm_silu

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """The distribution of latents that the encoder gives; every tensor is [B, C, T, h, w]."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Gaussian:
        """Split [B, 2C, T, h, w] into mean and clamped log variance."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    @property
    def std(self) -> Tensor:
        """Standard deviation."""
        return torch.exp(0.5 * self.logvar)

    @property
    def mode(self) -> Tensor:
        """The most likely latents."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """Latents drawn with this standard normal noise."""
        return self.mean + self.std * noise


def level_factors(config: VaeConfig) -> tuple[tuple[int, int, int], ...]:
    """(time, height, width) by which each level of blocks changes the size; (1, 1, 1) where it does not.

    Space is halved by the first levels, time by the last ones before the final level, in encoder and decoder alike.

    Raises:
        ConfigError: factors that are not powers of two, or more halvings than there are levels.
    """
    num_levels = len(config.block_channels) - 1
    names = {"spatial_factor": "spatial_compression_ratio", "time_factor": "time_compression_ratio"}
    halvings = {}
    for name, factor in (("spatial_factor", config.spatial_factor), ("time_factor", config.time_factor)):
        halvings[name] = factor.bit_length() - 1
        if factor < 1 or factor & (factor - 1) or halvings[name] > num_levels:
            raise ConfigError(
                f"{name} {factor} with {num_levels + 1} levels of blocks: expected a power of two up to "
                f"{2**num_levels}; correct {names[name]} in the file's config metadata"
            )
    space, time = halvings["spatial_factor"], halvings["time_factor"]
    factors = []
    for level in range(num_levels):
        fs = 2 if level < space else 1
        factors.append((2 if level >= num_levels - time else 1, fs, fs))
    return (*factors, (1, 1, 1))


class DownBlock(nn.Module):
    """One encoder level: residual blocks, then a smaller size."""

    def __init__(self, in_channels: int, out_channels: int, factors: tuple[int, int, int], config: VaeConfig) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * config.layers_per_block]
        self.resnets = _resnets(widths, config.norm_groups)
        if factors != (1, 1, 1):
            self.downsamplers = nn.ModuleList([Downsample(out_channels, factors)])


class UpBlock(nn.Module):
    """One decoder level: residual blocks, one more than in the encoder, then a larger size."""

    def __init__(self, in_channels: int, out_channels: int, factors: tuple[int, int, int], config: VaeConfig) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * (config.layers_per_block + 1)]
        self.resnets = _resnets(widths, config.norm_groups)
        if factors != (1, 1, 1):
            self.upsamplers = nn.ModuleList([Upsample(out_channels, factors)])


def _resnets(widths: list[int], num_groups: int) -> nn.ModuleList:
    return nn.ModuleList([ResnetBlock(a, b, num_groups) for a, b in pairwise(widths)])


def layers_of(blocks: nn.ModuleList) -> Iterator[nn.Module]:
    """Every layer in order.

    Walked here and not in a `forward` of each block, because a block's caller would hold the block's (large) input
    until its last layer is done.
    """
    for block in blocks:
        for layers in block.children():
            yield from layers.children()


def run_layer(layer: nn.Module, x: Tensor, *, reuse: bool = True, carry: Carry | None = None) -> Tensor:
    """The layer's output; `reuse` and `carry` as in `ResnetBlock`."""
    if isinstance(layer, ResnetBlock):
        return layer(x, reuse=reuse, carry=carry)
    return layer(x) if carry is None else layer(x, carry=carry)


class Encoder(nn.Module):
    """Video to moments before `quant_conv`."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.block_channels
        self.conv_in = CausalConv3d(config.image_channels, channels[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, factors, config)
            for a, b, factors in zip((channels[0], *channels), channels, level_factors(config), strict=False)
        )
        self.mid_block = MidBlock(channels[-1], config.norm_groups)
        self.conv_norm_out = group_norm(channels[-1], config.norm_groups)
        self.conv_out = CausalConv3d(channels[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, F, H, W] to [B, 2C, T, h, w]."""
        x = self.conv_in(x)
        for layer in layers_of(self.down_blocks):
            x = run_layer(layer, x)
        x = self.mid_block(x)
        return self.conv_out(norm_silu(self.conv_norm_out, x, reuse=True))


class Decoder(nn.Module):
    """Latents after `post_quant_conv` to video."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.block_channels[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], config.norm_groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, factors, config)
            for a, b, factors in zip((channels[0], *channels), channels, level_factors(config), strict=False)
        )
        self.conv_norm_out = group_norm(channels[-1], config.norm_groups)
        self.conv_out = CausalConv3d(channels[-1], config.image_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, h, w] to [B, 3, F, H, W]."""
        x = self.mid_block(self.conv_in(x))
        for layer in layers_of(self.up_blocks):
            x = run_layer(layer, x)
        return self.conv_out(norm_silu(self.conv_norm_out, x, reuse=True))


class VideoAutoencoder(nn.Module):
    """Encoder and decoder under the names that published files use.

    Raises:
        ConfigError: factors and levels that contradict each other.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.post_quant_conv.weight.dtype

    @property
    def weights_device(self) -> torch.device:
        """Where its weights are; not called `device`, which ComfyUI writes on every module that it moves."""
        return self.post_quant_conv.weight.device

    def encode(self, video: Tensor) -> Tensor:
        """Moments [B, 2C, T, h, w] (see `Gaussian`), in the model's dtype and on its device.

        Args:
            video: [B, 3, F, H, W] in -1..1.
        Raises:
            ShapeError: frames not ft * k + 1, or sides that the spatial factor does not divide.
        """
        check_video(tuple(video.shape), self.config)
        return self.quant_conv(self.encoder(video.to(self.weights_device, self.dtype)))

    def decode(self, latents: Tensor) -> Tensor:
        """Video [B, 3, F, H, W], nominally in -1..1 and not clamped, in the model's dtype and on its device.

        Args:
            latents: [B, C, T, h, w], raw.
        Raises:
            ShapeError: not five axes, an empty axis, or another number of channels.
        """
        check_latents(tuple(latents.shape), self.config)
        return self.decoder(self.post_quant_conv(latents.to(self.weights_device, self.dtype)))


def check_video(shape: tuple[int, ...], config: VaeConfig) -> None:
    """Refuse a video that the encoder cannot take.

    Raises:
        ShapeError: see `VideoAutoencoder.encode`.
    """
    channels, ft, fs = config.image_channels, config.time_factor, config.spatial_factor
    if len(shape) != 5 or shape[1] != channels or min(shape) < 1:
        raise ShapeError(f"video of shape {list(shape)}: expected [B, {channels}, F, H, W]; rearrange its axes")
    frames, height, width = shape[2:]
    if (frames - 1) % ft:
        low = (frames - 1) // ft * ft + 1
        raise ShapeError(f"video of {frames} frames: expected {ft}k+1; give it {low} or {low + ft}")
    if height % fs or width % fs:
        raise ShapeError(
            f"video of {width}x{height} pixels: expected multiples of {fs}; "
            f"crop it to {width // fs * fs}x{height // fs * fs} or resize it"
        )


def check_latents(shape: tuple[int, ...], config: VaeConfig) -> None:
    """Refuse latents that the decoder cannot take.

    Raises:
        ShapeError: see `VideoAutoencoder.decode`.
    """
    channels = config.latent_channels
    if len(shape) != 5 or shape[1] != channels or min(shape) < 1:
        raise ShapeError(
            f"latents of shape {list(shape)}: expected [B, {channels}, T, h, w]; "
            "use latents of this model, for example from an empty HunyuanVideo latent"
        )
