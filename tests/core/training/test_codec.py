import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import ShapeError
from hyvideo_nodes.hyvideo_core.training.codec import PatchCodec, from_patches, preview_factors, to_patches
from hyvideo_nodes.hyvideo_core.training.drawing import draw
from hyvideo_nodes.hyvideo_core.training.objectives import psnr
from hyvideo_nodes.hyvideo_core.training.scenes import SceneMix, sample_scene


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.stack([draw(sample_scene(i, SceneMix()), frames=9, height=32, width=32) for i in range(24)])


def test_patches_and_back_is_exact():
    video = torch.randn(2, 3, 9, 16, 24)
    assert to_patches(video).shape == (2, 3, 2, 3, 768)
    assert torch.equal(from_patches(to_patches(video)), video)


def test_broken_sizes_are_refused():
    with pytest.raises(ShapeError, match="8 frames"):
        to_patches(torch.zeros(1, 3, 8, 16, 16))


def test_latents_are_unit_sized_and_decode_to_nearly_the_clip(clips):
    codec = PatchCodec.fit(clips, 16)
    latents = codec.encode(clips)
    assert latents.shape == (24, 16, 3, 4, 4)
    assert float(latents.square().mean()) == pytest.approx(1.0, rel=0.1)
    assert psnr(codec.decode(latents), clips) > 22


def test_all_components_lose_nothing(clips):
    codec = PatchCodec.fit(clips + 0.1 * torch.randn_like(clips), 768)
    assert torch.allclose(codec.decode(codec.encode(clips)), clips, atol=1e-3)


def test_preview_factors_recover_colours(clips):
    latents = PatchCodec.fit(clips, 16).encode(clips)
    factors, bias = preview_factors(latents, clips)
    shown = torch.einsum("bcthw,cr->brthw", latents, factors) + bias.view(1, 3, 1, 1, 1)
    truth = torch.nn.functional.avg_pool2d(clips[:, :, 0], 8)
    assert float((shown[:, :, 0] - truth).abs().mean()) < 0.05
