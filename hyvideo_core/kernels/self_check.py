"""What a kernel has to get right before it is used: one tiny call against the function whose place it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.elementwise import Affine, HeadNorm, Rope

BATCH, TOKENS, NUM_TEXT = 2, 37, 5

MAX_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
MAX_ERROR_ELSE = 2e-5
"""Relative error against PyTorch's function: sums in another order, and in 16 bits a rounding less or more."""


class Site(NamedTuple):
    """What a kernel's verdict holds for.

    Attributes:
        device, dtype: where and in what the model computes.
        width, num_heads, head_size: D, N and E.
    """

    device: torch.device
    dtype: torch.dtype
    width: int
    num_heads: int
    head_size: int


class WrongResultError(ArithmeticError):
    """A kernel computes something else than the function whose place it would take."""


def check(function: str, kernel: Callable[..., Any], plain: Callable[..., Any], site: Site) -> None:
    """Compares what a kernel gives, and what it writes into its inputs, with the plain function.

    Two samples with modulations of their own, a ragged number of tokens, some of them text, in views of one buffer.

    Raises:
        WrongResultError: they differ by more than rounding.
    """
    limit = MAX_ERROR.get(site.dtype, MAX_ERROR_ELSE)
    with torch.no_grad():
        theirs, ours = (SAMPLES[function](site) for _ in range(2))
        given, expected = kernel(*theirs), plain(*ours)
        for result, wanted in zip(_tensors((given, theirs)), _tensors((expected, ours)), strict=True):
            if result.shape != wanted.shape:
                raise WrongResultError(f"it gives {list(result.shape)}, expected {list(wanted.shape)}")
            error = float((result.float() - wanted.float()).norm() / wanted.float().norm())
            if not error <= limit:  # so that NaN differs
                raise WrongResultError(f"it differs by {error:.3%} from PyTorch, allowed are {limit:.3%}")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _modulated(site: Site, batch: int = BATCH, tokens: int = TOKENS) -> tuple[Any, ...]:
    """Tokens in the middle of a longer stream, and what they are multiplied by and shifted by."""
    random = torch.Generator().manual_seed(0)
    stream = torch.randn(batch, tokens + 8, site.width, generator=random) * 3 + 1
    factor, offset = torch.randn(2, batch, 1, site.width, generator=random).to(site.device, site.dtype).float()
    return stream.to(site.device, site.dtype)[:, 4:-4], Affine(1 + factor, offset)


def _gated(site: Site, batch: int = BATCH, tokens: int = TOKENS) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(1)
    x, affine = _modulated(site, batch, tokens)
    update = torch.randn(batch, tokens, site.width, generator=random).to(site.device, site.dtype)
    gate = torch.randn(batch, 1, 3 * site.width, generator=random).to(site.device, site.dtype)[..., -site.width :]
    return x, update, gate, affine


def _heads(site: Site, batch: int = BATCH, tokens: int = TOKENS) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(2)
    qkv = torch.randn(batch, tokens, 3, site.num_heads, site.head_size, generator=random) * 3
    angles = torch.rand(tokens - NUM_TEXT, site.head_size // 2, generator=random) * 6
    norms = [HeadNorm(site.head_size).to(site.device, site.dtype) for _ in "qk"]
    for norm in norms:
        norm.weight.copy_(1 + torch.randn(site.head_size, generator=random) / 4)
    return qkv.to(site.device, site.dtype), *norms, Rope(angles.cos().to(site.device), angles.sin().to(site.device))


SAMPLES = {"modulated_norm": _modulated, "gated_norm": _gated, "normed_heads": _heads}
"""Inputs for each function, made anew for each call, since functions write into them."""
