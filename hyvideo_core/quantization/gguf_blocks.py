"""GGUF's block formats: how rows of weights lie in bytes, and how to get the numbers back.

A row of weights is a run of blocks; a block holds 32 or 256 weights as small integers, with float16 scales and,
in some formats, minima. The K formats cut their 256 weights into sub-blocks of 16 or 32 with scales of their own,
which are themselves integers times one float16 scale. Everything is little-endian.

Here n counts blocks. All arithmetic is in float32, as in the reference implementation.
Source: the layouts that the GGML project publishes for its tensor types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .base import StoredLinear, frozen

# weights that are widened at a time: bounds what the intermediate steps take, and on the CPU keeps them in its caches,
# which doubles the speed
CHUNK_ELEMENTS, CPU_CHUNK_ELEMENTS = 2**22, 2**19
# the sixteen steps of the non-linear 4-bit formats, finer near zero
NON_LINEAR_STEPS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One block format.

    Attributes:
        num_weights: weights of a block.
        num_bytes: its size.
        decode: [n, num_bytes] uint8 to float32 weights, n * num_weights of them in order, of any shape.
    """

    num_weights: int
    num_bytes: int
    decode: Decoder


def _cut(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Fields of a block, one after the other; the last takes what is left."""
    return torch.split(blocks, [*sizes, blocks.shape[1] - sum(sizes)], dim=1)


def _half(field: Tensor) -> Tensor:
    """[n, 2k] bytes to [n, k] float16 numbers, as float32."""
    return field.contiguous().view(torch.float16).float()


def _spread(field: Tensor, bits: int, group: int) -> Tensor:
    """Integers of 1, 2 or 4 bits: each run of `group` bytes holds runs of as many integers, lowest bits first.

    [n, bytes] to [n, bytes // group, 8 // bits, group] uint8.
    """
    runs = field.reshape(len(field), -1, 1, group)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=field.device).reshape(1, 1, -1, 1)
    return (runs >> shifts) & ((1 << bits) - 1)


def _fifth_bits(field: Tensor) -> Tensor:
    """[n, 4] bytes, one bit for each of 32 weights, to [n, 32] uint8 of 0 or 16."""
    return _spread(field, 1, 1).reshape(-1, 32) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    scale, packed = _cut(blocks, 2)
    return _half(scale) * (_spread(packed, 4, 16).reshape(-1, 32).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    scale, minimum, packed = _cut(blocks, 2, 2)
    return _half(scale) * _spread(packed, 4, 16).reshape(-1, 32).float() + _half(minimum)


def _q5_0(blocks: Tensor) -> Tensor:
    scale, high, packed = _cut(blocks, 2, 4)
    steps = _spread(packed, 4, 16).reshape(-1, 32) | _fifth_bits(high)
    return _half(scale) * (steps.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    scale, minimum, high, packed = _cut(blocks, 2, 2, 4)
    steps = _spread(packed, 4, 16).reshape(-1, 32) | _fifth_bits(high)
    return _half(scale) * steps.float() + _half(minimum)


def _q8_0(blocks: Tensor) -> Tensor:
    scale, steps = _cut(blocks, 2)
    return _half(scale) * steps.view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    scales, packed, scale, minimum = _cut(blocks, 16, 64, 2)
    steps = _spread(packed, 2, 32).reshape(-1, 16, 16).float()
    return _sub_blocks(_half(scale) * (scales & 15).float(), steps, _half(minimum) * (scales >> 4).float())


def _q3_k(blocks: Tensor) -> Tensor:
    high, packed, scales, scale = _cut(blocks, 32, 64, 12)
    low = _spread(packed, 2, 32).reshape(-1, 16, 16)
    upper = _spread(high, 1, 32).reshape(-1, 16, 16)
    steps = (low | (upper << 2)).float() - 4
    # sixteen scales of 6 bits: nibbles in the first eight bytes, pairs of bits in the last four
    nibbles, pairs = _cut(scales, 8)
    numbers = _spread(nibbles, 4, 8).reshape(-1, 16) | (_spread(pairs, 2, 4).reshape(-1, 16) << 4)
    return _sub_blocks(_half(scale) * (numbers.float() - 32), steps)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, minimum, scales, packed = _cut(blocks, 2, 2, 12)
    numbers, minima = _six_bit_pairs(scales)
    steps = _spread(packed, 4, 32).reshape(-1, 8, 32).float()
    return _sub_blocks(_half(scale) * numbers, steps, _half(minimum) * minima)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, minimum, scales, high, packed = _cut(blocks, 2, 2, 12, 32)
    numbers, minima = _six_bit_pairs(scales)
    low = _spread(packed, 4, 32).reshape(-1, 8, 32)
    upper = _spread(high, 1, 32).reshape(-1, 8, 32)
    return _sub_blocks(_half(scale) * numbers, (low | (upper << 4)).float(), _half(minimum) * minima)


def _q6_k(blocks: Tensor) -> Tensor:
    packed, high, scales, scale = _cut(blocks, 128, 64, 16)
    low = _spread(packed, 4, 64).reshape(-1, 2, 4, 32)
    upper = _spread(high, 2, 32)
    steps = (low | (upper << 4)).reshape(-1, 16, 16).float() - 32
    return _sub_blocks(_half(scale) * scales.contiguous().view(torch.int8).float(), steps)


def _iq4_nl(blocks: Tensor) -> Tensor:
    scale, packed = _cut(blocks, 2)
    return _half(scale) * _non_linear(_spread(packed, 4, 16)).reshape(-1, 32)


def _iq4_xs(blocks: Tensor) -> Tensor:
    scale, high, low, packed = _cut(blocks, 2, 2, 4)
    numbers = _spread(low, 4, 1).reshape(-1, 8) | (_spread(high, 2, 1).reshape(-1, 8) << 4)
    steps = _non_linear(_spread(packed, 4, 16)).reshape(-1, 8, 32)
    return _sub_blocks(_half(scale) * (numbers.float() - 32), steps)


def _sub_blocks(scales: Tensor, steps: Tensor, minima: Tensor | None = None) -> Tensor:
    """[n, s] scales over [n, s, k] integers, less [n, s] minima."""
    wide = scales.unsqueeze(-1) * steps
    return wide if minima is None else wide - minima.unsqueeze(-1)


def _six_bit_pairs(field: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits from 12 bytes, as float32 [n, 8].

    The first four of each are the low six bits of bytes 0..3 and 4..7; the top two bits of these bytes are the top
    of the last four, whose low nibbles share bytes 8..11.
    """
    first, second, shared = _cut(field, 4, 4)
    scales = torch.cat([first & 63, (shared & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (shared >> 4) | ((second >> 6) << 4)], dim=1)
    return scales.float(), minima.float()


def _non_linear(indices: Tensor) -> Tensor:
    return torch.tensor(NON_LINEAR_STEPS, dtype=torch.float32, device=indices.device)[indices.int()]


def _plain(dtype: torch.dtype) -> BlockFormat:
    """Numbers that are no blocks at all, for weights joined from parts of several formats."""
    return BlockFormat(1, dtype.itemsize, lambda blocks: blocks.contiguous().view(dtype).float())


FORMATS = {
    "F32": _plain(torch.float32),
    "F16": _plain(torch.float16),
    "BF16": _plain(torch.bfloat16),
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q2_K": BlockFormat(256, 84, _q2_k),
    "Q3_K": BlockFormat(256, 110, _q3_k),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
    "IQ4_NL": BlockFormat(32, 18, _iq4_nl),
    "IQ4_XS": BlockFormat(256, 136, _iq4_xs),
}


def row_bytes(num_weights: int, block: str) -> int:
    """Bytes that a row of weights takes.

    Raises:
        CheckpointError: the row is not made of whole blocks.
    """
    layout = FORMATS[block]
    if num_weights % layout.num_weights:
        raise CheckpointError(
            f"rows of {num_weights} weights cannot be {block}, whose blocks hold {layout.num_weights}; "
            "the file is damaged, download it again"
        )
    return num_weights // layout.num_weights * layout.num_bytes


def dequantize(rows: Tensor, block: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights of whole rows.

    Args:
        rows: [..., bytes of a row] uint8.
        block: one of FORMATS.
    Returns:
        [..., weights of a row], computed in float32 and rounded once.
    """
    layout = FORMATS[block]
    width = rows.shape[-1] // layout.num_bytes * layout.num_weights
    flat = rows.reshape(-1, layout.num_bytes)
    step = max(1, (CPU_CHUNK_ELEMENTS if rows.device.type == "cpu" else CHUNK_ELEMENTS) // layout.num_weights)
    if len(flat) <= step:
        return layout.decode(flat).to(dtype).reshape(*rows.shape[:-1], width)
    weights = torch.empty(len(flat), layout.num_weights, dtype=dtype, device=rows.device)
    for start in range(0, len(flat), step):
        part = layout.decode(flat[start : start + step])
        weights[start : start + step] = part.reshape(-1, layout.num_weights)
    return weights.reshape(*rows.shape[:-1], width)


class GgufLinear(StoredLinear):
    """A linear layer that keeps its weight in blocks and widens it for each call.

    The rows may come in several runs of different formats: files choose one per tensor, and layouts that split
    what others fuse (query, key and value) give a fused weight several.

    Args:
        in_features: weights of a row.
        runs: (rows, block format) of each run, in the order of the rows.
        has_bias: whether a bias follows.
        compute_dtype: what the weight is widened to, and the bias' own dtype.
    """

    def __init__(
        self,
        in_features: int,
        runs: tuple[tuple[int, str], ...],
        *,
        has_bias: bool,
        compute_dtype: torch.dtype,
    ) -> None:
        rows = sum(rows for rows, _ in runs)
        super().__init__(in_features, rows, has_bias=has_bias, compute_dtype=compute_dtype)
        self.formats = tuple(block for _, block in runs)
        empty = (torch.empty(rows, row_bytes(in_features, block), dtype=torch.uint8) for rows, block in runs)
        self.runs = nn.ParameterList(frozen(blocks) for blocks in empty)

    def dequantized(self, rows: tuple[int, int] | None = None) -> Tensor:
        """[out, in], or [b - a, in] for rows (a, b), in `compute_dtype`: what `forward` multiplies by."""
        start, end = rows if rows is not None else (0, self.out_features)
        parts, first = [], 0
        for blocks, block in zip(self.runs, self.formats, strict=True):
            wanted = blocks[max(0, start - first) : max(0, end - first)]
            if len(wanted):
                parts.append(dequantize(wanted, block, self.compute_dtype))
            first += len(blocks)
        return parts[0] if len(parts) == 1 else torch.cat(parts)
