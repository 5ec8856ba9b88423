from collections import Counter
from dataclasses import replace

import pytest
import torch
from hyvideo_nodes.hyvideo_core.training.drawing import draw
from hyvideo_nodes.hyvideo_core.training.inspection import judged_scenes
from hyvideo_nodes.hyvideo_core.training.judge import inspect, score
from hyvideo_nodes.hyvideo_core.training.scenes import (
    BACKGROUNDS,
    CAMERAS,
    HUES,
    LOW_CONTRAST,
    MOTIONS,
    SHAPES,
    Scene,
    SceneMix,
    sample_scene,
)

SIZE = {"frames": 17, "height": 64, "width": 64}
FIRST_SEED = 700_000_000  # far from the seeds of training and of the benchmark
MIXES = {
    "one object": (SceneMix(moving_camera=0.0), 70),
    "two objects": (SceneMix(two_objects=1.0, moving_camera=0.0), 60),
    "moving camera": (SceneMix(moving_camera=1.0), 80),
}
OPPOSITE = {"left": "right", "up": "down", "grows": "shrinks", "pans left": "pans right", "zooms in": "zooms out"}
OPPOSITE |= {after: before for before, after in OPPOSITE.items()}


def shares(scenes: list[Scene], clips: list[torch.Tensor]) -> dict[str, float]:
    results = [score(clip, scene) for clip, scene in zip(clips, scenes, strict=True)]
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def roughen(clip: torch.Tensor) -> torch.Tensor:
    """A blur over three pixels and a little noise, about what a decoder adds."""
    blurred = torch.nn.functional.avg_pool2d(clip, 3, stride=1, padding=1, count_include_pad=False)
    return 0.5 * (clip + blurred) + 0.03 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", MIXES)
def test_every_attribute_of_drawn_clips_is_read_rightly(kind):
    mix, count = MIXES[kind]
    scenes = judged_scenes(count, mix=mix, first_seed=FIRST_SEED)
    figures = shares(scenes, [draw(scene, **SIZE) for scene in scenes])
    assert min(figures.values()) >= 0.99, figures


@pytest.mark.parametrize("kind", MIXES)
def test_reading_survives_blur_and_noise(kind):
    scenes = judged_scenes(20, mix=MIXES[kind][0], first_seed=FIRST_SEED + 1_000)
    figures = shares(scenes, [roughen(draw(scene, **SIZE)) for scene in scenes])
    assert min(figures.values()) >= 0.95, figures


def test_the_scenes_of_these_tests_show_every_value_of_every_attribute():
    scenes = [scene for mix, count in MIXES.values() for scene in judged_scenes(count, mix=mix, first_seed=FIRST_SEED)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.camera for scene in scenes} == set(CAMERAS)
    assert {thing.colour for thing in things} == set(HUES)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.motion for thing in things} == set(MOTIONS)
    assert len(scenes) >= 200


@pytest.mark.parametrize("kind", MIXES)
def test_a_video_run_backwards_moves_the_other_way(kind):
    for scene in judged_scenes(8, mix=MIXES[kind][0], first_seed=FIRST_SEED + 2_000):
        report = inspect(draw(scene, **SIZE).flip(1))
        assert report.camera == OPPOSITE.get(scene.camera, scene.camera)
        seen = {sighting.colour: sighting.motion for sighting in report.sightings}
        assert seen == {thing.colour: OPPOSITE.get(thing.motion, thing.motion) for thing in scene.things}


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_mirrored_video_moves_to_the_other_side(camera):
    sides = {"left": "right", "right": "left", "pans left": "pans right", "pans right": "pans left"}
    scenes = judged_scenes(60, mix=SceneMix(moving_camera=0.8), first_seed=FIRST_SEED + 3_000)
    for scene in [scene for scene in scenes if scene.camera == camera][:3]:
        report = inspect(draw(scene, **SIZE).flip(-1))
        assert report.camera == sides.get(camera, camera)
        assert report.sightings[0].motion == sides.get(scene.things[0].motion, scene.things[0].motion)


