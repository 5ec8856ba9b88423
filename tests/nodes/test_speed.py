"""The node for speed: in a graph it changes how a model computes, for its own branch alone and up to rounding."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch
from hyvideo_nodes.hyvideo_core.attention import sdpa
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.kernels import SpeedOptions, speed

OFF = {"attention": "sdpa", "fused_kernels": "off", "torch_compile": False}


@pytest.fixture(autouse=True)
def afresh():
    """No verdict of another test."""
    for cached in (speed._attention, speed._kernels, speed._compiled):
        cached.cache_clear()
    yield
    for cached in (speed._attention, speed._kernels, speed._compiled):
        cached.cache_clear()


@pytest.fixture
def sample(positive, latent, run_node):
    def sample(recipe):
        return run_node("HYVSampler", model=recipe, positive=positive, latent=latent, steps=2)[0]["samples"]

    return sample


@pytest.fixture
def library(monkeypatch):
    """SageAttention, as far as this process can tell; gives the lengths that it was called with."""
    calls: list[int] = []

    def sageattn(q, k, v, tensor_layout, is_causal):
        assert (tensor_layout, is_causal) == ("NHD", False)
        calls.append(q.shape[1])
        return sdpa(q, k, v) * 1.01

    module = types.ModuleType("sageattention")
    module.sageattn = sageattn
    monkeypatch.setitem(sys.modules, "sageattention", module)
    return calls


def test_everything_off_is_the_model_without_the_node(model, sample, run_node):
    off = run_node("HYVSpeed", model=model, **OFF)[0]
    assert off == model
    assert torch.equal(sample(off), sample(model))


def test_on_a_cpu_the_defaults_change_no_bit(model, sample, run_node):
    fast = run_node("HYVSpeed", model=model)[0]
    assert fast.speed == SpeedOptions(attention="auto", kernels="auto")
    assert torch.equal(sample(fast), sample(model))


def test_the_chosen_attention_computes_this_model_and_no_other(model, sample, run_node, library):
    plain = sample(model)
    assert library == []
    lossy = sample(run_node("HYVSpeed", model=model, **{**OFF, "attention": "sage"})[0])
    assert len(library) > 2
    assert not torch.equal(lossy, plain)
    number = len(library)
    assert torch.equal(sample(model), plain)
    assert len(library) == number


def test_what_is_missing_is_told_in_one_line_and_changes_no_bit(model, sample, run_node, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sageattention", None)
    recipe = run_node("HYVSpeed", model=model, **{**OFF, "attention": "sage"})[0]
    assert torch.equal(sample(recipe), sample(model))
    assert torch.equal(sample(recipe), sample(model))
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len([line for line in lines if "attention sage is not installed" in line]) == 1


def test_without_a_compiler_the_run_goes_on(model, sample, run_node, monkeypatch, caplog):
    def missing(*args, **kwargs):
        raise RuntimeError("Compiler: cl is not found.")

    monkeypatch.setattr(torch, "compile", missing)
    recipe = run_node("HYVSpeed", model=model, **{**OFF, "torch_compile": True})[0]
    assert torch.equal(sample(recipe), sample(model))
    assert caplog.text.count("torch.compile does not work here (RuntimeError: Compiler: cl is not found.)") == 1


def test_compiled_blocks_are_what_the_sampler_runs(model, sample, run_node, monkeypatch):
    def compiled(function, **_):
        def call(*inputs):
            kinds.append(function.__qualname__)
            return function(*inputs)

        return call

    kinds: list[str] = []
    monkeypatch.setattr(torch, "compile", compiled)
    recipe = run_node("HYVSpeed", model=model, **{**OFF, "torch_compile": True})[0]
    assert torch.equal(sample(recipe), sample(model))
    steps, config = 2, model.detected.config
    assert kinds.count("DoubleStreamBlock.forward") == steps * config.num_double_blocks
    assert kinds.count("SingleStreamBlock.forward") == steps * config.num_single_blocks


def test_a_choice_that_there_is_not_is_refused_before_anything_loads(model, run_node):
    with pytest.raises(OptionError, match="attention 'xformers', expected one of sdpa, auto"):
        run_node("HYVSpeed", model=model, attention="xformers")
    assert model.patcher is None
