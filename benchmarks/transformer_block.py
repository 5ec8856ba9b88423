"""One block of each kind of ours against other people's on the same weights: interleaved, medians, in one process.

    python3 dev.py bench transformer_block
    COMFYUI_DIR=ComfyUI its-own-python benchmarks/transformer_block.py

Hidden size 256, two heads of 128, float32, two threads: ours is to take at most 0.85 of diffusers' time. With --full
the 13B model's blocks in bf16 on a GPU. Every block makes its own modulation and gets copies, since some write to them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.benchmarks.duel import TITLE, Bout, bouts, lines, parse
from hyvideo_nodes.benchmarks.rivals import Call
from hyvideo_nodes.hyvideo_core.attention import sdpa
from hyvideo_nodes.hyvideo_core.model.elementwise import Rope
from hyvideo_nodes.hyvideo_core.model.modulation import VectorModulation
from hyvideo_nodes.hyvideo_core.model.rope import rope_table
from torch import Tensor


def our_double(bout: Bout) -> Call:
    """A call of the first double-stream block."""
    x, block, rope = bout.inputs, bout.model.double_blocks[0], positions(bout)

    def call() -> Tensor:
        modulation = VectorModulation(x.vec).double(0, block)
        return torch.cat(block(x.img.clone(), x.txt.clone(), modulation, rope, sdpa), dim=1)

    return call


def our_single(bout: Bout) -> Call:
    """A call of the first single-stream block."""
    x, block, rope = bout.inputs, bout.model.single_blocks[0], positions(bout)

    def call() -> Tensor:
        modulation = VectorModulation(x.vec).single(0, block)
        return block(torch.cat((x.img, x.txt), dim=1), modulation, rope, sdpa)

    return call


def positions(bout: Bout) -> Rope:
    """The rotary table, which a step makes once for all its blocks."""
    config = bout.work.config
    return rope_table(bout.work.grid, config.rope_axes, config.rope_theta, bout.inputs.img.device)


def main() -> None:
    """Prints one line per size, kind and rival."""
    options = parse(__doc__)
    print(TITLE)
    with torch.inference_mode():
        for bout in bouts(options.full, num_double_blocks=1, num_single_blocks=1):
            for line in lines("double", bout, our_double(bout), options.rounds):
                print(line, flush=True)
            for line in lines("single", bout, our_single(bout), options.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
