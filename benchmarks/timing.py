"""Wall time of several calls against each other, so that all of them meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def interleaved(calls: Sequence[Callable[[], object]], rounds: int, *, warm_up: int = 1) -> list[float]:
    """Median seconds of each call over `rounds` turns, there and back again: A B B A A B B A.

    Each call runs equally often first and last, and a machine that slows down slows all of them down alike.

    Args:
        rounds: how often each call is timed.
        warm_up: how often each is called before, untimed.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(warm_up):
            call()
    order = range(len(calls))
    for turn in range(rounds):
        for index in order if turn % 2 == 0 else reversed(order):
            seconds[index].append(_timed(calls[index]))
    return [statistics.median(taken) for taken in seconds]


def _timed(call: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Until the GPU is done, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
