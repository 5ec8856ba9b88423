"""Laws of decoding in chunks that go on where the one before stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.loading import build_vae, detect_vae, open_checkpoint
from hyvideo_nodes.hyvideo_core.training.autoencoder import PICTURE_MIX
from hyvideo_nodes.hyvideo_core.training.drawing import draw
from hyvideo_nodes.hyvideo_core.training.scenes import sample_scene
from hyvideo_nodes.hyvideo_core.vae import Tiling, VideoAutoencoder, decode_tiled, encode_tiled, layers
from hyvideo_nodes.hyvideo_core.vae import autoencoder as autoencoder_module
from hyvideo_nodes.hyvideo_core.vae import carried as carried_module
from hyvideo_nodes.hyvideo_core.vae.carry import Carry
from hyvideo_nodes.hyvideo_core.vae.layers import group_norm, moments_of, norm_silu
from hyvideo_nodes.hyvideo_core.vae.memory import num_whole_layers
from torch import Tensor

CONFIG = VaeConfig(block_channels=(4, 8, 8, 12), layers_per_block=1, latent_channels=3, norm_groups=2)
EMBEDDED = Path(__file__).resolve().parents[3] / "embedded" / "vae" / "hyvideo_embedded_vae.safetensors"


def carried(chunk: int | None, **options: Any) -> Tiling:
    """Whole frames in chunks of so many latent frames."""
    size = {"tile_size": None, "overlap": 0} | options
    return Tiling(carried=True, temporal_size=None if chunk is None else 4 * chunk, temporal_overlap=0, **size)


@pytest.fixture
def vae() -> VideoAutoencoder:
    return VideoAutoencoder(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def without_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms that look at one value at a time."""
    for module in (layers, autoencoder_module, carried_module):
        monkeypatch.setattr(module, "norm_silu", lambda _norm, x, **_: F.silu(x * 0.5 + 0.1))


@pytest.mark.parametrize("chunk", [None, 5, 9])
def test_one_chunk_is_the_untiled_model_bit_for_bit(vae: VideoAutoencoder, chunk: int | None) -> None:
    latents = torch.randn(2, 3, 5, 2, 3)
    whole = torch.cat([vae.decode(sample) for sample in latents.split(1)])
    assert torch.equal(decode_tiled(vae, latents, carried(chunk)), whole)


