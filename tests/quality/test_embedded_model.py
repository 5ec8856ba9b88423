"""The shipped embedded model as a measure: what it draws, and what each way of saving time or memory does to that.

Fixed seeds and bounds well below what `python3 dev.py bench embedded_quality` measures: a change that fails here broke
something, one that passes may still be worse.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.pipeline import SamplingOptions
from hyvideo_nodes.hyvideo_core.step_cache import TeaCache
from hyvideo_nodes.hyvideo_core.text_encoders.conditioning import Conditioning
from hyvideo_nodes.hyvideo_core.training.captions import plain_caption
from hyvideo_nodes.hyvideo_core.training.export import EmbeddedFiles
from hyvideo_nodes.hyvideo_core.training.inspection import judged_scenes
from hyvideo_nodes.hyvideo_core.training.judge import score
from hyvideo_nodes.hyvideo_core.training.objectives import psnr
from hyvideo_nodes.hyvideo_core.training.scenes import MOTIONS, SHAPES, Scene
from hyvideo_nodes.hyvideo_core.training.shipped import LARGE, ShippedModel, reconstruction_psnr
from hyvideo_nodes.hyvideo_core.vae.tiling import Tiling, decode_tiled

FILES = EmbeddedFiles(Path(__file__).resolve().parents[2] / "embedded")
STEPS = 20
SCENES = judged_scenes(24)
FEW = SCENES[:8]


@pytest.fixture(scope="module")
def model() -> ShippedModel:
    return ShippedModel.load(FILES)


@pytest.fixture(scope="module")
def videos(model) -> list[torch.Tensor]:
    """The full runs in float32 that everything else is compared with."""
    return [model.make(plain_caption(scene), options(index)) for index, scene in enumerate(SCENES)]


def options(seed: int) -> SamplingOptions:
    return SamplingOptions(steps=STEPS, seed=seed)


def shares(videos: list[torch.Tensor], scenes: list[Scene]) -> dict[str, float]:
    """Share of videos that are right, by attribute."""
    results = [score(video, scene) for video, scene in zip(videos, scenes, strict=True)]
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def mean_psnr(videos: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return psnr(torch.stack(videos), torch.stack(others))


def test_videos_show_what_the_prompts_say(videos):
    right = shares(videos, SCENES)
    assert right["background"] >= 0.95
    assert right["colour"] >= 0.95
    assert right["shape"] >= 0.9
    assert right["motion"] >= 0.9
    assert right["all three"] >= 0.85


def test_held_out_clips_survive_the_autoencoder(model):
    assert reconstruction_psnr(model, 8) >= 30.0


def test_bfloat16_draws_the_same_videos(videos):
    model = ShippedModel.load(FILES, torch.bfloat16)
    made = [model.make(plain_caption(scene), options(index)) for index, scene in enumerate(FEW)]
    assert mean_psnr(made, videos[: len(FEW)]) >= 32.0
    assert shares(made, FEW)["all three"] >= shares(videos[: len(FEW)], FEW)["all three"] - 0.25


def test_a_tiled_decode_is_close_to_the_whole(model):
    scene = SCENES[0]
    latents, _ = model.sample(model.encode(plain_caption(scene)), options(0), LARGE)
    tiling = Tiling(tile_size=64, overlap=32, temporal_size=None, temporal_overlap=0)
    with torch.no_grad():
        tiled = decode_tiled(model.vae, latents, tiling)[0].float().clamp(-1, 1)
    assert mean_psnr([tiled], [model.decode(latents)]) >= 25.0


@pytest.mark.parametrize(("threshold", "fewest", "most", "least_psnr"), [(0.1, 2, 10, 32.0), (0.15, 6, 13, 28.0)])
def test_teacache_skips_steps_and_keeps_what_is_shown(model, videos, threshold, fewest, most, least_psnr):
    made = []
    for index, scene in enumerate(FEW):
        latents, report = model.sample(
            model.encode(plain_caption(scene)), options(index), step_cache=TeaCache(rel_l1_thresh=threshold)
        )
        (cache,) = report.caches.values()
        assert fewest <= len(cache.skipped) <= most
        made.append(model.decode(latents))
    assert mean_psnr(made, videos[: len(FEW)]) >= least_psnr
    assert shares(made, FEW)["all three"] >= shares(videos[: len(FEW)], FEW)["all three"] - 0.25


def test_shape_and_motion_come_through_the_language_model_alone(model):
    """With the states of one prompt and the pooled vector of another, shape and motion are those of the states."""
    of_states = of_pooled = 0
    for index, told in enumerate(FEW):
        other = _otherwise(told)
        states, pooled = (model.encode(plain_caption(scene)) for scene in (told, other))
        mixed = Conditioning(states=states.states, pooled=pooled.pooled)
        assert torch.cosine_similarity(states.pooled, pooled.pooled).item() > 0.98
        video = model.decode(model.sample(mixed, options(index))[0])
        of_states += _shape_and_motion(video, told)
        of_pooled += _shape_and_motion(video, other)
    assert of_states >= len(FEW) // 2
    assert of_pooled == 0


def _otherwise(scene: Scene) -> Scene:
    """The same colour and background, another shape and motion."""
    thing = scene.things[0]
    shape, motion = (
        names[(names.index(now) + 1) % len(names)] for names, now in ((SHAPES, thing.shape), (MOTIONS, thing.motion))
    )
    return replace(scene, things=(replace(thing, shape=shape, motion=motion),))


def _shape_and_motion(video: torch.Tensor, scene: Scene) -> bool:
    result = score(video, scene)
    return result["shape"] and result["motion"]
