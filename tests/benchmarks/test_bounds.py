"""What must hold at 720x1280x129 on a card of 8 GB, as far as meta tensors tell; grows a block, these fail."""

from __future__ import annotations

import pytest
from hyvideo_nodes.benchmarks import memory_peers, memory_stages, memory_subjects
from hyvideo_nodes.benchmarks.memory import SHORT_RUNS, WALKED
from hyvideo_nodes.benchmarks.sizes import GB, LARGEST, SMALLEST, WORKLOADS
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.model.chunks import DEFAULT, LOW
from hyvideo_nodes.hyvideo_core.vae import Tiling

KINDS = ["single_block", "double_block"]
PIXELS = 256 * 256 * 65


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("settings", "bound"), [(DEFAULT, 5.3), (LOW, 3.3)], ids=["default", "low"])
def test_a_block_keeps_little_beside_its_tokens(kind, settings, bound) -> None:
    assert settings.chunk_tokens <= 16_384
    reading = getattr(memory_subjects, kind)(LARGEST, settings)
    assert reading.peak <= bound * LARGEST.unit, reading.at_peak
    assert reading.flops == LARGEST.block_flops
    assert reading.attention_flops == LARGEST.block_attention_flops


@pytest.mark.parametrize("kind", KINDS)
def test_where_one_chunk_is_all_a_block_has_few_operations(kind) -> None:
    ours, theirs = getattr(memory_subjects, kind)(SMALLEST), getattr(memory_peers, kind)(SMALLEST)
    assert ours.num_ops <= 0.6 * theirs.num_ops, ours.ops
    assert ours.peak < theirs.peak


@pytest.mark.parametrize("work", WORKLOADS, ids=str)
@pytest.mark.parametrize(("kind", "published"), [("single_block", 18.4), ("double_block", 12.8)])
def test_diffusers_reads_about_as_others_read_it(kind, published, work) -> None:
    reading = getattr(memory_peers, kind)(work)
    assert 0.93 * published <= reading.peak / work.unit <= published
    assert reading.flops == pytest.approx(work.block_flops, rel=1e-3)


def test_a_whole_step_does_no_work_but_the_formula_s() -> None:
    assert memory_subjects.transformer_forward(SMALLEST).flops == pytest.approx(SMALLEST.step_flops, rel=1e-3)
    short = LARGEST.with_config(num_double_blocks=2, num_single_blocks=3)
    reading = memory_subjects.transformer_forward(short)
    assert reading.flops == pytest.approx(short.step_flops, rel=1e-3)
    assert reading.peak <= 5.3 * LARGEST.unit, reading.at_peak


def test_a_vae_tile_keeps_little_beside_its_widest_layer() -> None:
    ours, theirs = memory_subjects.vae_tile(), memory_peers.vae_tile()
    assert ours.peak <= 1100 * PIXELS, ours.at_peak
    assert theirs.peak == pytest.approx(2270 * PIXELS, rel=0.01)
    assert ours.flops <= theirs.flops


def test_the_text_stage_fits() -> None:
    assert memory_stages.text_stage().peak <= 1.5 * GB


@pytest.mark.parametrize(("settings", "bound"), [(DEFAULT, 5.2), (LOW, 4.5)], ids=["default", "low"])
def test_the_transformer_stage_fits(settings, bound) -> None:
    reading = memory_stages.transformer_stage(LARGEST, settings, walked=WALKED)
    assert reading.peak <= bound * GB, reading.at_peak


@pytest.mark.parametrize(
    ("tiling", "bound"), [(Tiling.official(VaeConfig()), 5.4), (SHORT_RUNS, 4.0)], ids=["reference", "short runs"]
)
def test_the_vae_stage_fits(tiling, bound) -> None:
    reading = memory_stages.vae_stage(LARGEST, tiling)
    assert reading.peak <= bound * GB, reading.at_peak


def test_all_blocks_of_a_stage_take_what_the_first_ones_take() -> None:
    short, long = (memory_stages.transformer_stage(SMALLEST, walked=walked) for walked in (WALKED, WALKED + 3))
    assert long.num_ops > short.num_ops
    assert long.peak == short.peak
