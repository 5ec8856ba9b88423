"""Weights of four bits: two values to a byte, a scale for every 16, and one for the whole.

Source: the E2M1 format of OCP Microscaling 1.0, sec. 5.3.3; the order of block scales in NVIDIA's cuBLAS
documentation, "1D block scaling factors layout".
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from .base import StoredLinear, frozen

BLOCK = 16
TILE_ROWS, TILE_COLUMNS = 128, 4
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Nvfp4Linear(StoredLinear):
    """A linear layer that keeps its weight in nvfp4 and widens it for each call.

    Attributes:
        weight: [out, in / 2] uint8, the even column in the upper half of each byte.
        block_scale: [out, in / 16] e4m3, in the order of rows and columns.
        scale: [1] or [out, 1] float32.
    """

    scale: Tensor
    block_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, has_bias: bool, compute_dtype: torch.dtype) -> None:
        super().__init__(in_features, out_features, has_bias=has_bias, compute_dtype=compute_dtype)
        self.weight: nn.Parameter = frozen(torch.empty(out_features, in_features // 2, dtype=torch.uint8))
        blocks = torch.empty(out_features, in_features // BLOCK, dtype=torch.float8_e4m3fn)
        self.register_buffer("block_scale", blocks)
        self.register_buffer("scale", torch.ones(1))

    def dequantized(self, rows: tuple[int, int] | None = None) -> Tensor:
        """See StoredLinear.dequantized."""
        chosen = slice(None) if rows is None else slice(*rows)
        scale = self.scale if self.scale.numel() == 1 else self.scale[chosen]
        scales = self.block_scale[chosen].float() * scale
        weight = self.weight[chosen]
        values = byte_values(self.compute_dtype, weight.device)[weight.int()]
        return values.view(*scales.shape, BLOCK).mul_(scales.unsqueeze(-1)).flatten(1)


@lru_cache(maxsize=8)
def byte_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256, 2]: the two numbers that a byte stands for, the upper half's first."""
    # it outlives the call, which may be one in inference mode
    with torch.inference_mode(False):
        values = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], dtype=dtype, device=device)
        codes = torch.arange(256, device=device)
        return torch.stack((values[codes // 16], values[codes % 16]), dim=-1)


def packed_order(block_scales: Tensor, rows: int, columns: int) -> Tensor:
    """Block scales out of the order in which tensor cores read them, as [rows, columns].

    They come in tiles of 128 rows and 4 columns, padded to whole tiles; inside a tile the four quarters of its rows
    stand side by side.
    """
    down, across = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    tiles = block_scales.reshape(down, across, TILE_ROWS // 4, 4, TILE_COLUMNS)
    ordered = tiles.permute(0, 3, 2, 1, 4).reshape(down * TILE_ROWS, across * TILE_COLUMNS)
    return ordered[:rows, :columns].contiguous()


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape of [rows, columns] block scales once they are padded to whole tiles."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS
