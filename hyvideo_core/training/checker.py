"""Reads a video's pixels and says what it shows, without knowing any model: colours, shapes, motion, background.

Everything is measured on colours and areas; nothing is learned. Camera movement is not told apart from the motion
of the object here, so prompts with a moving camera are to be left out of motion scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .drawing import background_rgb, object_rgb, shape_distance
from .scenes import BACKGROUNDS, HUES, SHAPES, Scene

MIN_AREA = 0.008  # of the frame: fewer pixels of a colour are speckle
MIN_OVERLAP = 0.3  # with the best-fitting shape: less is a rim of blended pixels around another object
OFF_BACKGROUND = 0.06  # squared RGB distance from which a pixel is not background
STILL_BELOW = 0.1  # of the frame: between the 5 % of a still object and the 15 % of a moving one
GROWTH_ABOVE = 1.6  # of the area
ENDS = 3  # frames that a start and an end are averaged over


@dataclass(frozen=True, slots=True)
class Sighting:
    """One object as seen: `overlap` is how well the shape's outline fits, 0..1."""

    colour: str
    shape: str
    motion: str
    overlap: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a video shows; sightings from the largest object down."""

    background: str
    sightings: tuple[Sighting, ...]


def inspect(video: Tensor) -> Report:
    """Reads a video (3, F, H, W) in -1..1."""
    video = (video.clamp(-1, 1) + 1) / 2
    background = _nearest_background(video)
    masks = _colour_masks(video, background)
    areas = {colour: float(mask.flatten(1).float().mean(dim=1).median()) for colour, mask in masks.items()}
    seen = sorted((colour for colour, area in areas.items() if area >= MIN_AREA), key=lambda colour: -areas[colour])
    sightings = (_sighting(colour, masks[colour]) for colour in seen)
    return Report(background, tuple(sighting for sighting in sightings if sighting.overlap >= MIN_OVERLAP))


def _nearest_background(video: Tensor) -> str:
    """The palette's nearest to the median of the frame's border."""
    edge = max(1, min(video.shape[2:]) // 16)
    rows = torch.cat((video[:, :, :edge].flatten(1), video[:, :, -edge:].flatten(1)), dim=1)
    columns = torch.cat((video[:, :, :, :edge].flatten(1), video[:, :, :, -edge:].flatten(1)), dim=1)
    colour = torch.cat((rows, columns), dim=1).median(dim=1).values
    return min(BACKGROUNDS, key=lambda name: float((torch.tensor(background_rgb(name)) - colour).square().sum()))


def _colour_masks(video: Tensor, background: str) -> dict[str, Tensor]:
    """For each colour the pixels (F, H, W) that are nearer to it than to any other and are not background."""
    palette = torch.tensor([object_rgb(colour) for colour in HUES])
    ground = torch.tensor(background_rgb(background))
    pixels = video.permute(1, 2, 3, 0)
    is_object = (pixels - ground).square().sum(dim=-1) > OFF_BACKGROUND
    # an edge pixel is a blend with the background: compare directions away from the background, not colours
    away, wanted = pixels - ground, palette - ground
    length = away.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    likeness = (away / length) @ (wanted / wanted.norm(dim=-1, keepdim=True)).T
    distance = torch.cdist(pixels.reshape(-1, 3), palette).view(*pixels.shape[:3], -1)
    nearest = (distance - 0.5 * likeness).argmin(dim=-1)
    return {colour: is_object & (nearest == index) for index, colour in enumerate(HUES)}


def _sighting(colour: str, mask: Tensor) -> Sighting:
    motion = _motion(mask)
    frames = [i for i in (0, mask.shape[0] // 2, mask.shape[0] - 1) if mask[i].any()]
    overlaps = {shape: sum(_overlap(mask[i], shape) for i in frames) / len(frames) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    return Sighting(colour, shape, motion, overlaps[shape])


def _motion(mask: Tensor) -> str:
    """From the centroid and the area at both ends of the clip."""
    side = min(mask.shape[1:])
    weights = mask.float()
    area = weights.sum(dim=(1, 2)).clamp_min(1.0)
    y = (weights.sum(dim=2) * torch.arange(mask.shape[1])).sum(dim=1) / area
    x = (weights.sum(dim=1) * torch.arange(mask.shape[2])).sum(dim=1) / area
    dx, dy = (float(axis[-ENDS:].mean() - axis[:ENDS].mean()) / side for axis in (x, y))
    if max(abs(dx), abs(dy)) >= STILL_BELOW:
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    growth = float(area[-ENDS:].mean() / area[:ENDS].mean())
    if growth > GROWTH_ABOVE:
        return "grows"
    return "shrinks" if growth < 1 / GROWTH_ABOVE else "still"


def _overlap(mask: Tensor, shape: str) -> float:
    """Intersection over union with the shape drawn at the mask's place, as large as the mask."""
    height, width = mask.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    area = float(mask.sum())
    centre_y, centre_x = float(y[mask].float().mean()), float(x[mask].float().mean())
    radius = (area / _UNIT_AREA[shape]) ** 0.5
    drawn = shape_distance(shape, x - centre_x, y - centre_y, radius) < 0
    return float((drawn & mask).sum()) / max(float((drawn | mask).sum()), 1.0)


def _unit_area(shape: str) -> float:
    """Area of a shape of radius 1, measured on a fine grid."""
    axis = torch.linspace(-2, 2, 801)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return float((shape_distance(shape, x, y, 1.0) < 0).float().mean()) * 16


_UNIT_AREA = {shape: _unit_area(shape) for shape in SHAPES}


def score(video: Tensor, scene: Scene) -> dict[str, bool]:
    """Which attributes of a one-object scene without camera movement a video (3, F, H, W) shows rightly."""
    report, thing = inspect(video), scene.things[0]
    largest = report.sightings[0] if report.sightings else Sighting("none", "none", "none", 0.0)
    right = {
        "background": report.background == scene.background,
        "count": len(report.sightings) == len(scene.things),
        "colour": largest.colour == thing.colour,
        "shape": largest.shape == thing.shape,
        "motion": largest.motion == thing.motion,
    }
    return right | {"all three": right["colour"] and right["shape"] and right["motion"]}
