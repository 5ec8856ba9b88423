"""Our Triton kernels. Importing this file imports triton, so it is imported where a kernel is first wanted.

They round where the functions of model.elementwise round, so that they differ by the order of sums alone.

Shapes: B batch, L tokens, N heads, E head size, D width.
"""

# ruff: noqa: ANN001, ANN202, N803  (Triton gives annotations and capitals a meaning of its own)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.elementwise import NORM_EPS, Affine, HeadNorm, Rope

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # nobody calls what is below, but the file can still be read
    triton = None  # type: ignore[assignment,unused-ignore]

jit: Any = triton.jit if triton else lambda kernel: kernel

MAX_WIDTH = 16384
"""Widest row that one program holds in its registers without spilling them."""


@jit
def _gated_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr, update_ptr, gate_ptr, factor_ptr, offset_ptr, out_ptr,
    num_tokens, width, x_batch, x_token, update_batch, update_token, gate_batch, factor_batch, offset_batch,
    eps, HAS_UPDATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: x + update * gate, written back to x, then its layer norm times factor plus offset."""
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // num_tokens, row % num_tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    x_at = x_ptr + sample * x_batch + token * x_token + column
    x = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        update_at = update_ptr + sample * update_batch + token * update_token + column
        update = tl.load(update_at, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + sample * gate_batch + column, mask=inside, other=0.0).to(tl.float32)
        rounded = (x + update * gate).to(x_ptr.dtype.element_ty)
        tl.store(x_at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    factor = tl.load(factor_ptr + sample * factor_batch + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + sample * offset_batch + column, mask=inside, other=0.0).to(tl.float32)
    result = normed * factor + offset
    tl.store(out_ptr + row * width + column, result.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def _normed_heads_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
    num_tokens, num_image, num_heads, batch_stride, token_stride, part_stride, head_stride, table_stride,
    eps, HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """All queries or all keys of one token: RMS norm, then each pair of channels turned by the token's angle."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    sample, token = row // num_tokens, row % num_tokens
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, SIZE)[None, :]
    inside = head * SIZE + channel < num_heads * SIZE
    at = qkv_ptr + sample * batch_stride + token * token_stride + part * part_stride + head * head_stride + channel
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 1) / SIZE + eps)
    normed = (x * factor[:, None]).to(qkv_ptr.dtype.element_ty).to(tl.float32)
    if part == 0:
        weight = tl.load(q_weight_ptr + channel).to(tl.float32)
    else:
        weight = tl.load(k_weight_ptr + channel).to(tl.float32)
    normed = (normed * weight).to(qkv_ptr.dtype.element_ty).to(tl.float32)
    pair = tl.arange(0, SIZE // 2)
    turned_pairs = tl.where(token < num_image, SIZE // 2, 0)  # text is turned by nothing
    cos = tl.load(cos_ptr + token * table_stride + pair, mask=pair < turned_pairs, other=1.0)[None, :]
    sin = tl.load(sin_ptr + token * table_stride + pair, mask=pair < turned_pairs, other=0.0)[None, :]
    real, imaginary = tl.split(tl.reshape(normed, (HEADS, SIZE // 2, 2)))
    turned = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
    tl.store(at, tl.reshape(turned, (HEADS, SIZE)).to(qkv_ptr.dtype.element_ty), mask=inside)


def modulated_norm(x: Tensor, affine: Affine) -> Tensor:
    """As model.elementwise.modulated_norm, rounded to x's dtype as the next Linear would."""
    return _normed(x, None, None, affine)


def gated_norm(x: Tensor, update: Tensor, gate: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """x += update * gate, and what `modulated_norm` makes of the new x, in one pass over both."""
    return x, _normed(x, update, gate, affine)


def normed_heads(qkv: Tensor, q_norm: HeadNorm, k_norm: HeadNorm, rope: Rope) -> Tensor:
    """Queries and keys of qkv [B, L, 3, N, E] normed and rotated where they lie.

    Raises:
        ValueError: heads that the kernel does not take.
    """
    batch, num_tokens, _, num_heads, size = qkv.shape
    if qkv.stride(-1) != 1 or size & (size - 1):
        raise ValueError(f"heads of {size} with a last stride of {qkv.stride(-1)}, expected a power of two and 1")
    _normed_heads_kernel[(batch * num_tokens, 2)](
        qkv, q_norm.weight, k_norm.weight, rope.cos, rope.sin,
        num_tokens, min(num_tokens, rope.cos.shape[0]), num_heads, *qkv.stride()[:4], rope.cos.stride(0),
        NORM_EPS, HEADS=triton.next_power_of_2(num_heads), SIZE=size,
    )  # fmt: skip
    return qkv


def _normed(x: Tensor, update: Tensor | None, gate: Tensor | None, affine: Affine) -> Tensor:
    batch, num_tokens, width = x.shape
    given = [one for one in (x, update, gate, *affine) if one is not None]
    if width > MAX_WIDTH or any(one.stride(-1) != 1 or one.shape[-1] != width for one in given):
        raise ValueError(f"rows of {width}, expected contiguous ones of {MAX_WIDTH} at most")
    has_update = update is not None and gate is not None
    added, gates = (update, gate) if update is not None and gate is not None else (x, affine.offset)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _gated_norm_kernel[(batch * num_tokens,)](
        x, added, gates, *affine, out,
        num_tokens, width, *x.stride()[:2], *added.stride()[:2],
        *(0 if one.shape[0] == 1 else one.stride(0) for one in (gates, *affine)),
        NORM_EPS, HAS_UPDATE=has_update, BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return out
