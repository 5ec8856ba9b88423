import pytest
import torch
from hyvideo_nodes.hyvideo_core.training.checker import inspect, score
from hyvideo_nodes.hyvideo_core.training.drawing import draw
from hyvideo_nodes.hyvideo_core.training.inspection import judged_scenes
from hyvideo_nodes.hyvideo_core.training.scenes import LOW_CONTRAST, SceneMix, sample_scene

SIZE = {"frames": 17, "height": 64, "width": 64}


def test_drawn_clips_are_read_rightly():
    scenes = judged_scenes(60)
    results = [score(draw(scene, **SIZE), scene) for scene in scenes]
    for attribute in results[0]:
        assert sum(result[attribute] for result in results) >= 0.99 * len(scenes), attribute


def test_reading_survives_a_little_noise():
    scenes = judged_scenes(20)
    clips = [draw(scene, **SIZE) for scene in scenes]
    results = [score(clip + 0.05 * torch.randn_like(clip), scene) for clip, scene in zip(clips, scenes, strict=True)]
    assert sum(result["all three"] for result in results) >= 18


def test_two_objects_are_counted():
    scenes = [sample_scene(seed, SceneMix(two_objects=1.0)) for seed in range(12)]
    seen = [inspect(draw(scene, **SIZE)) for scene in scenes]
    for scene, report in zip(scenes, seen, strict=True):
        colours = {t.colour for t in scene.things if (t.colour, scene.background) not in LOW_CONTRAST}
        assert {sighting.colour for sighting in report.sightings} >= colours


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_an_empty_video_shows_nothing(level):
    assert inspect(torch.full((3, 17, 64, 64), level)).sightings == ()


def test_a_video_run_backwards_moves_the_other_way():
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up", "grows": "shrinks", "shrinks": "grows"}
    for scene in judged_scenes(10):
        report = inspect(draw(scene, **SIZE).flip(1))
        motion = scene.things[0].motion
        assert report.sightings[0].motion == opposite.get(motion, motion)
