"""Reads a video's pixels and says what it shows, without knowing any model: objects, background, camera movement.

Everything is measured on colours, areas and the background's pattern; nothing is learned. The motion of an object is
its motion in the world: what the camera adds to it on the screen is taken away first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .camera_motion import CameraMotion, find_camera
from .drawing import background_rgb, object_rgb, shape_distance
from .scenes import BACKGROUNDS, HUES, SHAPES, Scene

MIN_AREA = 0.008  # of the frame: fewer pixels of a colour are speckle
MIN_CORE = 0.003  # of the frame, a pixel inside the outline: a rim of blended pixels has no inside
MIN_OVERLAP = 0.3  # with the best-fitting shape: less is no object
OFF_BACKGROUND = 0.06  # squared RGB distance from which a pixel is not background
PURE = 0.15  # RGB distance within which a pixel is sure of its colour and speaks for its neighbours
COVERED = 0.5  # of a pixel by an object whose pixel it is
NEIGHBOURS = 5  # pixels across: a rim of blended pixels is two wide
STILL_BELOW = 0.1  # of the frame: between the 5 % of a still object and the 15 % of a moving one
GROWTH_ABOVE = 1.6  # of the area
ENDS = 3  # frames that a start and an end are averaged over


@dataclass(frozen=True, slots=True)
class Sighting:
    """One colour as seen: `overlap` is how well the shape's outline fits, 0..1; `parts` are objects that lie apart."""

    colour: str
    shape: str
    motion: str
    overlap: float
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What a video shows; sightings from the largest object down."""

    background: str
    sightings: tuple[Sighting, ...]
    camera: str

    @property
    def count(self) -> int:
        """Objects in all, those of one colour that lie apart counted each."""
        return sum(sighting.parts for sighting in self.sightings)


def inspect(video: Tensor) -> Report:
    """Reads a video (3, F, H, W) in -1..1."""
    video = (video.clamp(-1, 1) + 1) / 2
    background = _nearest_background(video)
    ground = torch.tensor(background_rgb(background))
    is_object = (video - ground.view(3, 1, 1, 1)).square().sum(dim=0) > OFF_BACKGROUND
    camera = find_camera(video, is_object)
    masks = _colour_masks(video, ground, is_object)
    areas = {colour: _area(mask) for colour, mask in masks.items()}
    seen = [colour for colour, mask in masks.items() if areas[colour] >= MIN_AREA and _area(_core(mask)) >= MIN_CORE]
    seen.sort(key=lambda colour: -areas[colour])
    sightings = (_sighting(colour, masks[colour], camera) for colour in seen)
    kept = tuple(sighting for sighting in sightings if sighting.overlap >= MIN_OVERLAP)
    return Report(background, kept, camera.name)


def _nearest_background(video: Tensor) -> str:
    """The palette's nearest to the median of the frame's border."""
    edge = max(1, min(video.shape[2:]) // 16)
    rows = torch.cat((video[:, :, :edge].flatten(1), video[:, :, -edge:].flatten(1)), dim=1)
    columns = torch.cat((video[:, :, :, :edge].flatten(1), video[:, :, :, -edge:].flatten(1)), dim=1)
    colour = torch.cat((rows, columns), dim=1).median(dim=1).values
    return min(BACKGROUNDS, key=lambda name: float((torch.tensor(background_rgb(name)) - colour).square().sum()))


def _colour_masks(video: Tensor, ground: Tensor, is_object: Tensor) -> dict[str, Tensor]:
    """For each colour its pixels (F, H, W): those at least half covered by it.

    Pixels that blend two colours go with the pure ones around them.
    """
    palette = torch.tensor([object_rgb(colour) for colour in HUES])
    pixels = video.permute(1, 2, 3, 0)
    # an edge pixel is a blend with the background: compare directions away from the background, not colours
    away, wanted = pixels - ground, palette - ground
    length = away.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(1e-6)
    likeness = (away / length) @ (wanted / wanted.norm(dim=-1, keepdim=True)).T
    distance = torch.cdist(pixels.reshape(-1, 3), palette).view(*pixels.shape[:3], -1)
    own = F.one_hot((distance - 0.5 * likeness).argmin(dim=-1), len(HUES)).permute(0, 3, 1, 2).float()
    is_pure = (distance.amin(dim=-1) < PURE) & is_object
    around = F.avg_pool2d(own * is_pure[:, None], NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2)
    nearest = (around + 1e-3 * own).argmax(dim=1)
    # blends with the background are counted from one half on, or blurred outlines grow and all become circles
    cover = (away @ wanted.T) / wanted.square().sum(dim=-1)
    is_covered = cover.gather(-1, nearest[..., None])[..., 0] > COVERED
    return {colour: is_object & is_covered & (nearest == index) for index, colour in enumerate(HUES)}


def _area(mask: Tensor) -> float:
    """Share of the frame in the median frame of a mask (F, H, W)."""
    return float(mask.flatten(1).float().mean(dim=1).median())


def _core(mask: Tensor) -> Tensor:
    """The pixels (F, H, W) all of whose neighbours belong to the mask too."""
    return F.max_pool2d((~mask)[:, None].float(), 3, stride=1, padding=1)[:, 0] == 0


def _sighting(colour: str, mask: Tensor, camera: CameraMotion) -> Sighting:
    shown = mask[mask.flatten(1).any(dim=1)]
    parts = [_parts(shown[i]) for i in (0, len(shown) // 2, -1)]
    overlaps = {shape: sum(_overlap(each[0], shape) for each in parts) / len(parts) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    count = sorted(len(each) for each in parts)[len(parts) // 2]
    return Sighting(colour, shape, _motion(mask, camera), overlaps[shape], count)


def _motion(mask: Tensor, camera: CameraMotion) -> str:
    """From the centroid and the area in the world, at both ends of the clip."""
    frames, height, width = mask.shape
    side, weights, progress = min(height, width), mask.float(), torch.linspace(0, 1, frames)
    zoom = camera.zoom**progress
    pixels = weights.sum(dim=(1, 2)).clamp_min(1.0)
    y = (weights.sum(dim=2) * (torch.arange(height) + 0.5 - height / 2)).sum(dim=1) / pixels / side / zoom
    x = (weights.sum(dim=1) * (torch.arange(width) + 0.5 - width / 2)).sum(dim=1) / pixels / side
    x, area = (x - camera.shift * progress) / zoom, pixels / zoom.square()
    dx, dy = (float(axis[-ENDS:].mean() - axis[:ENDS].mean()) for axis in (x, y))
    if max(abs(dx), abs(dy)) >= STILL_BELOW:
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    growth = float(area[-ENDS:].mean() / area[:ENDS].mean())
    if growth > GROWTH_ABOVE:
        return "grows"
    return "shrinks" if growth < 1 / GROWTH_ABOVE else "still"


def _parts(mask: Tensor) -> list[Tensor]:
    """Connected areas (corners connect too) of a mask (H, W), the largest and others as large as objects."""
    inside = mask.float()[None, None]
    labels = torch.arange(1.0, mask.numel() + 1).view_as(inside) * inside
    while True:  # the largest label of an area spreads through it
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * inside
        if torch.equal(spread, labels):
            break
        labels = spread
    names, sizes = labels[labels > 0].unique(return_counts=True)
    order = [i for i in sizes.argsort(descending=True).tolist() if sizes[i] >= MIN_AREA / 2 * mask.numel()]
    return [labels[0, 0] == names[i] for i in order or [int(sizes.argmax())]]


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
    """Which attributes of a scene a video (3, F, H, W) in -1..1 shows rightly, those of objects if all of them do."""
    report = inspect(video)
    pairs = [(seen, thing) for seen, thing in zip(_matched(report, scene), scene.things, strict=True)]
    right = {
        "background": report.background == scene.background,
        "camera": report.camera == scene.camera,
        "count": report.count == len(scene.things),
        "colour": all(seen.colour == thing.colour for seen, thing in pairs),
        "shape": all(seen.shape == thing.shape for seen, thing in pairs),
        "motion": all(seen.motion == thing.motion for seen, thing in pairs),
    }
    return right | {"all three": right["colour"] and right["shape"] and right["motion"]}


def _matched(report: Report, scene: Scene) -> list[Sighting]:
    """For each thing the sighting of its colour among the largest, or else one that no other thing claims."""
    largest = {sighting.colour: sighting for sighting in report.sightings[: len(scene.things)]}
    colours = {thing.colour for thing in scene.things}
    others = [sighting for colour, sighting in largest.items() if colour not in colours]
    others += [Sighting("none", "none", "none", 0.0, 0)] * len(scene.things)
    return [largest[thing.colour] if thing.colour in largest else others.pop(0) for thing in scene.things]
