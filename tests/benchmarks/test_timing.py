from __future__ import annotations

import time

import pytest
from hyvideo_nodes.benchmarks.timing import interleaved


def test_calls_take_turns_there_and_back_again() -> None:
    order = []
    interleaved([lambda: order.append("A"), lambda: order.append("B")], 4, warm_up=0)
    assert "".join(order) == "ABBAABBA"


def test_the_median_forgives_one_slow_call() -> None:
    pauses = iter([0, 0, 0.05, 0, 0])
    (seconds,) = interleaved([lambda: time.sleep(next(pauses))], 4)
    assert 0 < seconds < 0.02


@pytest.mark.parametrize("warm_up", [0, 1, 3])
def test_every_call_is_warmed_up_and_then_timed_as_often_as_was_asked(warm_up: int) -> None:
    counts = [0, 0, 0]

    def count(index: int) -> None:
        counts[index] += 1

    assert len(interleaved([lambda i=i: count(i) for i in range(3)], 5, warm_up=warm_up)) == 3
    assert counts == [5 + warm_up] * 3
