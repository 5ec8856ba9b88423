"""The memory node, and sampling and encoding with weights that are streamed to a strict device."""

from __future__ import annotations

import gc

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.nodes import host
from hyvideo_nodes.nodes.host import headless

from ..core.memory.fake_device import FakeDevice


@pytest.fixture
def card(monkeypatch) -> FakeDevice:
    """What every part's weights are streamed to, in place of none."""
    device = FakeDevice()
    monkeypatch.setattr(host, "stream_device_for", lambda role: device)
    return device


def sample(run_node, model, positive, latent, **inputs) -> torch.Tensor:
    given = {"model": model, "positive": positive, "latent": latent, "steps": 2, "seed": 3}
    return run_node("HYVSampler", **given, **inputs)[0]["samples"]


@pytest.mark.parametrize("mode", ["standard", "low"])
def test_no_budget_changes_the_video(models, positive, latent, run_node, monkeypatch, mode):
    whole = sample(run_node, run_node("HYVLoadModel", model="tiny.safetensors")[0], positive, latent)
    gc.collect()
    found = {}
    for budget in ("auto", " 4,5 GB ", "0.0018", "0"):
        device = FakeDevice()
        monkeypatch.setattr(host, "stream_device_for", lambda role, device=device: device)
        model = run_node("HYVLoadModel", model="tiny.safetensors")[0]
        streamed = run_node("HYVMemory", model=model, budget=budget, mode=mode)[0]
        with device:
            found[budget] = sample(run_node, streamed, positive, latent)
        assert device.faults == []
        assert device.live() == model.patcher.loaded_size()
        assert (device.live() == 0) == (budget == "0")
        assert (device.live() == model.patcher.residency.most_bytes) == (budget not in ("0", "0.0018"))
        del model, streamed
        gc.collect()
    # bit for bit those that are kept on the device; a file's own alignment may make CPUs round otherwise
    assert all(torch.equal(video, found["auto"]) for video in found.values())
    torch.testing.assert_close(found["auto"], whole, rtol=1e-5, atol=2e-6)


def test_a_streamed_prompt_is_the_same_and_leaves_nothing_behind(models, run_node, monkeypatch):
    encoders = run_node("HYVLoadTextEncoders", llm="tiny_llama.safetensors", clip="tiny_clip.safetensors")[0]
    with FakeDevice():
        expected = run_node("HYVTextEncode", text_encoders=encoders, prompt="a red circle")[0]
    del encoders
    gc.collect()
    device = FakeDevice()
    monkeypatch.setattr(host, "stream_device_for", lambda role: device)
    encoders = run_node("HYVLoadTextEncoders", llm="tiny_llama.safetensors", clip="tiny_clip.safetensors")[0]
    with device:
        found = run_node("HYVTextEncode", text_encoders=encoders, prompt="a red circle")[0]
    torch.testing.assert_close(found[0][0], expected[0][0], rtol=1e-5, atol=2e-6)
    assert device.faults == []
    assert device.live() == 0 < device.peak


def test_the_token_table_never_leaves_the_host(models, run_node, card):
    encoders = run_node("HYVLoadTextEncoders", llm="tiny_llama.safetensors", clip="tiny_clip.safetensors")[0]
    run_node("HYVTextEncode", text_encoders=encoders, prompt="a red circle")
    llm, residency = encoders.llm._streamed
    layers = sum(tensor.nbytes for tensor in llm.model.layers.parameters())
    assert layers <= card.num_copied < layers + llm.model.embed_tokens.weight.nbytes
    assert residency.limit == 0


def test_an_interrupt_leaves_nothing_behind_and_the_next_run_is_the_same(model, positive, latent, run_node, card):
    expected = sample(run_node, model, positive, latent)
    headless.interrupt()
    with pytest.raises(headless.Interrupted):
        sample(run_node, model, positive, latent)
    gc.collect()
    assert card.live() == model.patcher.loaded_size() == 0
    assert torch.equal(sample(run_node, model, positive, latent), expected)


def test_another_model_gets_the_room_and_the_next_run_is_the_same(model, positive, latent, run_node, card):
    expected = sample(run_node, model, positive, latent)
    assert card.live() > 0
    model.patcher.move(torch.device("meta"))  # any but its own
    assert card.live() == 0
    assert torch.equal(sample(run_node, model, positive, latent), expected)


def test_it_only_changes_the_recipe(model, run_node):
    changed = run_node("HYVMemory", model=model, budget="0", mode="low", prefetch=4)[0]
    assert changed.weights is model.weights
    assert model.patcher is None
    assert (changed.memory.budget, changed.memory.mode, changed.memory.prefetch) == (0.0, "low", 4)
    assert run_node("HYVMemory", model=model)[0].memory == model.memory


@pytest.mark.parametrize("budget", ["much", "-1", "nan", "inf", "1 2"])
def test_a_budget_that_is_none_is_refused(model, run_node, budget):
    with pytest.raises(OptionError, match="auto"):
        run_node("HYVMemory", model=model, budget=budget)
