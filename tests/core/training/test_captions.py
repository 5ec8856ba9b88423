import pytest
from hyvideo_nodes.hyvideo_core.training.captions import PLAIN_MOTION, caption, plain_caption
from hyvideo_nodes.hyvideo_core.training.scenes import Scene, SceneMix, Thing, sample_scene

MIX = SceneMix(two_objects=0.4, moving_camera=0.4)


def thing(colour: str, shape: str, motion: str) -> Thing:
    return Thing(
        colour=colour, shape=shape, motion=motion, start=(0.5, 0.5), end=(0.5, 0.5), radius_start=0.1, radius_end=0.1
    )


def scene(*things: Thing, background: str = "black", camera: str = "static") -> Scene:
    return Scene(background=background, things=things, camera=camera, camera_amount=0.3)


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (scene(thing("red", "circle", "left")), "a red circle moves left on a black background"),
        (
            scene(thing("orange", "cross", "grows"), camera="zooms in"),
            "an orange cross grows on a black background, the camera zooms in",
        ),
        (
            scene(thing("red", "circle", "left"), thing("blue", "square", "still"), background="gray"),
            "a red circle moves left and a blue square stays still on a gray background",
        ),
    ],
)
def test_the_plain_form_is_as_promised(shown, sentence):
    assert plain_caption(shown) == sentence


def test_a_seed_always_gives_the_same_caption():
    for seed in range(20):
        assert caption(sample_scene(seed, MIX), seed) == caption(sample_scene(seed, MIX), seed)


def test_the_plain_form_is_possible_for_every_scene():
    for seed in range(50):
        shown = sample_scene(seed, MIX)
        assert caption(shown, seed, plain_share=1.0) == plain_caption(shown)
        assert all(PLAIN_MOTION[t.motion] in plain_caption(shown) for t in shown.things)


def test_wording_varies_but_colours_are_always_named():
    shown = scene(thing("green", "square", "right"))
    sentences = {caption(shown, seed, plain_share=0.0) for seed in range(60)}
    assert len(sentences) > 30
    assert all("green" in sentence and "right" in sentence for sentence in sentences)
