"""What the shipped embedded model draws: scores of its videos, read from their pixels, by attribute.

    python3 dev.py bench embedded_quality --prompts 48

Plain one-object prompts with a resting camera, 64 x 64 x 17, 20 steps, the nodes' defaults, fixed seeds. One row for
combinations that occur in training, one for colour-shape-motion triples that never do. `--sheet FILE.png` also draws
what came out.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.hyvideo_core.training.inspection import judged_scenes, measure, save_contact_sheet
from hyvideo_nodes.nodes import NODES
from torch import Tensor

NODE_BY_ID = {node.define_schema().node_id: node for node in NODES}
ATTRIBUTES = ("colour", "background", "motion", "shape", "count", "all three")


def run_node(node_id: str, **inputs: object) -> tuple:
    """A node's results, its widgets at their defaults where nothing is given."""
    node = NODE_BY_ID[node_id]
    sockets = node.define_schema().inputs
    defaults = {socket.id: socket.options["default"] for socket in sockets if "default" in socket.options}
    return node.execute(**{**defaults, **inputs}).result


class EmbeddedModel:
    """The shipped files, through the nodes that users run."""

    def __init__(self, steps: int) -> None:
        (self.model,) = run_node("HYVLoadModel", model="hyvideo_embedded_t2v.safetensors")
        (self.vae,) = run_node("HYVLoadVAE", vae="hyvideo_embedded_vae.safetensors")
        (self.text_encoders,) = run_node(
            "HYVLoadTextEncoders",
            llm="hyvideo_embedded_llama.safetensors",
            clip="hyvideo_embedded_clip.safetensors",
        )
        (self.latent,) = run_node("HYVEmptyLatent", width=64, height=64, length=17)
        self.steps = steps

    def draw(self, prompt: str, seed: int) -> Tensor:
        """The video of a prompt, (3, F, H, W) in -1..1."""
        (positive,) = run_node("HYVTextEncode", text_encoders=self.text_encoders, prompt=prompt)
        latents, _ = run_node(
            "HYVSampler", model=self.model, positive=positive, latent=self.latent, seed=seed, steps=self.steps
        )
        (images,) = run_node("HYVVAEDecode", samples=latents, vae=self.vae)
        return images.movedim(-1, 0) * 2 - 1


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, help="in each row")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path, help="a PNG of the first prompts of each row")
    options = parser.parse_args()
    torch.set_num_threads(2)
    model = EmbeddedModel(options.steps)
    print(f"{'prompts':>22} {'number':>7} " + " ".join(f"{name:>11}" for name in ATTRIBUTES))
    shown = []
    for row, held_out in (("seen combinations", False), ("unseen combinations", True)):
        with torch.inference_mode():
            scores, videos = measure(judged_scenes(options.prompts, held_out=held_out), model.draw)
        print(f"{row:>22} {options.prompts:>7} " + " ".join(f"{scores[name]:>11.1%}" for name in ATTRIBUTES))
        shown += videos[:8]
    if options.sheet is not None:
        save_contact_sheet(shown, options.sheet)
        print(f"wrote {options.sheet}")


if __name__ == "__main__":
    main()
