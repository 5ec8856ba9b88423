"""Our transformer's forward against diffusers' on the same weights: interleaved, medians, in one process.

    python3 dev.py bench transformer_forward

Configuration: hidden 256, two heads of 128, 2 + 4 blocks, float32, two threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from diffusers import HunyuanVideoTransformer3DModel
from hyvideo_nodes.hyvideo_core.config import TransformerConfig
from hyvideo_nodes.hyvideo_core.loading.key_maps import DIFFUSERS, to_official
from hyvideo_nodes.hyvideo_core.model import Transformer

TEXT_TOKENS = 64
GRIDS = {512: (2, 32, 32), 1024: (4, 32, 32), 2048: (8, 32, 32)}
CONFIG = TransformerConfig(
    hidden_size=256,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=4,
    rope_axes=(16, 56, 56),
    text_width=128,
    pooled_width=64,
    has_guidance=True,
)


def build_theirs() -> torch.nn.Module:
    """Diffusers' model of the same sizes."""
    return HunyuanVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=128,
        num_layers=2,
        num_single_layers=4,
        num_refiner_layers=2,
        text_embed_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=True,
        rope_axes_dim=(16, 56, 56),
    ).eval()


def make_calls(grid: tuple[int, int, int]) -> tuple[Callable[[], object], Callable[[], object]]:
    """One forward of each model on the same inputs."""
    frames, height, width = grid
    latents = torch.randn(1, 16, frames, height, width)
    states, pooled = torch.randn(1, TEXT_TOKENS, 128), torch.randn(1, 64)
    timestep, guidance = torch.tensor([500.0]), torch.tensor([6000.0])
    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.bool)
    theirs = build_theirs()
    ours = Transformer(CONFIG).eval()
    ours.load_state_dict(to_official(theirs.state_dict(), DIFFUSERS, ours.state_dict()))
    return (
        lambda: ours(latents, timestep, [states], pooled, guidance),
        lambda: theirs(latents, timestep, states, mask, pooled, guidance, return_dict=False)[0],
    )


def measure(calls: tuple[Callable[[], object], ...], rounds: int) -> list[float]:
    """Median seconds of each call, taken in turns so that both meet the same machine."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for slot, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            slot.append(time.perf_counter() - start)
    return [statistics.median(slot) for slot in seconds]


def main() -> None:
    """Prints one line per sequence length: milliseconds of both and the ratio ours / theirs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print(f"{'image tokens':>12} {'ours ms':>9} {'diffusers ms':>13} {'ratio':>6}  max difference")
    with torch.inference_mode():
        for tokens, grid in GRIDS.items():
            calls = make_calls(grid)
            difference = (calls[0]() - calls[1]()).abs().max()
            ours, theirs = measure(calls, rounds)
            print(f"{tokens:>12} {ours * 1e3:>9.1f} {theirs * 1e3:>13.1f} {ours / theirs:>6.3f}  {difference:.1e}")


if __name__ == "__main__":
    main()
