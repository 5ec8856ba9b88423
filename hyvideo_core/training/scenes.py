"""The drawn world: what a clip can show, how clips are chosen, and which combinations are never trained on.

Lengths are fractions of the frame's shorter side, positions fractions of the frame with y pointing down.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..errors import OptionError

HUES = {"red": 0, "orange": 30, "yellow": 58, "green": 125, "cyan": 183, "blue": 228, "purple": 278, "pink": 325}
"""Degrees on the colour circle; objects are drawn fully saturated."""

BACKGROUNDS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "brown": (100, 60, 25),
    "navy": (10, 15, 90),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
MOTIONS = (*DIRECTIONS, "still", "grows", "shrinks")
CAMERAS = ("static", "pans left", "pans right", "zooms in", "zooms out")

REACH = {"circle": 1.0, "square": 0.89, "triangle": 1.35, "cross": 1.15}
"""Farthest point of a shape from its centre along an axis, in radii."""

LOW_CONTRAST = {("blue", "navy"), ("orange", "brown")}
"""(colour, background) pairs that are drawn but never scored."""

RADIUS = 0.19  # large enough that a shape is plain on 64 pixels
SMALL_RADIUS = 0.12  # of one among two, and of what will be zoomed into
GROWTH = 0.6  # radius at the small end of growth, of that at the large one
TRAVEL = 0.25  # of the frame: a move must plainly be one
PAN = 0.25
ZOOM = 1.6
CAMERA_AMOUNT = {"static": 0.0, "pans left": PAN, "pans right": PAN, "zooms in": ZOOM, "zooms out": ZOOM}
GRID = 0.125  # of the frame: what a tiny model can learn to draw sharply lies on a coarse grid
LONE_PLACES = (-GRID, 0.0, GRID)  # from the frame's centre to the middle of a lone object's way
CROWDED_PLACES = tuple(GRID * step for step in range(-3, 4))
MARGIN = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One object: what it is, and its place and radius in the first and the last frame (world coordinates)."""

    colour: str
    shape: str
    motion: str
    start: tuple[float, float]
    end: tuple[float, float]
    radius_start: float
    radius_end: float

    @property
    def triple(self) -> tuple[str, str, str]:
        """What the train / held-out split looks at."""
        return (self.colour, self.shape, self.motion)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that a clip shows. `camera_amount` is a distance for pans and a factor for zooms."""

    background: str
    things: tuple[Thing, ...]
    camera: str
    camera_amount: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneMix:
    """Shares of the kinds of scene in a data set."""

    two_objects: float = 0.0
    moving_camera: float = 0.15

    def __post_init__(self) -> None:
        for name, share in (("two_objects", self.two_objects), ("moving_camera", self.moving_camera)):
            if not 0.0 <= share <= 1.0:
                raise OptionError(f"{name} is {share}; it is a share of the scenes: give a number from 0 to 1")


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether a colour-shape-motion triple is kept out of training; one in nine is, every pair still occurs."""
    index = list(HUES).index(colour) + 2 * SHAPES.index(shape) + 4 * MOTIONS.index(motion)
    return index % 9 == 4


def sample_scene(seed: int, mix: SceneMix, *, held_out: bool = False) -> Scene:
    """The scene of a seed, the same on every machine.

    Args:
        held_out: True gives scenes whose objects all are held-out triples, False scenes without any.
    """
    rng = random.Random(seed * 2 + held_out)  # noqa: S311
    count = 2 if rng.random() < mix.two_objects else 1
    camera = rng.choice(CAMERAS[1:]) if count == 1 and rng.random() < mix.moving_camera else "static"
    background = rng.choice(list(BACKGROUNDS))
    kinds = _sample_kinds(rng, count, camera, held_out)
    while True:
        scene = Scene(
            background=background,
            things=tuple(_sample_thing(rng, *kind, camera=camera, crowded=count > 1) for kind in kinds),
            camera=camera,
            camera_amount=CAMERA_AMOUNT[camera],
        )
        if _fits(scene):
            return scene


def _sample_kinds(rng: random.Random, count: int, camera: str, held_out: bool) -> list[tuple[str, str, str]]:
    """Triples of the wanted side of the split, with different colours, and motions that the camera leaves readable."""
    kinds: list[tuple[str, str, str]] = []
    while len(kinds) < count:
        kind = (rng.choice(list(HUES)), rng.choice(SHAPES), rng.choice(_motions_under(camera, rng)))
        if is_held_out(*kind) == held_out and all(kind[0] != other[0] for other in kinds):
            kinds.append(kind)
    return kinds


def _motions_under(camera: str, rng: random.Random) -> tuple[str, ...]:
    """A pan hides sideways moves, a zoom hides growth; most objects rest while the camera moves."""
    if camera == "static":
        return MOTIONS
    if rng.random() < 0.6:
        return ("still",)
    return ("up", "down", "grows", "shrinks") if camera.startswith("pans") else tuple(DIRECTIONS)


def _sample_thing(rng: random.Random, colour: str, shape: str, motion: str, *, camera: str, crowded: bool) -> Thing:
    radius_start = radius_end = SMALL_RADIUS if crowded or camera == "zooms in" else RADIUS
    if motion == "grows":
        radius_start = radius_end * GROWTH
    if motion == "shrinks":
        radius_end = radius_start * GROWTH
    places = CROWDED_PLACES if crowded else LONE_PLACES
    middle = (0.5 + rng.choice(places), 0.5 + rng.choice(places))
    step = DIRECTIONS.get(motion, (0.0, 0.0))
    start, end = ((middle[0] + at * step[0], middle[1] + at * step[1]) for at in (-TRAVEL / 2, TRAVEL / 2))
    return Thing(
        colour=colour,
        shape=shape,
        motion=motion,
        start=start,
        end=end,
        radius_start=radius_start,
        radius_end=radius_end,
    )


def camera_at(scene: Scene, progress: float) -> tuple[float, float]:
    """(shift to the right, magnification about the centre) of the picture, at progress 0..1 of the clip."""
    amount = scene.camera_amount
    shift = {"pans left": amount, "pans right": -amount}.get(scene.camera, 0.0) * progress
    zoom = {"zooms in": amount, "zooms out": 1.0 / amount if amount else 1.0}.get(scene.camera, 1.0) ** progress
    return shift, zoom


def place_at(scene: Scene, thing: Thing, progress: float) -> tuple[float, float, float]:
    """(x, y, radius) of an object on the screen, at progress 0..1 of the clip."""
    shift, zoom = camera_at(scene, progress)
    x, y = (a + (b - a) * progress for a, b in zip(thing.start, thing.end, strict=True))
    radius = thing.radius_start + (thing.radius_end - thing.radius_start) * progress
    return 0.5 + (x - 0.5) * zoom + shift, 0.5 + (y - 0.5) * zoom, radius * zoom


def _fits(scene: Scene) -> bool:
    """Whether every object stays inside the frame and apart from the others, all the way."""
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        places = [(*place_at(scene, thing, progress), REACH[thing.shape]) for thing in scene.things]
        for x, y, radius, reach in places:
            half = radius * reach + MARGIN
            if not (half <= x <= 1 - half and half <= y <= 1 - half):
                return False
        for i, (x, y, radius, reach) in enumerate(places):
            for other_x, other_y, other_radius, other_reach in places[:i]:
                gap = max(abs(x - other_x), abs(y - other_y)) - radius * reach - other_radius * other_reach
                if gap < 2 * MARGIN:
                    return False
    return True