@pytest.mark.parametrize(("camera", "motion"), [("pans left", "right"), ("pans right", "right")])
def test_motion_is_told_in_the_world_not_on_the_screen(camera, motion):
    thing = replace(sample_scene(1, SceneMix()).things[0], colour="red", shape="circle", motion=motion)
    thing = replace(thing, start=(0.35, 0.5), end=(0.65, 0.5), radius_start=0.14, radius_end=0.14)
    amount = 0.2 if camera == "pans left" else 0.3  # the second keeps the object in place on the screen
    scene = Scene(background="gray", things=(thing,), camera=camera, camera_amount=amount)
    report = inspect(draw(scene, **SIZE))
    assert (report.camera, report.sightings[0].motion) == (camera, motion)


@pytest.mark.parametrize("kind", MIXES)
def test_the_video_of_another_scene_is_judged_wrong(kind):
    mix, _ = MIXES[kind]
    scenes = judged_scenes(16, mix=mix, first_seed=FIRST_SEED + 4_000)
    others = [*scenes[1:], scenes[0]]
    wrong = Counter[str]()
    for scene, other in zip(scenes, others, strict=True):
        for name, right in score(draw(other, **SIZE), scene).items():
            wrong[name] += not right
    assert wrong["all three"] >= 15
    assert min(wrong[name] for name in ("colour", "shape", "motion", "background")) >= 6
    assert (wrong["camera"] >= 6) == (kind == "moving camera")


@pytest.mark.parametrize("attribute", ["background", "camera", "colour", "shape", "motion", "count"])
def test_one_wrong_attribute_is_wrong_alone(attribute):
    scene = judged_scenes(1, first_seed=FIRST_SEED)[0]
    thing = scene.things[0]
    change = {
        "background": {"background": "gray" if scene.background != "gray" else "black"},
        "camera": {"camera": "zooms in"},
        "count": {"things": (thing, replace(thing, colour="pink" if thing.colour != "pink" else "cyan"))},
    }
    names = {"colour": HUES, "shape": SHAPES, "motion": MOTIONS}
    if attribute in names:
        other = next(name for name in names[attribute] if name != getattr(thing, attribute))
        change[attribute] = {"things": (replace(thing, **{attribute: other}),)}
    result = score(draw(scene, **SIZE), replace(scene, **change[attribute]))
    missed = {"colour", "shape", "motion"} if attribute == "count" else set()
    wrong = {name for name, right in result.items() if not right} - {"all three"}
    assert wrong == {attribute} | missed


def test_objects_of_one_colour_are_counted_each():
    first, second = judged_scenes(1, mix=MIXES["two objects"][0], first_seed=FIRST_SEED)[0].things
    scene = Scene(
        background="black",
        things=(first, replace(second, colour=first.colour)),
        camera="static",
        camera_amount=0.0,
    )
    assert inspect(draw(scene, **SIZE)).count == 2


def test_low_contrast_pairs_are_never_judged():
    scenes = judged_scenes(200, mix=MIXES["two objects"][0], first_seed=FIRST_SEED)
    assert not {(thing.colour, scene.background) for scene in scenes for thing in scene.things} & LOW_CONTRAST


def test_an_object_missing_from_some_frames_is_still_seen():
    scene = judged_scenes(1, first_seed=FIRST_SEED)[0]
    clip = draw(scene, **SIZE)
    clip[:, [0, 8, 16]] = draw(replace(scene, things=()), **SIZE)[:, [0, 8, 16]]
    (sighting,) = inspect(clip).sightings
    assert (sighting.colour, sighting.shape) == (scene.things[0].colour, scene.things[0].shape)


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_an_empty_video_shows_nothing_and_rests(level, noise):
    video = level + noise * torch.randn(3, 17, 64, 64, generator=torch.Generator().manual_seed(4))
    report = inspect(video)
    assert report.sightings == ()
    assert (report.count, report.camera) == (0, "static")


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (5, 64, 96), (33, 96, 96)])
def test_other_sizes_are_read_too(frames, height, width):
    mix = SceneMix(moving_camera=1.0)
    for scene in judged_scenes(4, mix=mix, first_seed=FIRST_SEED):
        right = score(draw(scene, frames=frames, height=height, width=width), scene)
        if frames == 1:  # a picture shows no movement
            right = {name: right[name] for name in ("background", "count", "colour", "shape")}
        assert all(right.values()), (scene, right)
