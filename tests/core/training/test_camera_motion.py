import pytest
import torch
from hyvideo_nodes.hyvideo_core.training.camera_motion import CameraMotion, find_camera
from hyvideo_nodes.hyvideo_core.training.drawing import draw
from hyvideo_nodes.hyvideo_core.training.scenes import BACKGROUNDS, Scene

AMOUNTS = {"static": 0.0, "pans left": 0.3, "pans right": 0.25, "zooms in": 1.7, "zooms out": 1.6}


def empty_scene(background: str, camera: str) -> Scene:
    return Scene(background=background, things=(), camera=camera, camera_amount=AMOUNTS[camera])


def read(video: torch.Tensor) -> CameraMotion:
    video = (video.clamp(-1, 1) + 1) / 2
    return find_camera(video, torch.zeros(video.shape[1:], dtype=torch.bool))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("camera", AMOUNTS)
def test_the_pattern_alone_tells_the_movement_and_its_amount(background, camera):
    found = read(draw(empty_scene(background, camera), frames=17, height=64, width=64))
    shift = {"pans left": 0.3, "pans right": -0.25}.get(camera, 0.0)
    zoom = {"zooms in": 1.7, "zooms out": 1 / 1.6}.get(camera, 1.0)
    assert found.name == camera
    assert found.shift == pytest.approx(shift, abs=0.03)
    assert found.zoom == pytest.approx(zoom, rel=0.06)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_a_background_without_a_pattern_rests(noise):
    video = noise * torch.randn(3, 17, 64, 64, generator=torch.Generator().manual_seed(5))
    assert read(video) == CameraMotion()


def test_what_is_masked_as_an_object_does_not_move_the_camera():
    video = (draw(empty_scene("gray", "static"), frames=17, height=64, width=64) + 1) / 2
    is_object = torch.zeros(17, 64, 64, dtype=torch.bool)
    for frame in range(17):  # a bright bar that travels through half of the frame
        is_object[frame, 8:56, 10 + 2 * frame : 20 + 2 * frame] = True
    video[:, is_object] = 1.0
    assert find_camera(video, is_object) == CameraMotion()


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_frames_for_a_movement_rest(frames):
    scene = empty_scene("gray", "static")
    assert read(draw(scene, frames=frames, height=64, width=64)) == CameraMotion()


def test_a_scene_that_moves_right_is_a_pan_to_the_left():
    assert CameraMotion(shift=0.3).name == "pans left"
    assert CameraMotion(zoom=0.5).name == "zooms out"
