import pytest
import torch
from hyvideo_nodes.hyvideo_core.training.autoencoder import (
    EMBEDDED_VAE,
    OBJECT_WEIGHT,
    SIZES,
    AutoencoderTask,
    ClipSize,
    DecoderTask,
    as_sampled,
    choose_size,
    draw_pictures,
    held_out_clips,
    new_autoencoder,
)
from hyvideo_nodes.hyvideo_core.training.codec import PatchCodec

MODULE = "hyvideo_nodes.hyvideo_core.training.autoencoder"
SIZES_NAME, LIKELIHOOD_NAME = f"{MODULE}.SIZES", f"{MODULE}.latent_likelihood"
SMALL = ClipSize(batch=2, frames=5, side=32, share=1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def codec() -> PatchCodec:
    return PatchCodec.fit(held_out_clips(6), EMBEDDED_VAE.latent_channels)


def test_pictures_have_their_size_and_the_same_seed_gives_the_same(codec):
    first, again = draw_pictures(SMALL, generator()), draw_pictures(SMALL, generator())
    assert first.video.shape == (2, 3, 5, 32, 32)
    assert first.weight.shape == (2, 1, 5, 32, 32)
    assert torch.equal(first.video, again.video)


def test_object_pixels_weigh_more_and_are_few():
    pictures = draw_pictures(ClipSize(batch=4, frames=17, side=64, share=1.0), generator())
    assert set(pictures.weight.unique().tolist()) == {1.0, OBJECT_WEIGHT}
    assert 0.01 < float((pictures.weight > 1).float().mean()) < 0.3


def test_all_sizes_are_chosen_by_their_share():
    chosen = [choose_size(generator(seed)) for seed in range(300)]
    for size in SIZES:
        assert abs(chosen.count(size) / 300 - size.share) < 0.1


def test_raw_latents_enter_and_leave_scaled():
    vae = new_autoencoder()
    scale, channels = EMBEDDED_VAE.scaling_factor, EMBEDDED_VAE.latent_channels
    latents = torch.randn(1, channels, 1, 2, 2)
    assert torch.allclose(vae.post_quant_conv(latents / scale), latents, atol=1e-5)
    moments = torch.randn(1, 2 * channels, 1, 2, 2)
    means = vae.quant_conv(moments).chunk(2, dim=1)[0]
    assert torch.allclose(means * scale, moments[:, :channels], atol=1e-5)


def test_the_decoder_trains_alone(monkeypatch, codec):
    monkeypatch.setattr(SIZES_NAME, (SMALL,))
    vae = new_autoencoder()
    loss = DecoderTask(codec).loss(vae, generator())
    loss.backward()
    assert torch.isfinite(loss)
    assert vae.decoder.conv_in.conv.weight.grad.any()
    assert vae.encoder.conv_in.conv.weight.grad is None


def test_both_halves_train_together_and_the_pixels_reach_the_encoder(monkeypatch, codec):
    monkeypatch.setattr(SIZES_NAME, (SMALL,))
    monkeypatch.setattr(LIKELIHOOD_NAME, lambda moments, target: 0.0 * moments.sum())
    reached = []
    for seed in range(12):
        vae = new_autoencoder()
        AutoencoderTask(codec).loss(vae, generator(seed)).backward()
        assert vae.decoder.conv_in.conv.weight.grad.any()
        reached.append(bool(vae.encoder.conv_in.conv.weight.grad.any()))
    assert set(reached) == {True, False}  # half of the steps decode latents as sampled, which no encoder made


def test_sampled_latents_are_louder_and_noisy_by_no_more_than_said():
    latents = torch.ones(200, 4, 1, 8, 8)
    made = as_sampled(latents, generator())
    gain, noise = made.mean(dim=(1, 2, 3, 4)), made.std(dim=(1, 2, 3, 4))
    assert 0.95 < float(gain.min()) < 1.05 < 1.25 < float(gain.max()) < 1.35
    assert float(noise.min()) < 0.02 < 0.18 < float(noise.max()) < 0.24
