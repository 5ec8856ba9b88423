"""The autoencoder against diffusers' independent implementation, on random weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.vae import Tiling, VideoAutoencoder, decode_tiled, encode_tiled

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5
EXACT = 1e-10
"""In float64, where only the function itself can differ. In float32 either implementation is up to 4e-5 away from its
own float64 result on these random weights."""


@dataclass(frozen=True)
class Pair:
    ours: VideoAutoencoder
    theirs: torch.nn.Module


@pytest.fixture(scope="module", params=[((8, 12, 16, 16), 2, 4, 4), ((6, 6, 12, 18), 1, 3, 3)], ids=["two", "one"])
def pair(request: pytest.FixtureRequest) -> Pair:
    channels, layers, latent, groups = request.param
    torch.manual_seed(3)
    theirs = diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=channels, layers_per_block=layers, latent_channels=latent, norm_num_groups=groups
    ).eval()
    for weight in theirs.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    theirs.use_framewise_decoding = theirs.use_framewise_encoding = False
    config = VaeConfig(
        block_channels=channels, layers_per_block=layers, latent_channels=latent, norm_groups=groups, sample_size=32
    )
    ours = VideoAutoencoder(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return Pair(ours.requires_grad_(False), theirs.requires_grad_(False))


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def test_float32_stays_within_its_rounding(pair: Pair) -> None:
    latents = torch.randn(2, pair.ours.config.latent_channels, 4, 2, 2)
    video = torch.rand(2, 3, 13, 16, 16) * 2 - 1
    assert relative(pair.ours.decode(latents), pair.theirs.decode(latents).sample) <= 5e-5
    assert relative(pair.ours.encode(video), pair.theirs.encode(video).latent_dist.parameters) <= 5e-5


@pytest.fixture(scope="module")
def exact(pair: Pair) -> Pair:
    """The same pair in float64."""
    return Pair(copy.deepcopy(pair.ours).double(), copy.deepcopy(pair.theirs).double())


@pytest.mark.parametrize("latent_size", [(1, 2, 3), (2, 3, 1), (4, 2, 2)])
def test_decoding(exact: Pair, latent_size: tuple[int, int, int]) -> None:
    latents = torch.randn(2, exact.ours.config.latent_channels, *latent_size, dtype=torch.float64)
    assert relative(exact.ours.decode(latents), exact.theirs.decode(latents).sample) <= EXACT


@pytest.mark.parametrize("video_size", [(1, 16, 24), (5, 24, 8), (13, 16, 16)])
def test_encoding(exact: Pair, video_size: tuple[int, int, int]) -> None:
    video = torch.rand(2, 3, *video_size, dtype=torch.float64) * 2 - 1
    assert relative(exact.ours.encode(video), exact.theirs.encode(video).latent_dist.parameters) <= EXACT


@pytest.mark.parametrize("latent_size", [(3, 5, 6), (10, 2, 3), (6, 3, 7)])
@pytest.mark.parametrize("overlap", [8, 16])
def test_tiling(pair: Pair, latent_size: tuple[int, int, int], overlap: int) -> None:
    pair.theirs.enable_tiling(32, 32, 16, 32 - overlap, 32 - overlap, 12)
    pair.theirs.use_framewise_decoding = pair.theirs.use_framewise_encoding = True
    tiling = Tiling(tile_size=32, overlap=overlap, temporal_size=16, temporal_overlap=4, keep_redundant=True)
    latents = torch.randn(1, pair.ours.config.latent_channels, *latent_size)
    frames, height, width = latent_size
    video = torch.rand(1, 3, 4 * frames - 3, 8 * height, 8 * width) * 2 - 1
    decoded, moments = pair.theirs.decode(latents).sample, pair.theirs.encode(video).latent_dist.parameters
    pair.theirs.use_tiling = pair.theirs.use_framewise_decoding = pair.theirs.use_framewise_encoding = False
    assert relative(decode_tiled(pair.ours, latents, tiling), decoded) <= TOLERANCE
    assert relative(encode_tiled(pair.ours, video, tiling), moments) <= TOLERANCE
