"""Schedules, solver, whole runs and TeaCache against the official implementation's numbers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from hyvideo_nodes.hyvideo_core.loading import build_transformer, detect_transformer, open_checkpoint
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.transformer import BlockInputs
from hyvideo_nodes.hyvideo_core.pipeline import LATENT_SCALE, SamplingOptions, StartLatents, sample_latents
from hyvideo_nodes.hyvideo_core.sampling.denoise import denoise
from hyvideo_nodes.hyvideo_core.sampling.guidance import choose_guidance
from hyvideo_nodes.hyvideo_core.sampling.sigmas import TIMESTEP_SCALE, flow_sigmas
from hyvideo_nodes.hyvideo_core.sampling.solvers import euler_step
from hyvideo_nodes.hyvideo_core.step_cache import TeaCache
from hyvideo_nodes.hyvideo_core.step_cache import teacache as teacache_module
from safetensors import safe_open
from safetensors.torch import load_file


def golden_meta(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("meta", "{}"))


@pytest.fixture(scope="module")
def model(golden_dir) -> Transformer:
    detected = detect_transformer(open_checkpoint(golden_dir / "dit_weights.safetensors"))
    return build_transformer(detected, dtype=torch.float32)


def test_schedules_match_the_reference(golden_dir):
    case = load_file(golden_dir / "scheduler.safetensors")
    names = [match for key in case if (match := re.fullmatch(r"steps(\d+)\.shift([\d.]+)\.sigmas", key))]
    assert names
    for match in names:
        sigmas = flow_sigmas(int(match[1]), float(match[2]))
        assert (sigmas - case[match[0]]).abs().max() <= 2e-7
        timesteps = case[match[0].replace("sigmas", "timesteps")]
        assert (sigmas[:-1] * TIMESTEP_SCALE - timesteps).abs().max() <= 1e-3


def test_euler_trajectory_matches_the_reference(golden_dir):
    path = golden_dir / "euler_trajectory.safetensors"
    case, meta = load_file(path), golden_meta(path)
    sigmas = flow_sigmas(meta["steps"], meta["shift"])

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        t = sigma * TIMESTEP_SCALE
        return meta["a"] * x - meta["b"] * math.cos(2 * math.pi * t / 1000) + meta["c"] * t / 1000

    x = case["in.x0"]
    for index, golden in enumerate(case["traj"]):
        x = denoise(velocity, x, sigmas[index : index + 2])
        assert (x - golden).abs().max() <= 1e-5


def test_euler_steps_in_float32_whatever_comes_in(golden_dir):
    case = load_file(golden_dir / "euler_trajectory.safetensors")
    sigmas = case["sigmas"].tolist()
    x = euler_step(case["mixed.x0_fp16"], case["mixed.v_bf16"], sigmas[0], sigmas[1])
    assert x.dtype == torch.float32
    assert (x - case["mixed.x1_fp32"]).abs().max() <= 1e-5


def branch(model: Transformer, case: dict, prefix: str, guidance: torch.Tensor | None):
    valid = case[f"in.{prefix}text_mask"][0].bool()
    states, pooled = case[f"in.{prefix}text_states"][:, valid], case[f"in.{prefix}text_states_2"]

    def velocity(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return model(latents, torch.tensor([sigma * TIMESTEP_SCALE]), [states], pooled, guidance)

    return velocity


@torch.no_grad()
def test_runs_match_the_official_pipeline(model, golden_dir):
    paths = sorted(golden_dir.glob("e2e_t2v*.safetensors"))
    assert paths
    for path in paths:
        case, meta = load_file(path), golden_meta(path)
        sigmas = flow_sigmas(meta["steps"], meta["shift"])
        branches = {"positive": branch(model, case, "", case.get("in.guidance"))}
        if "in.neg_text_states" in case:
            branches["negative"] = branch(model, case, "neg_", case.get("in.guidance"))
        guidance = choose_guidance(meta["cfg"], "negative" in branches)

        def velocity(latents, sigma, branches=branches, guidance=guidance):
            return guidance.combine({name: branches[name](latents, sigma) for name in guidance.branches})

        tolerance = 5e-5 if meta["cfg"] == 1 else 1e-4
        x = case["in.noise"]
        for index, golden in enumerate(case["traj.latents"]):
            x = denoise(velocity, x, sigmas[index : index + 2])
            assert (x - golden).abs().max() <= tolerance, path.name
        assert (x - case["out.latents"]).abs().max() <= tolerance, path.name


@torch.no_grad()
def test_the_whole_sampler_equals_the_official_pipeline(model, golden_dir, monkeypatch):
    """The pipeline's own path: conditioning, guidance widget, noise and scaling included."""
    from hyvideo_nodes.hyvideo_core import pipeline
    from hyvideo_nodes.hyvideo_core.text_encoders.conditioning import Conditioning

    path = golden_dir / "e2e_t2v.safetensors"
    case, meta = load_file(path), golden_meta(path)
    monkeypatch.setattr(pipeline, "make_noise", lambda *_: case["in.noise"])
    valid = case["in.text_mask"][0].bool()
    prompt = Conditioning(states=case["in.text_states"][:, valid], pooled=case["in.text_states_2"])
    options = SamplingOptions(
        steps=meta["steps"], flow_shift=meta["shift"], guidance_scale=float(case["in.guidance"]) / 1000
    )
    start = StartLatents(samples=torch.zeros_like(case["in.noise"]))
    latents, report = sample_latents(model, start, [prompt], [], options, device=torch.device("cpu"))
    assert (latents * LATENT_SCALE - case["out.latents"]).abs().max() <= 5e-5
    assert report.caches == {}


