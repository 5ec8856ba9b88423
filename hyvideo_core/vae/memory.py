"""How many bytes coding a tile takes, by arithmetic alone, and the tiles that fit into what is free.

What `layers` does in which order decides every number here; a test holds them against a meter. Sizes are (T, h, w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from ..config import VaeConfig
from .autoencoder import level_factors
from .layers import PIECE_ELEMENTS

Size = tuple[int, int, int]

REACH = 2  # frames before its own that a convolution of width 3 reads
HELD_SHARE = 0.3
ATTENTION_TENSORS = 6  # x, its norm, queries, keys, values, result


@dataclass(frozen=True, slots=True)
class Layer:
    """A residual block, or an enlargement where the factors are not (1, 1, 1), with the size of its input.

    `later` if that does not begin with the clip's first frame, which is not enlarged in time.
    """

    channels: tuple[int, int]
    factors: Size
    size: Size
    later: bool = False

    @property
    def enlarges(self) -> bool:
        """Whether it is an enlargement."""
        return self.factors != (1, 1, 1)

    @property
    def input_elements(self) -> int:
        """Elements of what it reads."""
        return self.channels[0] * math.prod(self.size)

    @property
    def output_size(self) -> Size:
        """What it makes of its size."""
        ft, fh, fw = self.factors
        frames, height, width = self.size
        return ft * frames if self.later else 1 + ft * (frames - 1), fh * height, fw * width


def decoder_layers(config: VaeConfig, size: Size, *, later: bool = False) -> list[Layer]:
    """The layers of the upward path in order, for latents of this size or a later chunk of this size."""
    layers, width = [], config.block_channels[-1]
    for channels, factors in zip(config.block_channels[::-1], level_factors(config), strict=True):
        widths = [width, *[channels] * (config.layers_per_block + 1)]
        layers += [Layer(pair, (1, 1, 1), size, later) for pair in pairwise(widths)]
        width = channels
        if factors != (1, 1, 1):
            layers.append(Layer((channels, channels), factors, size, later))
            size = layers[-1].output_size
    return layers


def decode_bytes(config: VaeConfig, size: Size, itemsize: int, chunk: int | None = None) -> int:
    """The peak of activations while latents of this size are decoded at once, or in chunks of so many latent frames."""
    layers = decoder_layers(config, size)
    attention = ATTENTION_TENSORS * layers[0].input_elements
    if chunk is None or chunk >= size[0]:
        return itemsize * max(attention, _walk_elements(layers, carried=False))
    whole = num_whole_layers(config, size, chunk)
    later = decoder_layers(config, (chunk, *size[1:]), later=True)[whole:]
    last = REACH * later[-1].channels[1] * math.prod(later[-1].size[1:])  # the last convolution's
    kept = layers[whole].input_elements + sum(_carried_elements(layer) for layer in later) + last
    return itemsize * max(
        attention,
        _walk_elements(layers[:whole], carried=False),
        kept + _walk_elements(later, carried=True),
    )


def encode_bytes(config: VaeConfig, size: Size, itemsize: int) -> int:
    """The peak of activations while the video of latents of this size is encoded at once."""
    last = decoder_layers(config, size)[-1]
    channels = config.block_channels[0]
    return itemsize * _residual_elements(replace(last, channels=(channels, channels)), carried=False)


def num_whole_layers(config: VaeConfig, size: Size, chunk: int) -> int:
    """Of the upward path's layers, those that all frames of a carried clip pass together.

    Up to there nothing differs from decoding all at once. What they hand on stays in memory until the clip's end, so
    that it must be small beside the largest tensor of a chunk.
    """
    later = decoder_layers(config, (min(chunk, size[0]), *size[1:]), later=True)
    most = HELD_SHARE * max(layer.input_elements for layer in later)
    cuts = [
        i for i, layer in enumerate(decoder_layers(config, size)) if layer.enlarges and layer.input_elements <= most
    ]
    return max(cuts, default=0)


def _walk_elements(layers: list[Layer], *, carried: bool) -> int:
    elements = [(_enlarging_elements if one.enlarges else _residual_elements)(one, carried=carried) for one in layers]
    return max(elements, default=0)


def _residual_elements(layer: Layer, *, carried: bool) -> int:
    """The input, the residual path where it is another tensor, and one more where the input cannot be overwritten."""
    cells, (before, after) = math.prod(layer.size), layer.channels
    small = before * cells <= PIECE_ELEMENTS  # such norms make a new tensor
    other = before if before == after else after + before * small
    work = max(_convolution_elements(layer.size, width, after, carried=carried) for width in layer.channels)
    return (before + other) * cells + work


def _enlarging_elements(layer: Layer, *, carried: bool) -> int:
    """The input, the output, and a piece of both sides of the convolution."""
    low = layer.input_elements * (2 if carried else 1)  # a later chunk is copied behind the frames before it
    size, channels = layer.output_size, layer.channels[0]
    whole = _piece_frames(size, channels) >= size[0]  # then the piece is the output
    made = 0 if whole else channels * math.prod(size)
    return low + made + _convolution_elements(size, channels, channels, carried=False)


def _convolution_elements(size: Size, before: int, after: int, *, carried: bool) -> int:
    """One piece of the input with its borders, and of the output."""
    made = after * _piece_frames(size, before) * size[1] * size[2]
    earlier = REACH * before * size[1] * size[2] if carried else 0  # which the chunk before has left
    return _padded_elements(size, before) + made + earlier


def _padded_elements(size: Size, channels: int) -> int:
    """One piece of a convolution's input with its borders."""
    return channels * (_piece_frames(size, channels) + REACH) * (size[1] + 2) * (size[2] + 2)


def _piece_frames(size: Size, channels: int) -> int:
    return min(size[0], max(1, PIECE_ELEMENTS // (channels * size[1] * size[2])))


def _carried_elements(layer: Layer) -> int:
    """What a layer keeps for the next chunk."""
    if layer.enlarges:
        return -(-REACH // layer.factors[0]) * layer.input_elements // layer.size[0]
    return REACH * sum(layer.channels) * layer.size[1] * layer.size[2]
