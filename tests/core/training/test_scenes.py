import pytest
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.training.scenes import (
    CAMERAS,
    HUES,
    MOTIONS,
    REACH,
    SHAPES,
    Scene,
    SceneMix,
    is_held_out,
    place_at,
    sample_scene,
)

EVERYTHING = SceneMix(two_objects=0.4, moving_camera=0.4)
STEPS = [i / 16 for i in range(17)]
TRIPLES = [(c, s, m) for c in HUES for s in SHAPES for m in MOTIONS]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(seed, EVERYTHING) for seed in range(400)]


def test_a_seed_always_gives_the_same_scene():
    assert sample_scene(7, EVERYTHING) == sample_scene(7, EVERYTHING)
    assert sample_scene(7, EVERYTHING) != sample_scene(8, EVERYTHING)


def test_every_attribute_occurs(scenes):
    assert {scene.camera for scene in scenes} == set(CAMERAS)
    assert {thing.motion for scene in scenes for thing in scene.things} == set(MOTIONS)
    assert {len(scene.things) for scene in scenes} == {1, 2}


def test_objects_stay_inside_the_frame(scenes):
    for scene in scenes:
        for thing in scene.things:
            for x, y, radius in (place_at(scene, thing, progress) for progress in STEPS):
                half = radius * REACH[thing.shape]
                assert half <= x <= 1 - half
                assert half <= y <= 1 - half


def test_two_objects_never_touch(scenes):
    for scene in (scene for scene in scenes if len(scene.things) == 2):
        first, second = scene.things
        assert first.colour != second.colour
        for progress in STEPS:
            x, y, radius = place_at(scene, first, progress)
            other_x, other_y, other_radius = place_at(scene, second, progress)
            gap = max(abs(x - other_x), abs(y - other_y)) - radius * REACH[first.shape]
            assert gap - other_radius * REACH[second.shape] > 0


def test_about_a_ninth_of_all_triples_is_held_out_and_every_pair_is_trained_on():
    trained = [triple for triple in TRIPLES if not is_held_out(*triple)]
    assert 0.08 < 1 - len(trained) / len(TRIPLES) < 0.14
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(t[a], t[b]) for t in trained} == {(t[a], t[b]) for t in TRIPLES}


@pytest.mark.parametrize("held_out", [False, True])
def test_scenes_keep_to_their_side_of_the_split(held_out):
    for seed in range(60):
        for thing in sample_scene(seed, EVERYTHING, held_out=held_out).things:
            assert is_held_out(*thing.triple) == held_out


def test_a_share_above_one_is_refused():
    with pytest.raises(OptionError, match=r"two_objects is 2\.0"):
        SceneMix(two_objects=2.0)
