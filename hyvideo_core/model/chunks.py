"""How much of a block is computed at a time, and how the pieces come together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .elementwise import PLAIN, Elementwise

LEAST_ROWS = 64
"""Matrix products with fewer rows take other paths, whose rounding differs."""


@dataclass(frozen=True, kw_only=True)  # no slots: older compilers hold the settings by weak references
class BlockSettings:
    """How blocks compute. On a CPU, none of it changes a bit of the result but for the kernels.

    On a GPU, products of other sizes may be summed in another order: up to 1e-5 of the result's norm in float32, 1e-2
    in bfloat16. Products in fp8 scale the tokens of each chunk by themselves.

    Args:
        chunk_tokens: the most tokens that layers take at a time, attention excepted; chunks of a stream are of equal
            length.
        heads_at_once: the most heads whose queries, keys and values exist at a time; None for all.
        kernels: what computes the steps between matrix products.
    """

    chunk_tokens: int = 16_384
    heads_at_once: int | None = None
    kernels: Elementwise = PLAIN

    def chunks(self, length: int) -> list[slice]:
        """Balanced chunks of a stream of tokens."""
        return balanced(length, self.chunk_tokens, LEAST_ROWS)

    def head_groups(self, num_heads: int) -> list[slice]:
        """Balanced groups of heads."""
        return balanced(num_heads, self.heads_at_once or num_heads)


DEFAULT = BlockSettings()
LOW = BlockSettings(chunk_tokens=8_192, heads_at_once=6)
"""At the worst moment three times the tokens instead of five, for a little more time."""


def balanced(length: int, most: int, least: int = 1) -> list[slice]:
    """As few slices of at most `most` as possible, whose lengths differ by one; `least` wins over `most`."""
    number = max(1, min(-(-length // most), length // least))
    ends = [length * i // number for i in range(number + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def assembled(pieces: Iterable[Tensor], size: int, dim: int = 1) -> Tensor:
    """Pieces, one after the other along an axis, as one tensor with `size` entries there; a lone piece is it.

    With grad off, each piece is let go before the next one is made, if nobody else holds it.
    """
    if torch.is_grad_enabled():
        parts = list(pieces)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    whole: Tensor | None = None
    start = 0
    for piece in pieces:
        if piece.shape[dim] == size:
            return piece
        if whole is None:
            whole = piece.new_empty((*piece.shape[:dim], size, *piece.shape[dim + 1 :]))
        whole.narrow(dim, start, piece.shape[dim]).copy_(piece)
        start += piece.shape[dim]
        del piece
    assert whole is not None
    return whole


def updated(x: Tensor, chunks: Sequence[slice], step: Callable[[slice], Tensor]) -> Tensor:
    """The tokens x [B, L, D] after `step` for each chunk, which writes into x when grad is off."""
    if torch.is_grad_enabled():
        return assembled(map(step, chunks), x.shape[1])
    for chunk in chunks:
        step(chunk)
    return x
