"""Peak memory, operations and FLOPs of our models and other people's, measured on meta at real sizes: needs no GPU.

    python3 dev.py bench memory
    COMFYUI_DIR=ComfyUI its-own-python benchmarks/memory.py

u is one bf16 activation of all tokens. Peaks hold what is alive at the worst moment, inputs included; weights only in
whole stages, where they are streamed. What kernels use inside and what the allocator wastes is not seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

from hyvideo_nodes.benchmarks import memory_peers, memory_stages, memory_subjects
from hyvideo_nodes.benchmarks.memory_meter import Reading
from hyvideo_nodes.benchmarks.memory_subjects import TILE_FRAMES, TILE_SIDE, VAE
from hyvideo_nodes.benchmarks.sizes import GB, WORKLOADS, Workload
from hyvideo_nodes.hyvideo_core.model.chunks import DEFAULT, LOW
from hyvideo_nodes.hyvideo_core.vae import Tiling

Subject = Callable[[Workload], Reading]

WALKED = 3
"""Blocks of each kind that a stage computes: what is fetched ahead is then there, and nothing more comes."""
SHORT_RUNS = Tiling(temporal_size=32, temporal_overlap=8)
"""33 frames at a time, in less memory than the reference's 65 and with other numbers."""
CARRIED = Tiling(tile_size=None, overlap=0, temporal_size=8, temporal_overlap=0, carried=True)
"""Two latent frames at a time, none of them twice."""

BLOCKS: dict[str, Subject] = {
    "single block": memory_subjects.single_block,
    "single block, low": lambda work: memory_subjects.single_block(work, LOW),
    **{f"single block, {name}": kinds["single"] for name, kinds in memory_peers.peers().items()},
    "double block": memory_subjects.double_block,
    "double block, low": lambda work: memory_subjects.double_block(work, LOW),
    **{f"double block, {name}": kinds["double"] for name, kinds in memory_peers.peers().items()},
}
STAGES: dict[str, Subject] = {
    "text, streamed": lambda _: memory_stages.text_stage(),
    "transformer, streamed": lambda work: memory_stages.transformer_stage(work, DEFAULT, walked=WALKED),
    "transformer, streamed, low": lambda work: memory_stages.transformer_stage(work, LOW, walked=WALKED),
    "VAE, reference's tiles": lambda work: memory_stages.vae_stage(work, Tiling.official(VAE)),
    "VAE, 33-frame tiles": lambda work: memory_stages.vae_stage(work, SHORT_RUNS),
    "VAE, carried, whole frames": lambda work: memory_stages.vae_stage(work, CARRIED),
}
PARTS: dict[str, Callable[[], Reading]] = {
    f"VAE {TILE_SIDE}x{TILE_SIDE}x{TILE_FRAMES}": memory_subjects.vae_tile,
    "text encoder, 351 tokens": memory_subjects.text_encoder,
}
if "diffusers" in memory_peers.peers():
    PARTS[f"VAE {TILE_SIDE}x{TILE_SIDE}x{TILE_FRAMES}, diffusers"] = memory_peers.vae_tile


def row(name: str, cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"{name:<28}" + "".join(f"{cell:>20}" for cell in cells)


def block_lines(works: Sequence[Workload]) -> Iterator[str]:
    """Peaks, operations, and FLOPs over 4 S^2 D + 24 D^2 S, of each kind of block."""
    readings = {name: [subject(work) for work in works] for name, subject in BLOCKS.items()}
    yield row("peak", map(str, works))
    for name, taken in readings.items():
        yield row(
            name,
            (f"{r.peak / work.unit:.2f} u {r.peak / GB:>6.2f} GB" for r, work in zip(taken, works, strict=True)),
        )
    yield row("operations", map(str, works))
    for name, taken in readings.items():
        yield row(name, (str(reading.num_ops) for reading in taken))
    yield row("FLOPs / formula", map(str, works))
    for name, taken in readings.items():
        yield row(name, (f"{r.flops / work.block_flops:.6f}" for r, work in zip(taken, works, strict=True)))


def part_lines() -> Iterator[str]:
    """What is the same for every video: a tile of the VAE, the text encoder."""
    pixels = TILE_SIDE * TILE_SIDE * TILE_FRAMES
    yield row("", ("GB", "bytes per pixel", "operations", "TFLOP"))
    for name, subject in PARTS.items():
        reading = subject()
        per_pixel = f"{reading.peak / pixels:.0f}" if name.startswith("VAE") else ""
        numbers = (f"{reading.peak / GB:.3f}", per_pixel, str(reading.num_ops), f"{reading.flops / 1e12:.1f}")
        yield row(name, numbers)


def stage_lines(works: Sequence[Workload]) -> Iterator[str]:
    """What each stage takes on the device, weights and all."""
    yield row("whole stages, GB", map(str, works))
    for name, subject in STAGES.items():
        yield row(name, (f"{subject(work).peak / GB:.2f}" for work in works))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", metavar="HxWxF", help="such as 720x1280x129; all four by default")
    chosen = parser.parse_args().sizes
    works = [work for work in WORKLOADS if not chosen or str(work) in chosen]
    if not works:
        parser.error(f"--sizes: expected some of {', '.join(map(str, WORKLOADS))}")
    for lines in (block_lines(works), part_lines(), stage_lines(works)):
        for line in lines:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
