"""Our transformer's forward against other people's on the same weights: interleaved, medians, in one process.

    python3 dev.py bench transformer_forward
    COMFYUI_DIR=ComfyUI its-own-python benchmarks/transformer_forward.py

Hidden size 256, two heads of 128, 2 + 4 blocks, float32, two threads: ours is to take at most 0.9 of diffusers' time.
With --full the 13B model in bf16 on a GPU that holds it twice; time the blocks first.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.benchmarks.duel import TITLE, Bout, bouts, lines, parse
from hyvideo_nodes.benchmarks.rivals import Call


def our_forward(bout: Bout) -> Call:
    """A model call."""
    x = bout.inputs
    return lambda: bout.model(x.latents, x.timestep, [x.states], x.pooled, x.guidance)


def main() -> None:
    """Prints one line per size and rival."""
    options = parse(__doc__)
    print(TITLE)
    with torch.inference_mode():
        for bout in bouts(options.full):
            for line in lines("forward", bout, our_forward(bout), options.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
