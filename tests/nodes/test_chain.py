"""The nodes in a row, as a graph runs them."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import ConditioningError, NonFiniteError, ShapeError
from hyvideo_nodes.hyvideo_core.loading import open_checkpoint
from hyvideo_nodes.hyvideo_core.text_encoders.conditioning import Conditioning
from hyvideo_nodes.nodes import host, recipes, sockets
from hyvideo_nodes.nodes.host import headless
from hyvideo_nodes.nodes.preview import find_preview
from safetensors.torch import load_file, save_file


@pytest.fixture
def sample(model, positive, latent, run_node):
    def sample(**changes):
        return run_node("HYVSampler", **{"model": model, "positive": positive, "latent": latent, "steps": 3, **changes})

    return sample


def test_text_to_video_gives_frames_in_range(sample, vae, run_node):
    with torch.inference_mode():
        latents, report = sample()
        (images,) = run_node("HYVVAEDecode", samples=latents, vae=vae)
    assert latents["samples"].shape == (1, 16, 3, 6, 4)
    assert images.shape == (9, 48, 32, 3)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert float(images.std()) > 0
    assert report == "every step was computed"


def test_the_seed_decides_the_video(sample):
    first, again, other = (sample(seed=seed)[0]["samples"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_batch_equals_its_singles_bit_for_bit(sample, run_node):
    (pair,) = run_node("HYVEmptyLatent", width=32, height=48, length=9, batch_size=2)
    batch = sample(latent=pair, seed=5)[0]["samples"]
    for index in range(2):
        single = sample(seed=5 + index)[0]["samples"]
        assert torch.equal(batch[index : index + 1], single)


def test_batch_index_chooses_the_noise(sample, latent):
    assert torch.equal(sample(latent=latent | {"batch_index": [3]}, seed=5)[0]["samples"], sample(seed=8)[0]["samples"])


def test_seeds_wrap_at_64_bits(sample, latent):
    top = 2**64 - 1
    wrapped = sample(latent=latent | {"batch_index": [1]}, seed=top)[0]["samples"]
    assert torch.equal(wrapped, sample(seed=0)[0]["samples"])


def test_a_threshold_of_zero_is_bit_identical_to_no_cache(sample, run_node):
    (cache,) = run_node("HYVTeaCache", rel_l1_thresh=0.0)
    plain = sample(steps=6)[0]["samples"]
    cached, report = sample(steps=6, step_cache=cache)
    assert torch.equal(plain, cached["samples"])
    assert "0 of 6 steps reused" in report


def test_the_report_names_the_reused_steps(sample, run_node):
    (cache,) = run_node("HYVTeaCache", rel_l1_thresh=10.0)
    assert "4 of 6 steps reused: 2, 3, 4, 5" in sample(steps=6, step_cache=cache)[1]
    (late,) = run_node("HYVTeaCache", rel_l1_thresh=10.0, start_percent=0.5)
    assert "2 of 6 steps reused: 4, 5" in sample(steps=6, step_cache=late)[1]


def test_runs_share_no_state_through_a_cache(sample, run_node):
    (cache,) = run_node("HYVTeaCache", rel_l1_thresh=0.3)
    first = sample(steps=6, step_cache=cache)[0]["samples"]
    sample(steps=4, seed=9, step_cache=cache)
    assert torch.equal(first, sample(steps=6, step_cache=cache)[0]["samples"])


def test_each_branch_has_its_own_cache(sample, positive, text_encoders, run_node):
    (negative,) = run_node("HYVTextEncode", text_encoders=text_encoders, prompt="")
    (cache,) = run_node("HYVTeaCache", rel_l1_thresh=0.0)
    plain = sample(cfg=3.0, negative=negative)[0]["samples"]
    cached, report = sample(cfg=3.0, negative=negative, step_cache=cache)
    assert torch.equal(plain, cached["samples"])
    assert "positive" in report
    assert "negative" in report


def test_cfg_one_ignores_the_negative_prompt(sample, text_encoders, run_node):
    (negative,) = run_node("HYVTextEncode", text_encoders=text_encoders, prompt="blue")
    assert torch.equal(sample(negative=negative)[0]["samples"], sample()[0]["samples"])
    assert not torch.equal(sample(negative=negative, cfg=2.0)[0]["samples"], sample()[0]["samples"])


def test_guidance_in_the_conditioning_wins_and_is_logged(sample, positive, caplog):
    caplog.set_level("INFO")
    states, extra = positive[0]
    carried = sample(positive=[[states, extra | {"guidance": 2.0}]], embedded_guidance_scale=6.0)[0]["samples"]
    assert torch.equal(carried, sample(embedded_guidance_scale=2.0)[0]["samples"])
    assert "guidance 2.0 from the conditioning is used, not 6.0" in caplog.text


def test_padding_under_a_mask_changes_nothing(sample, positive):
    states, extra = positive[0]
    padded = torch.cat((states, torch.randn(1, 7, states.shape[2])), dim=1)
    mask = torch.cat((torch.ones(1, states.shape[1]), torch.zeros(1, 7)), dim=1).long()
    masked = sample(positive=[[padded, extra | {"attention_mask": mask}]])[0]["samples"]
    assert torch.equal(masked, sample()[0]["samples"])


def test_one_mask_serves_every_text_of_a_batch(sample, positive, run_node):
    states, extra = positive[0]
    (pair,) = run_node("HYVEmptyLatent", width=32, height=48, length=9, batch_size=2)
    padded = torch.cat((states, torch.randn(1, 2, states.shape[2])), dim=1).expand(2, -1, -1)
    mask = torch.tensor([[1] * states.shape[1] + [0] * 2])
    masked = sample(positive=[[padded, extra | {"attention_mask": mask}]], latent=pair)[0]["samples"]
    assert torch.equal(masked, sample(latent=pair)[0]["samples"])


def test_a_masked_out_region_keeps_its_latents(sample, latent):
    clean = torch.randn_like(latent["samples"])
    mask = torch.ones(1, 1, 3, 6, 4)
    mask[..., :2] = 0
    result = sample(latent={"samples": clean, "noise_mask": mask, "note": "kept"})[0]
    assert (result["samples"][..., :2] - clean[..., :2]).abs().max() < 1e-5
    assert (result["samples"][..., 2:] - clean[..., 2:]).abs().max() > 0.1
    assert result["note"] == "kept"


def test_a_little_denoise_stays_near_the_start(sample, latent):
    clean = torch.randn_like(latent["samples"])
    near = sample(latent={"samples": clean}, denoise=0.1, steps=2)[0]["samples"]
    far = sample(latent={"samples": clean}, denoise=1.0)[0]["samples"]
    assert (near - clean).norm() < (far - clean).norm()
    assert torch.equal(far, sample()[0]["samples"])


def test_sigmas_replace_the_schedule(sample):
    from hyvideo_nodes.hyvideo_core.sampling.sigmas import flow_sigmas

    given = sample(sigmas=flow_sigmas(3, 7.0), steps=50)[0]["samples"]
    assert torch.equal(given, sample(steps=3, flow_shift=7.0)[0]["samples"])


def test_the_hosts_marks_of_empty_latents_are_dropped(sample, latent):
    marked = latent | {"downscale_ratio_spacial": 8, "downscale_ratio_temporal": 4}
    assert set(sample(latent=marked)[0]) == {"samples"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, ShapeError, r"expected \[batch, 16, frames"),
        ({"latent": {"samples": torch.zeros(1, 32, 3, 8, 8)}}, ShapeError, r"expected \[batch, 16, frames"),
        ({"latent": {"samples": torch.zeros(1, 16, 3, 7, 8)}}, ShapeError, "expected multiples of 16"),
        ({"positive": [[torch.zeros(1, 3, 7), {}]]}, ConditioningError, "7 wide, this model takes 32"),
        ({"positive": [[torch.zeros(1, 3, 32), {}]]}, ConditioningError, "has no pooled vector"),
        ({"positive": []}, ConditioningError, "has 0 entries, expected one"),
        (
            {"positive": [[torch.zeros(1, 3, 32), {"area": (1, 1, 0, 0)}]]},
            ConditioningError,
            "asks for area, which this sampler does not do",
        ),
        (
            {"latent": {"samples": torch.full((1, 16, 3, 6, 4), float("nan"))}, "denoise": 0.5},
            NonFiniteError,
            "hold NaN or infinity",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_load(change, error, words, sample, model):
    with pytest.raises(error, match=words):
        sample(**change)
    assert model.patcher is None


def test_nan_from_the_model_stops_the_run_and_names_the_step(sample, model):
    transformer, _ = model.weights.place(0)
    transformer.final_layer.linear.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"in step 1 of 3.*choose precision bf16"):
        sample()


def test_nan_latents_are_not_decoded(vae, run_node):
    with pytest.raises(NonFiniteError, match="expected finite numbers"):
        run_node("HYVVAEDecode", samples={"samples": torch.full((1, 16, 1, 2, 2), float("nan"))}, vae=vae)


def test_an_interrupt_stops_within_a_step_and_leaves_no_tensor(sample, monkeypatch):
    from hyvideo_nodes.hyvideo_core import pipeline

    made: list[weakref.ref] = []
    original = pipeline.make_noise

    def remember(*arguments):
        noise = original(*arguments)
        made.append(weakref.ref(noise))
        return noise

    monkeypatch.setattr(pipeline, "make_noise", remember)
    headless.interrupt()
    with pytest.raises(headless.Interrupted):
        sample()
    gc.collect()
    assert [ref() for ref in made] == [None]
    assert sample()[0]["samples"].isfinite().all()


def test_loading_twice_shares_one_module(models, run_node):
    first, second = (run_node("HYVLoadModel", model="tiny.safetensors")[0] for _ in range(2))
    assert first.weights is second.weights
    assert first.weights.place(0)[0] is second.weights.place(0)[0]
    assert run_node("HYVLoadModel", model="tiny.safetensors", precision="bf16")[0].weights is not first.weights


def test_weights_go_with_their_last_recipe(models, run_node):
    recipe = run_node("HYVLoadModel", model="tiny.safetensors", precision="bf16")[0]
    module = weakref.ref(recipe.weights.place(0)[0])
    del recipe
    gc.collect()
    assert module() is None
    assert not [key for key in recipes._shared if "bf16" in key]


def test_training_works_after_sampling_in_the_same_process(sample, model, positive):
    with torch.inference_mode():
        sample()
    transformer, _ = model.weights.place(0)
    transformer.requires_grad_(True)
    states, extra = positive[0]
    velocity = transformer(
        torch.randn(1, 16, 1, 4, 4), torch.tensor([500.0]), [states], extra["pooled_output"], torch.tensor([6000.0])
    )
    velocity.square().mean().backward()
    assert transformer.img_in.proj.weight.grad.abs().sum() > 0


def test_a_template_of_the_other_kind_is_warned_about(sample, run_node, caplog):
    (still,) = run_node("HYVEmptyLatent", width=32, height=32, length=1)
    sample(latent=still)
    assert "encoded with the video template but the latent is one frame" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_plain_fp8_file_stays_fp8_and_samples_nearly_the_same(
    dtype, model_files, tmp_path, positive, latent, run_node
):
    whole = model_files / "diffusion_models" / "tiny.safetensors"
    checkpoint = open_checkpoint(whole)
    weights = {
        name: tensor.to(dtype) if "_blocks." in name and tensor.ndim == 2 else tensor.bfloat16()
        for name, tensor in load_file(whole).items()
    }
    (tmp_path / "diffusion_models").mkdir()
    small = tmp_path / "diffusion_models" / "small.safetensors"
    save_file(weights, small, metadata={"config": json.dumps(dict(checkpoint.config))})
    headless.use_folders(headless.Folders(models=(tmp_path, model_files)))
    results = {}
    for name in ("tiny.safetensors", "small.safetensors"):
        (loaded,) = run_node("HYVLoadModel", model=name)
        results[name] = run_node("HYVSampler", model=loaded, positive=positive, latent=latent, steps=3)[0]["samples"]
        kept = {
            weight.dtype for key, weight in loaded.weights.patcher.model.named_parameters() if "linear1.weight" in key
        }
        assert kept == ({dtype} if name == "small.safetensors" else {torch.float32})
    exact, rounded = results["tiny.safetensors"], results["small.safetensors"]
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() / exact.norm() < 0.2


def test_cached_conditioning_can_be_trained_on_whatever_device_it_came_from(monkeypatch):
    """A copy to another device, here from float tensors to meta, is no inference tensor."""
    monkeypatch.setattr(sockets, "device_for", lambda _role: torch.device("meta"))
    with torch.inference_mode(False):
        conditioning = Conditioning(states=torch.zeros(1, 2, 3), pooled=torch.zeros(1, 4))
    with torch.inference_mode():
        (states, extra), *_ = sockets.write_conditioning(conditioning, "video")
    assert states.device.type == "meta"
    assert not states.is_inference() and not extra["pooled_output"].is_inference()


@pytest.mark.parametrize(("num_channels", "has_preview"), [(16, True), (4, False)])
def test_the_hosts_preview_is_used_for_latents_of_its_channels_alone(num_channels, has_preview, model, monkeypatch):
    monkeypatch.setattr(host, "preview_wanted", lambda: True)
    monkeypatch.setattr(host, "preview_factors", lambda: ([[0.0] * 3] * 16, [0.0] * 3))
    assert (find_preview(model.detected.view.checkpoint, num_channels) is not None) == has_preview


def test_a_folder_changes_with_any_of_its_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = recipes.fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert recipes.fingerprint(tmp_path) != before
