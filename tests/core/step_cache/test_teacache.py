"""TeaCache's options: which steps may be reused, and what is refused. Its rule is held to golden numbers in parity."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.transformer import run_blocks
from hyvideo_nodes.hyvideo_core.step_cache import TeaCache, teacache

ALWAYS = 1000.0


def skipped_steps(num_steps: int, **options: float) -> list[int]:
    """Steps that are reused when the latents never change and the threshold is never reached."""
    torch.manual_seed(0)
    model = Transformer(tiny(num_double_blocks=1, num_single_blocks=1))
    state = TeaCache(rel_l1_thresh=ALWAYS, **options).start(num_steps)
    run = state.wrap(run_blocks)
    inputs = torch.randn(1, 4, 1, 2, 2), torch.tensor([500.0]), [torch.randn(1, 2, 32)], torch.randn(1, 24)
    with torch.no_grad():
        for _ in range(num_steps):
            model(*inputs, torch.tensor([6000.0]), run=run)
    return state.report.skipped


@pytest.mark.parametrize(("num_steps", "skipped"), [(1, []), (2, []), (3, [2]), (6, [2, 3, 4, 5])])
def test_the_first_and_the_last_step_are_always_computed(num_steps, skipped):
    assert skipped_steps(num_steps) == skipped


@pytest.mark.parametrize(
    ("start", "end", "skipped"),
    [(0.5, 1.0, [6, 7, 8, 9]), (0.0, 0.3, [2, 3]), (0.3, 0.7, [4, 5, 6, 7]), (0.4, 0.4, [])],
)
def test_steps_outside_the_range_are_computed(start, end, skipped):
    assert skipped_steps(10, start_percent=start, end_percent=end) == skipped


def test_a_range_ends_where_its_percentage_says_whatever_floats_make_of_it():
    assert 0.58 * 50 < 29
    assert skipped_steps(50, end_percent=0.58)[-1] == 29


def test_a_change_is_the_same_however_many_numbers_are_compared_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    previous = torch.randn(1, 70, 12, generator=generator)
    modulated = previous + 0.1 * torch.randn(1, 70, 12, generator=generator)
    whole = teacache.rescaled_change(modulated, previous)
    change = float((modulated - previous).abs().mean() / previous.abs().mean())
    expected = sum(factor * change**power for power, factor in enumerate(reversed(teacache.POLYNOMIAL)))
    assert whole == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(teacache, "PART", 100)
    assert teacache.rescaled_change(modulated, previous) == pytest.approx(whole, rel=1e-5)


def test_what_is_kept_is_the_change_of_the_image_tokens():
    state = TeaCache(rel_l1_thresh=ALWAYS).start(3)
    model = Transformer(tiny())
    outputs = []

    def run(_model, inputs):
        outputs.append(inputs.img * 1.5 + 0.25)
        return outputs[-1]

    given = torch.randn(1, 4, 1, 2, 2), torch.tensor([500.0]), [torch.randn(1, 2, 32)], torch.randn(1, 24)
    seen = []

    def watch(model, inputs):
        before = inputs.img.clone()
        seen.append((before, state.wrap(run)(model, inputs)))
        return seen[-1][1]

    with torch.no_grad():
        for _ in range(2):
            model(*given, torch.tensor([6000.0]), run=watch)
    (before, after), (later, reused) = seen
    assert len(outputs) == 1
    assert torch.equal(reused, later + (after - before))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rel_l1_thresh": -0.1}, "rel_l1_thresh is -0.1, expected 0 or more"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "expected 0 <= start_percent <= end_percent <= 1"),
        ({"end_percent": 1.5}, "end_percent 1.5"),
    ],
)
def test_options_outside_their_range_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        TeaCache(**options)
