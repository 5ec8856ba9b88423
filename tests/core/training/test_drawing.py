import colorsys

import pytest
import torch
from hyvideo_nodes.hyvideo_core.training.drawing import PATTERN_CONTRAST, draw
from hyvideo_nodes.hyvideo_core.training.scenes import (
    BACKGROUNDS,
    DIRECTIONS,
    HUES,
    MOTIONS,
    SHAPES,
    Scene,
    SceneMix,
    Thing,
    sample_scene,
)

SIDE = 64


def scene_of(colour="red", shape="circle", background="black", camera="static", amount=0.0) -> Scene:
    thing = Thing(
        colour=colour, shape=shape, motion="still", start=(0.5, 0.5), end=(0.5, 0.5), radius_start=0.2, radius_end=0.2
    )
    return Scene(background=background, things=(thing,), camera=camera, camera_amount=amount)


def one_object(motion: str, count: int) -> list[Scene]:
    mix = SceneMix(moving_camera=0.0)
    found = (scene for seed in range(10_000) if (scene := sample_scene(seed, mix)).things[0].motion == motion)
    return [next(found) for _ in range(count)]


def object_mask(scene: Scene) -> torch.Tensor:
    """(F, H, W): where the clip differs from the same clip without its object."""
    empty = Scene(
        background=scene.background,
        things=(),
        camera=scene.camera,
        camera_amount=scene.camera_amount,
    )
    size = {"frames": 17, "height": SIDE, "width": SIDE}
    return (draw(scene, **size) - draw(empty, **size)).abs().amax(dim=0) > 0.15


def centroid(mask: torch.Tensor) -> tuple[float, float]:
    y, x = torch.nonzero(mask, as_tuple=True)
    return float(x.float().mean()) / SIDE, float(y.float().mean()) / SIDE


@pytest.mark.parametrize("colour", HUES)
def test_objects_have_the_saturated_hue_of_their_name(colour):
    video = draw(scene_of(colour), frames=1, height=SIDE, width=SIDE)
    r, g, b = ((video[:, 0, SIDE // 2, SIDE // 2] + 1) / 2).tolist()
    hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
    assert hue * 360 == pytest.approx(HUES[colour], abs=1)
    assert saturation > 0.9
    assert value > 0.9


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_right_give_or_take_the_faint_pattern(background):
    video = draw(scene_of(background=background), frames=1, height=SIDE, width=SIDE)
    edge = (video[:, 0, 0] + 1) / 2
    wanted = torch.tensor(BACKGROUNDS[background])[:, None] / 255
    assert float((edge - wanted).abs().max()) <= PATTERN_CONTRAST + 1e-4
    assert PATTERN_CONTRAST < 0.1


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_a_move_covers_at_least_fifteen_percent_in_its_direction(motion):
    for scene in one_object(motion, 5):
        mask = object_mask(scene)
        (x0, y0), (x1, y1) = centroid(mask[0]), centroid(mask[-1])
        along = (x1 - x0) * DIRECTIONS[motion][0] + (y1 - y0) * DIRECTIONS[motion][1]
        across = (x1 - x0) * DIRECTIONS[motion][1] + (y1 - y0) * DIRECTIONS[motion][0]
        assert along >= 0.15
        assert abs(across) < 0.02


def test_a_still_object_stays_within_five_percent():
    for scene in one_object("still", 5):
        mask = object_mask(scene)
        assert centroid(mask[0]) == pytest.approx(centroid(mask[-1]), abs=0.05)


@pytest.mark.parametrize("motion", ["grows", "shrinks"])
def test_growth_changes_the_area_at_least_twofold(motion):
    for scene in one_object(motion, 5):
        mask = object_mask(scene)
        ratio = float(mask[-1].sum() / mask[0].sum())
        assert (ratio if motion == "grows" else 1 / ratio) >= 2.0


def test_squares_are_axis_aligned():
    mask = object_mask(scene_of(shape="square"))[0]
    rows, columns = mask.any(dim=1).sum(), mask.any(dim=0).sum()
    assert int(mask.sum()) == int(rows * columns)


def test_triangles_point_up():
    widths = object_mask(scene_of(shape="triangle"))[0].sum(dim=1)
    widths = widths[widths > 0]
    assert widths[0] < widths[len(widths) // 2] < widths[-1]


def test_a_cross_is_a_plus():
    widths = object_mask(scene_of(shape="cross"))[0].sum(dim=1)
    widths = widths[widths > 0]
    assert widths[len(widths) // 2] > 2 * widths[0]
    assert widths[0] == widths[-1]


def test_shapes_differ_from_each_other():
    masks = [object_mask(scene_of(shape=shape))[0] for shape in SHAPES]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert float((mask & other).sum() / (mask | other).sum()) < 0.9


@pytest.mark.parametrize(("camera", "sign"), [("pans left", 1), ("pans right", -1)])
def test_panning_moves_the_scene_the_other_way(camera, sign):
    scene = scene_of(camera=camera, amount=0.25)
    mask = object_mask(scene)
    (x0, y0), (x1, y1) = centroid(mask[0]), centroid(mask[-1])
    assert sign * (x1 - x0) == pytest.approx(0.25, abs=0.02)
    assert y1 == pytest.approx(y0, abs=0.01)
    video = draw(scene, frames=17, height=SIDE, width=SIDE)
    first, last = video[:, 0, 2], video[:, -1, 2]
    assert torch.allclose(first, last.roll(-sign * SIDE // 4, dims=-1), atol=0.02)


def test_zooming_in_enlarges_the_object():
    mask = object_mask(scene_of(camera="zooms in", amount=1.6))
    assert float(mask[-1].sum() / mask[0].sum()) == pytest.approx(1.6**2, rel=0.1)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (33, 96, 96), (5, 48, 80)])
def test_any_size_is_drawn_in_range(frames, height, width):
    video = draw(sample_scene(3, SceneMix()), frames=frames, height=height, width=width)
    assert video.shape == (3, frames, height, width)
    assert float(video.abs().max()) <= 1.0


def test_all_motions_are_known():
    assert {*DIRECTIONS, "still", "grows", "shrinks"} == set(MOTIONS)
