"""What the shipped embedded model draws: scores of its videos, read from their pixels, by kind of prompt and attribute.

    python3 dev.py bench embedded_quality --prompts 48

Prompts of the plain form, guidance 6, shift 7, one fixed seed each. One object over a resting camera at home, 64 x 64
x 17: colour-shape-motion triples that occur in training, and others that never do; then a larger and longer clip, a
moving camera, and two objects. Last, held-out clips through the autoencoder and back.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.hyvideo_core.training.export import EmbeddedFiles
from hyvideo_nodes.hyvideo_core.training.shipped import EXAMS, ShippedModel, quality_table, reconstruction_psnr

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"


ATTRIBUTES = ("colour", "shape", "motion", "all three", "background", "camera", "count")


def main() -> None:
    """Prints one line per kind of prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, default=EMBEDDED, help="a folder of model folders")
    parser.add_argument("--prompts", type=int, default=200, help="of the first two kinds, fewer of the others")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clips", type=int, default=32, help="through the autoencoder")
    parser.add_argument("--sheet", type=Path, help="a .png or .jpg of the first prompts of each kind")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    model = ShippedModel.load(EmbeddedFiles(options.files))
    table = quality_table(model, options.prompts, steps=options.steps, sheet=options.sheet)
    print(f"{'% right':<34}", *(f"{name:>10}" for name in ATTRIBUTES))
    for exam in EXAMS:
        name = f"{exam.name} ({len(exam.scenes(options.prompts))})"
        print(f"{name:<34}", *(f"{100 * table[exam.name][attribute]:>10.1f}" for attribute in ATTRIBUTES))
    print(f"autoencoder, {options.clips} held-out clips: {reconstruction_psnr(model, options.clips):.1f} dB")


if __name__ == "__main__":
    main()
