"""Scenes to pixels: anti-aliased shapes over a plain background with a faint pattern that moves with the world."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .scenes import BACKGROUNDS, HUES, Scene, Thing, camera_at, place_at

SATURATION, VALUE = 0.96, 0.96
PATTERN_CONTRAST = 0.06
PATTERN_PERIOD = 0.5  # of the frame
EDGE = 2.0  # pixels over which an outline fades: sharper ones cost a small autoencoder most of its effort


def object_rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue of an object colour, 0..1."""
    return colorsys.hsv_to_rgb(HUES[colour] / 360.0, SATURATION, VALUE)


def background_rgb(background: str) -> tuple[float, float, float]:
    """Red, green and blue of a background, 0..1, before the pattern."""
    r, g, b = BACKGROUNDS[background]
    return r / 255.0, g / 255.0, b / 255.0


def draw(scene: Scene, *, frames: int, height: int, width: int) -> Tensor:
    """The clip of a scene: (3, F, H, W) float32 in -1..1, drawn the same from the same scene."""
    return draw_at(scene, [i / max(frames - 1, 1) for i in range(frames)], height=height, width=width)


def draw_at(scene: Scene, progress: Sequence[float], *, height: int, width: int) -> Tensor:
    """The frames (3, F, H, W) of a scene at given points of its clip, 0 at the first frame and 1 at the last."""
    side = min(height, width)
    y = (torch.arange(height, dtype=torch.float32) + 0.5).view(1, height, 1) / side
    x = (torch.arange(width, dtype=torch.float32) + 0.5).view(1, 1, width) / side
    # the scene lives in the centred square of the frame
    x, y = x - (width / side - 1) / 2, y - (height / side - 1) / 2
    colours = torch.tensor(background_rgb(scene.background)).view(3, 1, 1, 1)
    video = (colours + _pattern(scene, progress, x, y)).clamp(0.0, 1.0)
    for thing in scene.things:
        places = torch.tensor([place_at(scene, thing, u) for u in progress], dtype=torch.float32)
        centre_x, centre_y, radius = (places[:, i].view(-1, 1, 1) for i in range(3))
        distance = shape_distance(thing.shape, x - centre_x, y - centre_y, radius)
        cover = (0.5 - distance * side / EDGE).clamp(0.0, 1.0)
        video += cover * (_paint(thing) - video)
    return video * 2.0 - 1.0


def _paint(thing: Thing) -> Tensor:
    return torch.tensor(object_rgb(thing.colour)).view(3, 1, 1, 1)


def _pattern(scene: Scene, progress: Sequence[float], x: Tensor, y: Tensor) -> Tensor:
    """A soft checker fixed to the world, (F, H, W) around 0, which makes camera movement visible."""
    cameras = torch.tensor([camera_at(scene, u) for u in progress], dtype=torch.float32)
    shift, zoom = (cameras[:, i].view(-1, 1, 1) for i in range(2))
    world_x, world_y = (x - shift - 0.5) / zoom, (y - 0.5) / zoom
    across, down = (torch.sin(2 * math.pi * world / PATTERN_PERIOD) for world in (world_x, world_y))
    return PATTERN_CONTRAST * across * down


def shape_distance(shape: str, dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to the outline, negative inside, from offsets to the centre (dy points down)."""
    if shape == "circle":
        return (dx.square() + dy.square()).sqrt() - radius
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - 0.886 * radius
    if shape == "triangle":  # equilateral, apex up, centroid at the centre
        slope = 0.866 * dx.abs() - 0.5 * dy
        return torch.maximum(slope, dy) - 0.675 * radius
    across = torch.maximum(dx.abs() - 1.15 * radius, dy.abs() - 0.4 * radius)
    down = torch.maximum(dx.abs() - 0.4 * radius, dy.abs() - 1.15 * radius)
    return torch.minimum(across, down)
