"""Resizing of images, by filters and by upscaling models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FILTERS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")

Upscaler = Callable[[Tensor], Tensor]


def resize(images: Tensor, width: int, height: int, method: str) -> Tensor:
    """Images at another size.

    Args:
        images: (N, H, W, C) in 0..1.
        method: one of FILTERS.
    Returns:
        (N, height, width, C), in 0..1 also where the filter overshoots.
    """
    # one frame at a time: a video's float copy in another layout would double the memory
    result = images.new_empty(images.shape[0], height, width, images.shape[-1])
    for frame, target in zip(images, result, strict=True):
        if method == "lanczos":
            target.copy_(_lanczos(frame, width, height))
        else:
            scaled = F.interpolate(frame.movedim(-1, 0)[None].float(), size=(height, width), mode=method)
            target.copy_(scaled[0].movedim(0, -1).clamp(0, 1))
    return result


def crop_to_aspect(images: Tensor, width: int, height: int) -> Tensor:
    """The largest centred part of (N, H, W, C) images that has the proportions of width to height."""
    full_height, full_width = images.shape[1:3]
    part_width = min(full_width, max(1, round(full_height * width / height)))
    part_height = min(full_height, max(1, round(full_width * height / width)))
    top, left = (full_height - part_height) // 2, (full_width - part_width) // 2
    return images[:, top : top + part_height, left : left + part_width]


def upscale_tiled(frame: Tensor, upscaler: Upscaler, scale: int, tile: int, margin: int) -> Tensor:
    """One frame through an upscaling model, in tiles that see `margin` pixels of their neighbours.

    The margin is cut off again, so tiles meet without a seam when the model looks no further than that.

    Args:
        frame: (1, C, H, W) on the model's device.
        upscaler: maps (1, C, h, w) to (1, C, h x scale, w x scale).
        tile: side of a tile without its margin, in pixels of the frame.
    Returns:
        (1, C, H x scale, W x scale).
    """
    _, channels, height, width = frame.shape
    result = frame.new_empty(1, channels, height * scale, width * scale)
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            outer_top, outer_left = max(0, top - margin), max(0, left - margin)
            part = upscaler(frame[:, :, outer_top : bottom + margin, outer_left : right + margin])
            rows = slice((top - outer_top) * scale, (bottom - outer_top) * scale)
            columns = slice((left - outer_left) * scale, (right - outer_left) * scale)
            result[:, :, top * scale : bottom * scale, left * scale : right * scale] = part[:, :, rows, columns]
    return result


def _spans(length: int, size: int) -> Iterator[tuple[int, int]]:
    """The pieces of 0..length, each of at most `size`."""
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _lanczos(frame: Tensor, width: int, height: int) -> Tensor:
    """Pillow's filter, channel by channel in floating point, so that no levels are lost."""
    channels = [
        np.asarray(Image.fromarray(channel.float().cpu().numpy()).resize((width, height), Image.Resampling.LANCZOS))
        for channel in frame.movedim(-1, 0)
    ]
    return torch.from_numpy(np.stack(channels, axis=-1)).clamp(0, 1)
