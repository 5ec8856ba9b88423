"""What a kernel has to get right before it is used: one tiny call against attention in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .plain import AttentionBackend

BATCH, TOKENS, HEADS = 2, 1101, 2
"""No multiple of any kernel's tile, and past the length where kernels change their way of working."""
NUM_ROWS = 64
OUTLIER = 60.0
"""What one channel of the keys is raised by in half of the check: 8 bits without a remedy for it fail."""

EXACT_ERROR = {torch.bfloat16: 1e-2}
EXACT_ERROR_ELSE = 2e-3
"""Relative error of kernels that only round and sum in another order; float32 may go through TF32."""
LOSSY_ERROR = 6e-2
"""Relative error that 8 bits may have; a cosine of 0.998."""


class Site(NamedTuple):
    """What a kernel's verdict holds for."""

    device: torch.device
    dtype: torch.dtype
    head_size: int


def site_of(q: Tensor) -> Site:
    """The site of queries [B, L, N, E]."""
    return Site(q.device, q.dtype, q.shape[-1])


def check(attention: AttentionBackend, site: Site, *, is_lossy: bool) -> str | None:
    """What is wrong with a kernel, None if nothing is.

    Batch 2, a ragged length, and q, k and v as views of one buffer, as the blocks hand them over. Nothing random of
    the process is touched.
    """
    limit = LOSSY_ERROR if is_lossy else EXACT_ERROR.get(site.dtype, EXACT_ERROR_ELSE)
    for outlier in (0.0, OUTLIER):
        q, k, v = sample(site, outlier)
        expected = rows_in_float32(q, k, v)
        before = [x.clone() for x in (q, k, v)]
        out = attention(q, k, v)
        if out.shape != q.shape or out.dtype != q.dtype or out.device != q.device:
            return (
                f"it gives {list(out.shape)} in {out.dtype} on {out.device}, expected {list(q.shape)} in {q.dtype} "
                f"on {q.device}"
            )
        if not all(torch.equal(x, was) for x, was in zip((q, k, v), before, strict=True)):
            return "it writes into its inputs"
        error = relative_error(out[:, _rows(q)].float().cpu(), expected)
        if not error <= limit:  # so that NaN fails
            kind = f" with outliers of {outlier:g}" if outlier else ""
            return f"its error{kind} is {error:.1%} against float32, allowed are {limit:.1%}"
    return None


def sample(site: Site, outlier: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v, [B, L, N, E], strided."""
    random = torch.Generator().manual_seed(0)
    buffer = torch.randn(BATCH, TOKENS, 3, HEADS, site.head_size, generator=random)
    buffer[:, :, 1, :, site.head_size // 3] += outlier
    q, k, v = buffer.to(site.device, site.dtype).unbind(2)
    return q, k, v


def rows_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of some queries, spread over all, on the CPU, where float32 is float32: [B, rows, N, E]."""
    q, k, v = (x.float().cpu().transpose(1, 2) for x in (q[:, _rows(q)], k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


def relative_error(out: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return float((out - expected).norm() / expected.norm())


def error_of(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """The relative error of some rows of attention's result against float32."""
    return relative_error(out[:, _rows(q)].float().cpu(), rows_in_float32(q, k, v))


def _rows(q: Tensor) -> Tensor:
    return torch.linspace(0, q.shape[1] - 1, NUM_ROWS, device=q.device).long()
