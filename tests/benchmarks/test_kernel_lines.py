"""The benchmark of kernels times what works, and its lines say what was read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hyvideo_nodes.benchmarks import kernels
from hyvideo_nodes.benchmarks.sizes import SMALL_WORKLOADS
from hyvideo_nodes.hyvideo_core.attention import sdpa
from hyvideo_nodes.hyvideo_core.model.elementwise import PLAIN

WORK = SMALL_WORKLOADS[0]
LIKE = torch.empty(0)


@torch.inference_mode()
def test_attention_has_a_ratio_a_rate_and_an_error() -> None:
    (line,) = kernels.attention_lines(WORK, {"mine": sdpa}, LIKE, rounds=1)
    name, tokens, mine, own, ratio, rate, error = line.split()
    assert (name, int(tokens)) == ("mine", WORK.tokens)
    assert float(ratio) == pytest.approx(float(mine) / float(own), rel=0.05)
    assert float(rate) == pytest.approx(WORK.block_attention_flops / float(mine) / 1e6, rel=0.05)
    assert float(error) < 1e-5


@torch.inference_mode()
def test_only_what_is_fused_is_timed() -> None:
    fused = replace(PLAIN, gated_norm=lambda *inputs: PLAIN.gated_norm(*inputs))
    (line,) = kernels.elementwise_lines(WORK, {"triton": fused, "none": PLAIN}, LIKE, rounds=1)
    assert line.split()[:3] == ["triton", "gated_norm", str(WORK.tokens)]


def test_a_kernel_that_is_wrong_is_left_out(monkeypatch) -> None:
    def load():
        return lambda q, k, v: sdpa(q, k, v) * 2

    monkeypatch.setattr(
        kernels, "KERNELS", {"wrong": kernels.Kernel("wrong", load), "right": kernels.Kernel("right", lambda: sdpa)}
    )
    assert list(kernels.working_attention(LIKE, head_size=32)) == ["right"]
