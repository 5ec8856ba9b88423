"""Attention by PyTorch alone: always there, always right.

Shapes: B batch, L tokens, N heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

AttentionBackend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each [B, L, N, E] and possibly strided, to [B, L_q, N, E]. No mask, softmax scale E**-0.5."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by PyTorch's own kernels: always there, always right."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two matrix products with all weights in memory: on a CPU, the faster way to train on short clips."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)
