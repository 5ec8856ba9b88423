"""Which kernel computes attention: what was asked for if it works here, else the next best."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError
from ..fallback import attempt
from .kernels import (
    CUDNN,
    EFFICIENT,
    FLASH,
    FLASH_ATTN_2,
    FLASH_ATTN_3,
    FLASH_ATTN_4,
    KITCHEN_INT8,
    SAGE,
    Kernel,
)
from .plain import AttentionBackend, sdpa
from .self_check import Site, check, site_of

logger = logging.getLogger(__name__)

PLAIN, AUTO = "sdpa", "auto"
EXACT = (*FLASH_ATTN_4, *FLASH_ATTN_3, *FLASH_ATTN_2, *CUDNN, *FLASH, *EFFICIENT)
CHOICES: dict[str, Sequence[Kernel]] = {
    PLAIN: (),
    AUTO: EXACT,
    "cudnn": CUDNN,
    "flash": FLASH,
    "efficient": EFFICIENT,
    "flash_attn_4": (*FLASH_ATTN_4, *FLASH_ATTN_3, *FLASH_ATTN_2),
    "flash_attn_3": (*FLASH_ATTN_3, *FLASH_ATTN_2),
    "flash_attn_2": FLASH_ATTN_2,
    "int8": KITCHEN_INT8,
    "sage": SAGE,
}
"""What may be asked for, and the kernels that are tried for it, the best first. PyTorch's own choice is last for all:
8 bits are never used unasked."""

MEASURED_FROM = 2048
"""Tokens from which it pays to measure kernels; below, their differences are launches."""
MEASURED_TOKENS = 8192
REPEATS = 3
MARGIN = 0.98
"""A kernel replaces PyTorch's own choice if it takes less than this share of its time."""


class Working(NamedTuple):
    """A kernel that passed its check."""

    name: str
    attention: AttentionBackend


OWN = Working("PyTorch's own choice", sdpa)
INSTEAD = "the next best is used"


class ChosenAttention:
    """Attention by the best kernel that works where it is called.

    At the first call on a device, in a dtype and at a head size, a kernel that is asked for is imported, tried on a
    tiny input and compared with float32; `auto` does so with all of them and measures those that are right. What
    fails, then or in a later call, costs one line in the log, is not tried again by this object, and the next best
    takes its place.

    Args:
        name: one of CHOICES.
        clock: seconds, for measuring.
    Raises:
        OptionError: another name.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        if name not in CHOICES:
            raise OptionError(f"attention {name!r}, expected one of {', '.join(CHOICES)}")
        self.name = name
        self._clock = clock
        self._ranked: dict[Site, Iterator[Working]] = {}
        self._chosen: dict[Site, Working] = {}

    # kernels of libraries are nothing to compile: a compiled block calls them from outside its graph
    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(q, k, v), each [B, L, N, E], to [B, L_q, N, E]."""
        site = site_of(q)
        if self.name == AUTO and not (q.is_cuda and k.shape[1] >= MEASURED_FROM):
            return sdpa(q, k, v)
        if site not in self._chosen:  # also where memory ran out while kernels were tried
            self._ranked[site] = self._rank(site, q.shape[2], min(k.shape[1], MEASURED_TOKENS))
            self._take_next(site)
        while (chosen := self._chosen[site]).attention is not sdpa:
            out = attempt(partial(chosen.attention, q, k, v), f"attention {chosen.name}", INSTEAD)
            if out is not None:
                return out
            self._take_next(site)
        return sdpa(q, k, v)

    def _take_next(self, site: Site) -> None:
        self._chosen[site] = next(self._ranked[site], OWN)
        logger.info("attention: %s", self._chosen[site].name)

    def _rank(self, site: Site, num_heads: int, num_tokens: int) -> Iterator[Working]:
        """Kernels that work at a site, the best first, each tried when it is its turn."""
        working = (found for kernel in CHOICES[self.name] if (found := self._try(kernel, site)) is not None)
        return iter(self._by_time(list(working), site, num_heads, num_tokens)) if self.name == AUTO else working

    def _try(self, kernel: Kernel, site: Site) -> Working | None:
        """A kernel that is installed and right; otherwise says in one line why it is not."""
        what = f"attention {kernel.name}"
        is_asked_for = self.name != AUTO and kernel is CHOICES[self.name][0]
        level = logging.WARNING if is_asked_for else logging.INFO

        def tried() -> Working | str:
            try:
                attention = kernel.load()
            except ModuleNotFoundError as error:
                return f"is not installed ({error}); install {kernel.package} to use it"
            with torch.no_grad():
                wrong = check(attention, site, is_lossy=kernel.is_lossy)
            return Working(kernel.name, attention) if wrong is None else f"is not used: {wrong}"

        found = attempt(tried, what, INSTEAD, level)
        if isinstance(found, str):
            logger.log(level, "%s %s; %s", what, found, INSTEAD)
            return None
        return found

    def _by_time(self, working: list[Working], site: Site, num_heads: int, num_tokens: int) -> list[Working]:
        """Those that are faster than PyTorch's own choice, the fastest first."""
        q = torch.empty(1, num_tokens, num_heads, site.head_size, device=site.device, dtype=site.dtype)
        q.normal_(generator=torch.Generator(site.device).manual_seed(0))
        times = {}
        for one in (OWN, *working):  # what a tiny input did not show, many tokens may
            took = attempt(partial(seconds, one.attention, q, self._clock), f"attention {one.name}", INSTEAD)
            times[one.name] = math.inf if took is None else took
        told = ", ".join(f"{name} {took * 1e3:.2f}" for name, took in times.items())
        logger.info("attention of %s tokens in ms: %s", num_tokens, told)
        faster = [one for one in working if times[one.name] < MARGIN * times[OWN.name]]
        return sorted(faster, key=lambda one: times[one.name])


def choose_attention(name: str) -> AttentionBackend:
    """The backend of a name in CHOICES.

    Raises:
        OptionError: another name.
    """
    return sdpa if name == PLAIN else ChosenAttention(name)


def seconds(attention: AttentionBackend, q: Tensor, clock: Callable[[], float]) -> float:
    """The median time of one call on q, k and v alike, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        _wait(q)
        start = clock()
        attention(q, q, q)
        _wait(q)
        times.append(clock() - start)
    return sorted(times[1:])[REPEATS // 2]


def _wait(q: Tensor) -> None:
    if q.is_cuda:
        torch.cuda.synchronize(q.device)
