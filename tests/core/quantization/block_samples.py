"""Random blocks of every GGUF format."""

from __future__ import annotations

import numpy as np
import torch
from hyvideo_nodes.hyvideo_core.quantization.gguf_blocks import FORMATS

# where a block's float16 scales and minima stand; everything else in it may be any byte
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def random_blocks(block: str, rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """[rows, bytes of a row] uint8 of finite weights: small scales and minima, every other byte at random."""
    random = np.random.default_rng(seed)
    layout = FORMATS[block]
    if block not in HALVES:
        floats = torch.from_numpy(random.normal(0, 0.02, (rows, width)).astype(np.float32))
        return floats.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[block]).view(torch.uint8)
    blocks = random.integers(0, 256, (rows * width // layout.num_weights, layout.num_bytes), dtype=np.uint8)
    for start in HALVES[block]:
        halves = random.normal(0, 0.001, (len(blocks), 1)).astype(np.float16)
        blocks[:, start : start + 2] = halves.view(np.uint8)
    return torch.from_numpy(blocks.reshape(rows, -1))
