"""Sizes and work against the table that the measurements of others are compared with."""

from __future__ import annotations

import pytest
from hyvideo_nodes.benchmarks.sizes import LARGEST, SMALL_WORKLOADS, WORKLOADS


@pytest.mark.parametrize(
    ("work", "tokens", "unit", "attention", "linear"),
    [
        (WORKLOADS[0], 10_496, 0.064, 0.081, 0.143),
        (WORKLOADS[1], 30_466, 0.187, 0.684, 0.414),
        (WORKLOADS[2], 67_576, 0.415, 3.37, 0.92),
        (WORKLOADS[3], 119_056, 0.731, 10.45, 1.62),
    ],
    ids=str,
)
def test_published_sizes(work, tokens, unit, attention, linear) -> None:
    assert work.tokens == tokens
    assert work.unit / 1e9 == pytest.approx(unit, abs=6e-4)
    assert 60 * work.block_attention_flops / 1e15 == pytest.approx(attention, rel=6e-3)
    assert 60 * work.block_linear_flops / 1e15 == pytest.approx(linear, rel=6e-3)
    assert work.step_flops == 60 * work.block_flops


def test_the_largest_is_named_as_people_name_it() -> None:
    assert str(LARGEST) == "720x1280x129"
    assert LARGEST.latent_size == (33, 90, 160) and LARGEST.grid == (33, 45, 80)


def test_small_sizes_keep_the_real_heads() -> None:
    assert [work.image_tokens for work in SMALL_WORKLOADS] == [512, 1024, 2048]
    assert {work.config.head_size for work in SMALL_WORKLOADS} == {LARGEST.config.head_size}