def thresholds(case: dict) -> list[str]:
    found = {match[1] for key in case if (match := re.match(r"thresh([\d.]+)\.compute", key))}
    assert found
    return sorted(found)


def test_teacache_decides_as_the_reference_does(golden_dir, monkeypatch):
    path = golden_dir / "teacache_synthetic.safetensors"
    case, meta = load_file(path), golden_meta(path)
    for threshold in thresholds(case):
        check_decisions(threshold, case, meta, monkeypatch)


def check_decisions(threshold, case, meta, monkeypatch):
    monkeypatch.setattr(teacache_module, "first_modulated_input", lambda _model, inputs: inputs.rope)
    num_steps = meta["num_steps"]
    for start in range(0, len(case["seq"]), num_steps):
        state = TeaCache(rel_l1_thresh=float(threshold)).start(num_steps)
        computed: list[int] = []

        def blocks(_model, inputs, computed=computed):
            computed.append(1)
            return inputs.img * 1.5 + 0.25

        run = state.wrap(blocks)
        for index in range(start, start + num_steps):
            signal = case["seq"][index]
            before = len(computed)
            out = run(None, BlockInputs(signal.clone(), None, signal, None, None))
            assert (len(computed) > before) == bool(case[f"thresh{threshold}.compute"][index]), index
            assert state.accumulated == pytest.approx(
                float(case[f"thresh{threshold}.accumulated_after"][index]), abs=1e-5
            )
            assert (out - case[f"thresh{threshold}.out"][index]).abs().max() <= 1e-5
        assert len(state.report.skipped) == num_steps - len(computed)


@torch.no_grad()
def test_runs_with_and_without_teacache_match_the_reference(model, golden_dir):
    path = golden_dir / "teacache_integrated.safetensors"
    case, meta = load_file(path), golden_meta(path)
    for threshold in (None, *thresholds(case)):
        check_run(threshold, model, case, meta)


def check_run(threshold, model, case, meta):
    valid = case["in.text_mask"][0].bool()
    from hyvideo_nodes.hyvideo_core.model.transformer import run_blocks

    run, state = run_blocks, None
    if threshold is not None:
        state = TeaCache(rel_l1_thresh=float(threshold)).start(meta["steps"])
        run = state.wrap(run_blocks)

    def velocity(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        timesteps = torch.tensor([sigma * TIMESTEP_SCALE])
        states = [case["in.text_states"][:, valid]]
        return model(latents, timesteps, states, case["in.text_states_2"], case["in.guidance"], run=run)

    x = denoise(velocity, case["in.x"], flow_sigmas(meta["steps"], meta["shift"]))
    if state is None:
        assert (x - case["nocache.out_latents"]).abs().max() <= 1e-3
        return
    golden = case[f"thresh{threshold}.compute"].bool().tolist()
    assert state.report.skipped == [step for step, computed in enumerate(golden, 1) if not computed]
    assert (x - case[f"thresh{threshold}.out_latents"]).abs().max() <= 1e-3


def test_an_image_to_video_model_is_refused(model):
    from hyvideo_nodes.hyvideo_core.errors import ConditioningError
    from hyvideo_nodes.hyvideo_core.pipeline import check_request

    config = replace(model.config, in_channels=9)
    with pytest.raises(ConditioningError, match="makes video from an image"):
        check_request(config, StartLatents(samples=torch.zeros(1, 4, 1, 2, 2)), [], [], SamplingOptions())
