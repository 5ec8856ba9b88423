"""What the benchmarks compare is the same computation, and their lines say what was read."""

from __future__ import annotations

import copy

import pytest
import torch
from hyvideo_nodes.benchmarks import memory, streamed_forward, transformer_block, transformer_forward, vae_decode
from hyvideo_nodes.benchmarks.duel import TITLE, bouts, lines
from hyvideo_nodes.benchmarks.sizes import SMALL_WORKLOADS
from hyvideo_nodes.hyvideo_core.config import VaeConfig


@pytest.fixture(scope="module")
def bout():
    threads = torch.get_num_threads()
    yield next(bouts(full=False, num_double_blocks=1, num_single_blocks=1))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("kind", "prepare"),
    [
        ("forward", transformer_forward.our_forward),
        ("double", transformer_block.our_double),
        ("single", transformer_block.our_single),
    ],
)
def test_ours_and_theirs_compute_the_same(bout, kind, prepare) -> None:
    with torch.inference_mode():
        found = list(lines(kind, bout, prepare(bout), rounds=1))
    assert [line.split()[:3] for line in found] == [[kind, "/", rival.name] for rival in bout.rivals]
    for line in found:
        tokens, mine, theirs, ratio, rate, difference = map(float, line.split()[3:])
        assert tokens == bout.work.tokens
        assert ratio == pytest.approx(mine / theirs, rel=0.05)
        flops = bout.work.step_flops if kind == "forward" else bout.work.block_flops
        assert rate == pytest.approx(flops / mine / 1e6, rel=0.05)
        assert difference < 1e-5
        assert line.rindex("  ") <= TITLE.index("  difference") + 1


def test_a_block_s_call_can_be_repeated(bout) -> None:
    with torch.inference_mode():
        call = transformer_block.our_double(bout)
        assert torch.equal(call(), call())


def test_streamed_and_resident_are_the_same_bits(bout) -> None:
    with torch.no_grad():
        (line,) = streamed_forward.lines(bout, copy.deepcopy(bout.model), rounds=1)
    tokens, slow, fast, ratio, is_equal, peak = line.split()
    assert (int(tokens), is_equal, peak) == (bout.work.tokens, "True", "-")
    assert float(ratio) == pytest.approx(float(slow) / float(fast), rel=0.05)


def test_both_autoencoders_decode_in_the_same_tiles() -> None:
    config = VaeConfig(block_channels=(8, 8, 8, 8), norm_groups=4, sample_size=32, sample_frames=8)
    setting = vae_decode.Setting(config, ((3, 6, 5),), "cpu", torch.float32)
    with torch.inference_mode():
        (line,) = vae_decode.lines(setting, rounds=1)
    size, *numbers = line.split()
    assert size == "9x48x40"
    assert float(numbers[-1]) < 1e-4


def test_the_memory_table_has_a_cell_for_every_size() -> None:
    table = list(memory.block_lines(SMALL_WORKLOADS[:2]))
    assert len(table) == 3 * (1 + len(memory.BLOCKS))
    assert table[0].split() == ["peak", "256x256x5", "256x256x13"]
    row = next(line for line in table if line.startswith("single block, diffusers"))
    assert row.count(" u ") == row.count(" GB") == 2
    assert table[-6].split()[-2:] == ["1.000000", "1.000000"]