def test_the_overlap_of_runs_has_no_effect(vae: VideoAutoencoder) -> None:
    latents = torch.randn(1, 3, 5, 2, 3)
    overlapping = Tiling(carried=True, tile_size=None, temporal_size=8, temporal_overlap=16)
    assert torch.equal(decode_tiled(vae, latents, overlapping), decode_tiled(vae, latents, carried(2)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
@pytest.mark.parametrize("limit", [2**26, 100])
@pytest.mark.parametrize("factors", [(8, 4), (4, 8), (2, 1)])
@pytest.mark.usefixtures("without_statistics")
def test_everything_but_statistics_is_exact(
    monkeypatch: pytest.MonkeyPatch, chunk: int, limit: int, factors: tuple[int, int]
) -> None:
    config = VaeConfig(
        block_channels=(4, 8, 8, 12),
        layers_per_block=1,
        latent_channels=3,
        norm_groups=2,
        spatial_factor=factors[0],
        time_factor=factors[1],
    )
    vae, latents = VideoAutoencoder(config).double().requires_grad_(False), torch.randn(1, 3, 7, 2, 3).double()
    whole = vae.decode(latents)
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", limit)
    out = torch.full_like(whole, float("nan"))
    carried_module.decode_carried(vae, latents, chunk, out)
    assert (out - whole).abs().max() <= 1e-12 * whole.abs().max()


@pytest.mark.parametrize("whole", [0, 2, 5])
@pytest.mark.usefixtures("without_statistics")
def test_any_number_of_layers_may_see_all_frames(
    vae: VideoAutoencoder, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    latents = torch.randn(1, 3, 5, 2, 3)
    monkeypatch.setattr(carried_module, "num_whole_layers", lambda *_: whole)
    assert torch.allclose(decode_tiled(vae, latents, carried(2)), vae.decode(latents), atol=1e-5)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("limit", [2**26, 60])
def test_a_later_chunk_is_normalised_by_the_clip_up_to_its_end(
    monkeypatch: pytest.MonkeyPatch, reuse: bool, limit: int
) -> None:
    norm, clip, carry = group_norm(12, 4), 2 * torch.randn(2, 12, 7, 3, 5) + 1, Carry()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    whole, until_5 = norm_silu(norm, clip).detach(), norm_silu(norm, clip[:, :, :5]).detach()
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", limit)
    with torch.no_grad():
        parts = [norm_silu(norm, part.clone(), reuse=reuse, carry=carry) for part in clip.split((2, 3, 2), dim=2)]
        first = norm_silu(norm, clip[:, :, :2].clone())
    assert torch.equal(parts[0], first)
    assert torch.allclose(parts[1], until_5[:, :, 2:], atol=1e-5)
    assert torch.allclose(parts[2], whole[:, :, 5:], atol=1e-5)


def test_moments_of_parts_join_to_those_of_the_whole() -> None:
    norm, x = group_norm(6, 3), torch.randn(2, 6, 9, 2, 2) * torch.arange(9.0).view(-1, 1, 1) + 3
    first, second = (moments_of(norm, part) for part in x.split((2, 7), dim=2))
    joined, whole = first.joined(second), moments_of(norm, x)
    assert joined.count == whole.count
    assert torch.allclose(joined.mean, whole.mean, rtol=1e-5)
    assert torch.allclose(joined.variance, whole.variance, rtol=1e-5)


def test_levels_see_all_frames_as_long_as_what_they_make_is_small_beside_a_chunk() -> None:
    config = VaeConfig()
    assert [num_whole_layers(config, (33, 90, 160), chunk) for chunk in (1, 2, 4, 16)] == [3, 3, 7, 11]
    assert [num_whole_layers(config, (frames, 60, 106), 4) for frames in (5, 9, 129)] == [11, 11, 3]


def test_tiles_are_carried_one_by_one(vae: VideoAutoencoder) -> None:
    latents = torch.randn(2, 3, 5, 4, 5)
    sides = {"tile_size": 24, "overlap": 8}
    overlapping = decode_tiled(vae, latents, Tiling(temporal_size=None, **sides))
    assert torch.equal(decode_tiled(vae, latents, carried(None, **sides)), overlapping)
    buffer = torch.empty(2, 17, 32, 40, 3)
    assert decode_tiled(vae, latents, carried(2, **sides), out=buffer.permute(0, 4, 1, 2, 3)).isfinite().all()


@pytest.mark.parametrize("sides", [{}, {"tile_size": 24, "overlap": 8}])
def test_every_chunk_is_reported_and_the_report_can_stop_the_work(vae: VideoAutoencoder, sides: dict[str, int]) -> None:
    latents, seen = torch.randn(2, 3, 5, 4, 4), []
    decode_tiled(vae, latents, carried(2, **sides), on_tile=lambda done, total: seen.append((done, total)))
    total = 2 * 3 * (4 if sides else 1)
    assert seen == [(done, total) for done in range(1, total + 1)]

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_tiled(vae, latents, carried(2, **sides), on_tile=stop)


def test_encoding_refuses_carried_runs(vae: VideoAutoencoder) -> None:
    with pytest.raises(OptionError, match=r"carried runs.*decoding only"):
        encode_tiled(vae, torch.zeros(1, 3, 5, 16, 16), carried(2))


def psnr(got: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(4 / (got - expected).square().mean()))


@pytest.mark.parametrize("seed", [1, 3])
def test_a_clip_differs_from_the_untiled_one_by_no_more_than_the_help_page_says(seed: int) -> None:
    vae = build_vae(detect_vae(open_checkpoint(EMBEDDED)), dtype=torch.float32).requires_grad_(False)
    latents = vae.encode(draw(sample_scene(seed, PICTURE_MIX), frames=17, height=48, width=48)[None]).chunk(2, dim=1)[0]
    got = psnr(decode_tiled(vae, latents, carried(2)), vae.decode(latents))
    assert got >= 40, got
