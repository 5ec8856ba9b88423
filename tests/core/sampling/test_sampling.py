"""Noise, schedules, masks and the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.errors import NonFiniteError, OptionError
from hyvideo_nodes.hyvideo_core.pipeline import SamplingOptions
from hyvideo_nodes.hyvideo_core.sampling.denoise import denoise
from hyvideo_nodes.hyvideo_core.sampling.guidance import ClassifierFreeGuidance, EmbeddedGuidance, choose_guidance
from hyvideo_nodes.hyvideo_core.sampling.masking import KeptRegion, fit_mask, mix_noise
from hyvideo_nodes.hyvideo_core.sampling.noise import make_noise
from hyvideo_nodes.hyvideo_core.sampling.sigmas import check_sigmas, flow_sigmas, partial_sigmas

SHAPE = (1, 2, 3, 4, 4)


def test_sample_zero_is_the_plain_draw_of_its_seed():
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(42))
    assert torch.equal(make_noise(SHAPE, 42), expected)


def test_noise_of_a_batch_is_that_of_its_seeds():
    batch = make_noise((3, *SHAPE[1:]), 7)
    assert all(torch.equal(batch[i : i + 1], make_noise(SHAPE, 7 + i)) for i in range(3))
    picked = make_noise((2, *SHAPE[1:]), 7, [2, 0])
    assert torch.equal(picked, torch.cat((batch[2:], batch[:1])))


def test_seeds_wrap():
    assert torch.equal(make_noise(SHAPE, 2**64 - 1, [1]), make_noise(SHAPE, 0))


@given(steps=st.integers(1, 200), shift=st.floats(0.1, 30))
def test_sigmas_fall_from_one_to_zero(steps, shift):
    sigmas = flow_sigmas(steps, shift)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == pytest.approx(1, abs=1e-6)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_shift_one_is_linear():
    assert torch.allclose(flow_sigmas(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))


@pytest.mark.parametrize(("steps", "amount", "total"), [(10, 0.5, 20), (20, 0.3, 66), (7, 1.0, 7), (1, 0.9, 1)])
def test_partial_runs_take_the_last_levels_of_a_longer_run(steps, amount, total):
    assert torch.equal(partial_sigmas(steps, 7.0, amount), flow_sigmas(total, 7.0)[-(steps + 1) :])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"steps": -3}, "steps is -3"),
        ({"flow_shift": 0.0}, "flow_shift is 0.0, expected a positive number"),
        ({"denoise": 0.0}, "denoise is 0.0, expected above 0"),
        ({"denoise": 1.5}, "denoise is 1.5"),
        ({"flow_shift": float("nan")}, "flow_shift is nan"),
        ({"cfg": -1.0}, "expected 0 or more"),
        ({"cfg": float("nan")}, "cfg nan: expected 0 or more, and finite"),
        ({"guidance_scale": float("inf")}, "embedded_guidance_scale inf"),
        ({"sigmas": torch.tensor([1.0])}, "expected at least two noise levels"),
        ({"sigmas": torch.tensor([14.6, 0.0])}, "sigmas from 14.6 to 0, expected noise levels between 1 and 0"),
        ({"sigmas": torch.tensor([float("nan"), 0.0])}, "between 1 and 0"),
        ({"sigmas": torch.tensor([0.0, 1.0])}, "the sigmas rise"),
    ],
)
def test_settings_outside_their_range_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        SamplingOptions(**options)


def test_repeated_levels_are_allowed():
    check_sigmas(torch.tensor([1.0, 0.5, 0.5, 0.0]))


def test_a_straight_flow_is_followed_exactly():
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    result = denoise(lambda _x, _sigma: noise - clean, noise, flow_sigmas(5, 7.0))
    assert torch.allclose(result, clean, atol=1e-6)


def test_every_step_is_reported_with_the_predicted_video():
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    seen = []
    denoise(lambda _x, _sigma: noise - clean, noise, flow_sigmas(4, 7.0), on_step=seen.append)
    assert [(step.done, step.total) for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(torch.allclose(step.denoised, clean, atol=1e-5) for step in seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stops_the_run_at_its_step(bad):
    calls = []

    def velocity(latents, sigma):
        calls.append(sigma)
        return torch.full_like(latents, bad) if len(calls) == 3 else torch.zeros_like(latents)

    with pytest.raises(NonFiniteError, match=r"in step 3 of 8.*damaged or mismatched weight file"):
        denoise(velocity, torch.zeros(SHAPE), flow_sigmas(8, 7.0))
    assert len(calls) == 3


def test_an_exception_from_the_callback_stops_the_run():
    calls = []

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(lambda x, _s: calls.append(1) or x * 0, torch.zeros(SHAPE), flow_sigmas(8, 7.0), on_step=stop)
    assert len(calls) == 1


def test_the_kept_region_ends_clean_and_passes_through_its_noise_level():
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    mask = torch.zeros(1, 1, 3, 4, 4)
    mask[..., 2:] = 1
    kept = KeptRegion(mask, clean, noise)
    seen = []

    def velocity(latents, sigma):
        seen.append((latents.clone(), sigma))
        return torch.ones_like(latents)

    result = denoise(kept.guard(velocity), noise, flow_sigmas(4, 7.0))
    assert torch.allclose(result[..., :2], clean[..., :2], atol=1e-6)
    for latents, sigma in seen:
        assert torch.allclose(latents[..., :2], mix_noise(clean, noise, sigma)[..., :2], atol=1e-6)


def test_mixing_noise_is_exact_at_both_ends():
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    assert torch.equal(mix_noise(clean, noise, 0.0), clean)
    assert torch.equal(mix_noise(clean, noise, 1.0), noise)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (1, 1, 3, 4, 4), (1, 3, 8, 8), (32, 32), (1, 1, 1, 32, 32)])
def test_masks_of_any_size_fit(shape):
    mask = fit_mask(torch.ones(shape), (2, 16, 3, 4, 4))
    assert mask.shape == (2, 1, 3, 4, 4)
    assert torch.equal(mask, torch.ones_like(mask))


def test_a_mask_for_each_sample_is_kept_apart():
    masks = torch.stack((torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)))
    fitted = fit_mask(masks, (4, 16, 3, 4, 4))
    assert fitted.mean(dim=(1, 2, 3, 4)).tolist() == [0, 1, 0, 1]


def test_cfg_of_one_or_without_a_negative_prompt_costs_one_evaluation():
    assert choose_guidance(1.0, True) == EmbeddedGuidance()
    assert choose_guidance(5.0, False) == EmbeddedGuidance()
    assert choose_guidance(5.0, True) == ClassifierFreeGuidance(5.0)


def test_cfg_moves_away_from_the_negative_prompt():
    velocities = {"positive": torch.tensor(3.0), "negative": torch.tensor(1.0)}
    assert ClassifierFreeGuidance(2.0).combine(velocities) == 5
    assert ClassifierFreeGuidance(0.0).combine(velocities) == 1
