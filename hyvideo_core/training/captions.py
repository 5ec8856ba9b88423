"""Scenes to sentences: one plain form that always works, and natural variations of it."""

from __future__ import annotations

import random

from .scenes import Scene, Thing

PLAIN_MOTION = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "still": "stays still",
    "grows": "grows",
    "shrinks": "shrinks",
}
_DIRECTION_WORDINGS = (
    "moves {}",
    "is moving {}",
    "slides {}",
    "drifts {}",
    "travels {}",
    "glides {}",
    "goes {}",
)
_SIDES = {
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
}
_OTHER_WORDINGS = {
    "still": ("stays still", "does not move", "stands still", "rests", "stays in place", "is motionless"),
    "grows": ("grows", "gets bigger", "is growing", "becomes larger", "expands", "grows bigger"),
    "shrinks": ("shrinks", "gets smaller", "is shrinking", "becomes smaller", "contracts", "grows smaller"),
}
_GROUNDS = (
    "{things} on a {ground} background",
    "{things} over a {ground} background",
    "{things} against a {ground} background",
    "{things} in front of a {ground} background",
    "on a {ground} background, {things}",
    "{things}, {ground} background",
    "{things} on {ground}",
)
_CAMERA_WORDINGS = ("{}, the camera {}", "{} while the camera {}", "{}. The camera {}.")
_STATIC_WORDINGS = ("{}, the camera stays still", "{}, static camera")
_SYNONYMS = {"gray": ("gray", "grey"), "cross": ("cross", "plus"), "purple": ("purple", "violet")}


def plain_caption(scene: Scene) -> str:
    """The plain form, such as "a red circle moves left on a black background, the camera zooms in"."""
    things = " and ".join(f"{_named(t.colour, t.shape)} {PLAIN_MOTION[t.motion]}" for t in scene.things)
    sentence = f"{things} on a {scene.background} background"
    return sentence if scene.camera == "static" else f"{sentence}, the camera {scene.camera}"


def picture_caption(scene: Scene, seed: int) -> str:
    """A sentence for a still picture of the scene, without any motion: "a red circle on a black background"."""
    rng = random.Random(seed)  # noqa: S311
    things = " and ".join(_named(*_worded(thing, rng)) for thing in scene.things)
    return _finished(_grounded(things, scene, rng), rng)


def caption(scene: Scene, seed: int, *, plain_share: float = 0.5) -> str:
    """A sentence for the scene: the plain form for a share of the seeds, else varied wording."""
    rng = random.Random(seed)  # noqa: S311
    if rng.random() < plain_share:
        return plain_caption(scene)
    sentence = _grounded(" and ".join(_varied(thing, rng) for thing in scene.things), scene, rng)
    if scene.camera != "static":
        sentence = rng.choice(_CAMERA_WORDINGS).format(sentence, scene.camera)
    elif rng.random() < 0.1:
        sentence = rng.choice(_STATIC_WORDINGS).format(sentence)
    return _finished(sentence, rng)


def _named(colour: str, shape: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape}"


def _grounded(things: str, scene: Scene, rng: random.Random) -> str:
    ground = rng.choice(_SYNONYMS.get(scene.background, (scene.background,)))
    return rng.choice(_GROUNDS).format(things=things, ground=ground)


def _worded(thing: Thing, rng: random.Random) -> tuple[str, str]:
    """(colour, shape) in one of their words."""
    colour, shape = (rng.choice(_SYNONYMS.get(word, (word,))) for word in (thing.colour, thing.shape))
    return colour, shape


def _varied(thing: Thing, rng: random.Random) -> str:
    if thing.motion in _SIDES:
        motion = rng.choice(_DIRECTION_WORDINGS).format(rng.choice(_SIDES[thing.motion]))
    else:
        motion = rng.choice(_OTHER_WORDINGS[thing.motion])
    return f"{_named(*_worded(thing, rng))} {motion}"


def _finished(sentence: str, rng: random.Random) -> str:
    """Some people write a capital and a full stop."""
    if rng.random() < 0.7:
        return sentence
    sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence.endswith(".") else sentence + "."
