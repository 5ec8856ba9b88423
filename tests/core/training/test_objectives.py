import copy

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.model.transformer import Transformer
from hyvideo_nodes.hyvideo_core.training.objectives import (
    NoiseLevels,
    TextCondition,
    distillation_loss,
    flow_matching_loss,
    guided_velocity,
    latent_likelihood,
    noised,
    psnr,
    reconstruction_loss,
    velocity,
)

SHAPE = (3, 4, 2, 4, 4)


@pytest.fixture
def model() -> Transformer:
    model = Transformer(tiny())
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture
def text() -> TextCondition:
    return TextCondition(torch.randn(3, 5, 32), torch.randn(3, 24))


@pytest.fixture
def empty() -> TextCondition:
    return TextCondition(torch.randn(1, 1, 32), torch.randn(1, 24))


def test_the_path_starts_at_the_latents_and_ends_at_the_noise():
    latents, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    point, velocity_ = noised(latents, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(point[0], latents[0])
    assert torch.allclose(point[1], noise[1], atol=1e-6)
    assert torch.allclose(point[2], 0.75 * latents[2] + 0.25 * noise[2], atol=1e-6)
    assert torch.equal(velocity_, noise - latents)


def test_following_the_target_velocity_back_gives_the_latents():
    latents, noise, level = torch.randn(SHAPE), torch.randn(SHAPE), torch.rand(3)
    point, target = noised(latents, noise, level)
    assert torch.allclose(point - level.view(-1, 1, 1, 1, 1) * target, latents, atol=1e-5)


def test_a_silent_model_loses_the_size_of_the_target(model, text):
    torch.nn.init.zeros_(model.final_layer.linear.weight)
    torch.nn.init.zeros_(model.final_layer.linear.bias)
    latents, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    loss = flow_matching_loss(model, latents, noise, torch.rand(3), text)
    assert float(loss.detach()) == pytest.approx(float((noise - latents).square().mean()), rel=1e-5)


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional(model, text, empty):
    point, levels = torch.randn(SHAPE), torch.rand(3)
    ones = torch.ones(3)
    conditional = velocity(model, point, levels, text, ones)
    unconditional = velocity(model, point, levels, empty.expand(3), ones)
    assert torch.allclose(guided_velocity(model, point, levels, text, empty, ones), conditional, atol=1e-5)
    assert torch.allclose(guided_velocity(model, point, levels, text, empty, 0 * ones), unconditional, atol=1e-5)


def test_a_student_that_equals_its_teacher_is_right_at_scale_one_only(model, text, empty):
    student = copy.deepcopy(model)
    point, levels = torch.randn(SHAPE), torch.rand(3)

    def loss(scale: float) -> float:
        scales = torch.full((3,), scale)
        target = guided_velocity(model, point, levels, text, empty, scales)
        # the student is asked at scale 1, where the teacher stands
        error = velocity(student, point, levels, text, torch.ones(3)) - target
        return float(error.detach().square().mean())

    assert loss(1.0) < 1e-9
    assert loss(6.0) > 1e-4


def test_distillation_counts_strong_guidance_less(model, text):
    point, levels = torch.randn(SHAPE), torch.rand(3)
    one, four = torch.ones(3), torch.full((3,), 4.0)
    weak = distillation_loss(model, point, levels, text, one, velocity(model, point, levels, text, one) + 1)
    strong = distillation_loss(model, point, levels, text, four, velocity(model, point, levels, text, four) + 1)
    assert float((weak / strong).detach()) == pytest.approx(16, rel=1e-3)


def test_the_guidance_input_reaches_the_student(model, text):
    point, levels = torch.randn(SHAPE), torch.rand(3)
    weak, strong = (velocity(model, point, levels, text, torch.full((3,), scale)) for scale in (1.0, 6.0))
    assert not torch.allclose(weak, strong, atol=1e-4)


def test_noise_levels_lie_inside_and_lean_towards_noise():
    levels = NoiseLevels(uniform_share=0.5, mean=0.8).sample(4000, torch.Generator().manual_seed(0))
    assert 0.0 <= float(levels.min()) < 0.02
    assert 0.98 < float(levels.max()) <= 1.0
    assert 0.52 < float(levels.mean()) < 0.65


def test_weighted_pixels_count_more():
    target, video = torch.zeros(1, 3, 1, 2, 2), torch.zeros(1, 3, 1, 2, 2)
    video[..., 0, 0] = 1.0
    weight = torch.ones(1, 1, 1, 2, 2)
    plain = reconstruction_loss(video, target, weight)
    weight[..., 0, 0] = 5.0
    assert float(plain) == pytest.approx(3 / 4)
    assert float(reconstruction_loss(video, target, weight)) == pytest.approx(3 * 5 / 8)


def test_log_variance_learns_the_error_without_moving_the_mean():
    target = torch.zeros(1, 1, 1, 1, 1)
    moments = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1, 1).requires_grad_()
    latent_likelihood(moments, target).backward()
    mean_gradient, spread_gradient = moments.grad.flatten().tolist()
    assert mean_gradient == pytest.approx(1.0)  # that of the squared error alone
    assert spread_gradient > 0  # variance 1 is too large for an error of 0.25


def test_psnr_of_a_known_error():
    target = torch.zeros(2, 3, 1, 4, 4)
    assert psnr(target + 0.2, target) == pytest.approx(20.0, abs=1e-4)
