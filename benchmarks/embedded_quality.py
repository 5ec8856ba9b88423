"""What the shipped embedded model draws: scores of its videos, read from their pixels, by attribute.

    python3 dev.py bench embedded_quality --prompts 48

Plain one-object prompts with a resting camera, 64 x 64 x 17, guidance 6, shift 7, fixed seeds: half of them of
colour-shape-motion triples that occur in training, half of triples that never do.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.hyvideo_core.training.export import EmbeddedFiles
from hyvideo_nodes.hyvideo_core.training.shipped import quality_figures

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"


def main() -> None:
    """Prints one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, default=EMBEDDED, help="a folder of model folders")
    parser.add_argument("--prompts", type=int, default=200, help="of each half")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path, help="a .png or .jpg of the first prompts of each half")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    figures = quality_figures(EmbeddedFiles(options.files), options.prompts, steps=options.steps, sheet=options.sheet)
    for name, value in figures.items():
        print(f"{name:<24} {value:.1f} dB" if "PSNR" in name else f"{name:<24} {value:.1%}")


if __name__ == "__main__":
    main()
