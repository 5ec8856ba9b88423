"""Fused kernels compute what the plain functions compute, or are not used."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.kernels import CHOICES, OFF, choose_kernels
from hyvideo_nodes.hyvideo_core.kernels.self_check import SAMPLES, Site
from hyvideo_nodes.hyvideo_core.model.elementwise import PLAIN

SITE = Site(torch.device("cpu"), torch.float32, 96, 2, 32)
FUNCTIONS = tuple(SAMPLES)


def adaln(x, scale, shift, eps):
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def rms_rope_(q, k, table, q_scale, k_scale, epsilon):
    for x, scale in ((q, q_scale), (k, k_scale)):
        normed = F.rms_norm(x, x.shape[-1:], scale, epsilon).unflatten(-1, (-1, 1, 2))
        x.copy_((table * normed).sum(-1).flatten(-2))
    return q, k


def kitchen(monkeypatch, **functions) -> None:
    """comfy-kitchen with these functions and no others."""
    module = types.ModuleType("comfy_kitchen")
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, "comfy_kitchen", module)


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """Whatever is installed here is out of reach."""
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    monkeypatch.setitem(sys.modules, "triton", None)


def replaced(kernels) -> set[str]:
    return {field.name for field in fields(kernels) if getattr(kernels, field.name) is not getattr(PLAIN, field.name)}


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_off_is_the_plain_functions_themselves():
    assert choose_kernels(OFF, SITE) is PLAIN


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice != OFF])
def test_without_any_library_the_plain_functions_stay(caplog, choice):
    assert choose_kernels(choice, SITE) is PLAIN
    assert len(warnings(caplog)) == (choice != "auto")


def test_a_choice_that_nobody_knows_is_refused():
    with pytest.raises(OptionError, match="kernels 'apex', expected one of off, auto"):
        choose_kernels("apex", SITE)


def test_auto_tries_nothing_on_a_cpu(monkeypatch):
    kitchen(monkeypatch, adaln=adaln, rms_rope_=rms_rope_)
    assert choose_kernels("auto", SITE) is PLAIN


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_comfy_kitchens_kernels_stand_in_for_the_functions(monkeypatch, caplog, function, dtype):
    kitchen(monkeypatch, adaln=adaln, rms_rope_=rms_rope_)
    site = SITE._replace(dtype=dtype)
    kernels = choose_kernels("comfy-kitchen", site)
    assert replaced(kernels) == set(FUNCTIONS)
    assert warnings(caplog) == []
    given, expected = (SAMPLES[function](site) for _ in range(2))
    result, wanted = getattr(kernels, function)(*given), getattr(PLAIN, function)(*expected)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for a, b in zip((result, given[0]), (wanted, expected[0]), strict=True):
        for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else ((a, b),):
            assert torch.allclose(x.float(), y.float(), rtol=tolerance, atol=tolerance)


def spoilt(kernel):
    def call(*inputs):
        result = kernel(*inputs)
        for x in result if isinstance(result, tuple) else (result,):
            x[..., 3:5] *= 1.5
        return result

    return call


def raising(*inputs):
    raise RuntimeError("no kernel image is available\nfor this device")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"adaln": spoilt(adaln), "rms_rope_": spoilt(rms_rope_)}, "from PyTorch, allowed are"),
        ({"adaln": lambda x, *_: x / 0, "rms_rope_": lambda q, *_: q.fill_(float("nan"))}, "differs by "),
        ({"adaln": raising, "rms_rope_": raising}, "RuntimeError: no kernel image is available)"),
        ({}, "ImportError: cannot import name"),
    ],
    ids=["wrong numbers", "NaN", "raising", "too old"],
)
def test_a_kernel_that_fails_costs_one_line_and_the_plain_function_stays(monkeypatch, caplog, broken, reason):
    kitchen(monkeypatch, **broken)
    assert choose_kernels("comfy-kitchen", SITE) is PLAIN
    assert len(warnings(caplog)) == len(FUNCTIONS)
    for line, function in zip(warnings(caplog), FUNCTIONS, strict=True):
        assert line.startswith(f"comfy-kitchen's {function} does not work here (")
        assert reason in line
        assert "\n" not in line


def test_each_function_has_a_verdict_of_its_own(monkeypatch, caplog):
    kitchen(monkeypatch, adaln=adaln, rms_rope_=raising)
    assert replaced(choose_kernels("comfy-kitchen", SITE)) == {"modulated_norm", "gated_norm"}


def test_gradients_go_through_the_plain_functions(monkeypatch):
    kitchen(monkeypatch, adaln=adaln, rms_rope_=rms_rope_)
    kernels = choose_kernels("comfy-kitchen", SITE)
    with torch.no_grad():
        qkv, *rest = SAMPLES["normed_heads"](SITE)
    qkv.requires_grad_()
    before = qkv.detach().clone()
    kernels.normed_heads(qkv, *rest).square().sum().backward()
    assert torch.equal(qkv, before)
    assert qkv.grad is not None
    assert rest[0].weight.grad is not None


@pytest.mark.skipif(importlib.util.find_spec("comfy_kitchen") is None, reason="comfy-kitchen is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_comfy_kitchen_itself_passes_the_check(monkeypatch, caplog, dtype):
    monkeypatch.delitem(sys.modules, "comfy_kitchen")
    assert replaced(choose_kernels("comfy-kitchen", SITE._replace(dtype=dtype))) == set(FUNCTIONS)
    assert warnings(caplog) == []


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_our_triton_kernels_agree_with_the_plain_functions():
    here = Path(__file__).parent
    command = [sys.executable, str(here / "in_interpreter.py"), str(here.parents[2] / "alias")]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    if found is None:
        pytest.skip("the interpreter of this Triton does not work on a CPU")
    assert found["replaced"] == len(FUNCTIONS), run.stderr
    for case, error in found["errors"].items():
        # the interpreter cuts bfloat16 off where a GPU rounds
        assert error < (6e-3 if "bfloat16" in case else 5e-4 if "float16" in case else 1e-6), (case, error)
