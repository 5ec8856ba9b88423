"""Laws of the autoencoder as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.errors import ConfigError, ShapeError
from hyvideo_nodes.hyvideo_core.vae import Gaussian, VideoAutoencoder
from hyvideo_nodes.hyvideo_core.vae.autoencoder import level_factors

TINY = VaeConfig(block_channels=(4, 8, 8, 12), layers_per_block=1, latent_channels=3, norm_groups=2)


def test_full_size_has_exactly_the_published_tensors(manifest_dir: Path) -> None:
    manifest = json.loads((manifest_dir / "hunyuanvideo_vae.official.json").read_text())
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, (shape, _) in manifest.items()}
        vae = VideoAutoencoder(VaeConfig())
    vae.load_state_dict(published, strict=True, assign=True)
    assert len(vae.state_dict()) == len(manifest)


def test_default_levels_halve_space_three_times_and_time_twice_late() -> None:
    assert level_factors(VaeConfig()) == ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1))


@pytest.mark.parametrize(("spatial", "time"), [(8, 4), (4, 2), (2, 8), (1, 1), (8, 1), (1, 4)])
@pytest.mark.parametrize("latent", [(1, 1, 2), (3, 2, 1)])
def test_sizes_follow_the_factors_both_ways(spatial: int, time: int, latent: tuple[int, int, int]) -> None:
    vae = VideoAutoencoder(replace(TINY, spatial_factor=spatial, time_factor=time)).eval()
    video = ((latent[0] - 1) * time + 1, latent[1] * spatial, latent[2] * spatial)
    with torch.no_grad():
        assert vae.decode(torch.randn(1, 3, *latent)).shape == (1, 3, *video)
        assert vae.encode(torch.randn(1, 3, *video)).shape == (1, 6, *latent)


@pytest.mark.parametrize(("channels", "layers"), [((4, 6), 3), ((2, 4, 6, 8, 10), 1)])
def test_any_number_of_levels_and_layers_fits(channels: tuple[int, ...], layers: int) -> None:
    config = replace(TINY, block_channels=channels, layers_per_block=layers, spatial_factor=2, time_factor=2)
    vae = VideoAutoencoder(config)
    assert vae.decode(torch.randn(1, 3, 2, 2, 3)).shape == (1, 3, 3, 4, 6)


@pytest.mark.parametrize("change", [{"spatial_factor": 16}, {"time_factor": 3}, {"spatial_factor": 0}])
def test_impossible_factors_are_refused_by_name(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        VideoAutoencoder(replace(TINY, **change))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 4, 16, 16), "use|give it 1 or 5"),
        ((1, 3, 5, 16, 20), "20x16 pixels.*multiples of 8.*16x16"),
        ((1, 4, 5, 16, 16), r"expected \[B, 3, F, H, W\]"),
        ((3, 5, 16, 16), r"\[3, 5, 16, 16\]"),
    ],
)
def test_video_that_does_not_fit_is_refused_with_numbers(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        VideoAutoencoder(TINY).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 16, 1, 2, 2), (1, 3, 2, 2), (1, 3, 0, 2, 2)])
def test_latents_that_do_not_fit_are_refused_with_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"latents of shape \[.*expected \[B, 3, T, h, w\]"):
        VideoAutoencoder(TINY).decode(torch.zeros(shape))


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.skipif(torch.__version__.startswith("2.5."), reason="PyTorch 2.5 has no float16 padding on the CPU")
def test_half_precision_stays_close_and_keeps_its_dtype(dtype: torch.dtype, error: float) -> None:
    vae, latents = VideoAutoencoder(TINY), torch.randn(1, 3, 2, 2, 3)
    with torch.no_grad():
        video = vae.decode(latents)
        moments = vae.encode(video)
        vae.to(dtype)
        for got, expected in ((vae.decode(latents), video), (vae.encode(video), moments)):
            assert got.dtype == dtype
            assert (got.float() - expected).norm() / expected.norm() < error


def test_gradients_reach_every_weight() -> None:
    vae = VideoAutoencoder(TINY)
    gaussian = Gaussian.from_moments(vae.encode(torch.randn(1, 3, 5, 8, 8)))
    vae.decode(gaussian.sample(torch.randn_like(gaussian.mean))).square().mean().backward()
    silent = [name for name, weight in vae.named_parameters() if weight.grad is None or not weight.grad.any()]
    # a bias before a softmax over keys, or before a norm of one channel group, has no effect; weights always have
    assert [name for name in silent if name.endswith("weight")] == []


def test_grad_mode_does_not_change_numbers() -> None:
    vae, latents = VideoAutoencoder(TINY), torch.randn(1, 3, 3, 2, 2)
    video = vae.decode(latents).detach()
    with torch.no_grad():
        assert torch.equal(vae.decode(latents), video)
    with torch.inference_mode():
        assert torch.equal(vae.decode(latents), video)


def test_gaussian_splits_clamps_and_samples() -> None:
    mean, logvar = torch.randn(2, 1, 3, 2, 2, 2)
    logvar[0, 0] = torch.tensor([[100.0, -100.0], [0.0, 2.0]])
    gaussian = Gaussian.from_moments(torch.cat([mean, logvar], dim=1))
    assert torch.equal(gaussian.mode, mean)
    assert gaussian.logvar.max() == 20
    assert gaussian.logvar.min() == -30
    noise = torch.randn_like(mean)
    assert torch.allclose(gaussian.sample(noise), mean + gaussian.logvar.div(2).exp() * noise)
