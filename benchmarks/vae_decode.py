"""Our VAE's decoding against diffusers' on the same weights and tiles: interleaved, medians, in one process.

    python3 dev.py bench vae_decode

At first a VAE of an eighth of the channels in float32 on two threads, one clip that is one tile and one that is four.
With --full the real one in float16 on a GPU: a full tile of 256 x 256 x 65, then 544 x 960 x 129 in the reference's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from hyvideo_nodes.benchmarks.duel import parse
from hyvideo_nodes.benchmarks.memory_meter import measure
from hyvideo_nodes.benchmarks.timing import interleaved
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.vae import Tiling, VideoAutoencoder, decode_tiled
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Setting:
    """One pair of decoders.

    Args:
        config: sizes of both.
        clips: (frames, height, width) in latents.
    """

    config: VaeConfig
    clips: tuple[tuple[int, int, int], ...]
    device: str
    dtype: torch.dtype


SMALL = Setting(
    VaeConfig(block_channels=(16, 32, 64, 64), norm_groups=8, sample_size=64, sample_frames=8),
    ((3, 8, 8), (3, 12, 12)),
    "cpu",
    torch.float32,
)
FULL = Setting(VaeConfig(), ((17, 32, 32), (33, 68, 120)), "cuda", torch.float16)


def build(setting: Setting) -> tuple[VideoAutoencoder, Any]:
    """Ours and theirs with the same random weights; theirs tiles as the reference does, which is not its default."""
    config = setting.config
    torch.manual_seed(0)
    theirs: Any = AutoencoderKLHunyuanVideo(
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
    )
    # its own `to` warns of casts that load-time options would avoid
    nn.Module.to(theirs, setting.device, setting.dtype).eval().requires_grad_(False)
    ours = VideoAutoencoder(config).to(setting.device, setting.dtype).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    tiling = Tiling.official(config)
    side, frames = tiling.tile_size, tiling.temporal_size
    stride, run_stride = side - tiling.overlap, frames - tiling.temporal_overlap
    theirs.enable_tiling(side, side, frames, stride, stride, run_stride)
    return ours, theirs


def calls(setting: Setting, ours: VideoAutoencoder, theirs: Any, latents: Tensor) -> list[Callable[[], Tensor]]:
    """Decoding of one clip by each."""
    tiling = Tiling.official(setting.config)
    return [
        lambda: decode_tiled(ours, latents, tiling),
        lambda: theirs.decode(latents, return_dict=False)[0],
    ]


def count_flops(setting: Setting, size: tuple[int, int, int]) -> int:
    """FLOPs of decoding a clip in our tiles."""
    with torch.device("meta"):
        vae = VideoAutoencoder(setting.config).to(setting.dtype).eval()
        latents = torch.empty(1, setting.config.latent_channels, *size, dtype=setting.dtype)
    return measure(lambda: decode_tiled(vae, latents, Tiling.official(setting.config)), weights=[vae]).flops


def lines(setting: Setting, rounds: int) -> Iterator[str]:
    """One for each clip."""
    ours, theirs = build(setting)
    for size in setting.clips:
        latents = torch.randn(1, setting.config.latent_channels, *size, device=setting.device, dtype=setting.dtype)
        pair = calls(setting, ours, theirs, latents)
        expected, got = (call().float() for call in pair)
        difference = (got - expected).abs().max() / expected.abs().max()
        mine, other = interleaved(pair, rounds)
        rate = count_flops(setting, size) / mine / 1e9
        name = "x".join(map(str, expected.shape[2:]))
        yield f"{name:>16} {mine:>9.3f} {other:>12.3f} {mine / other:>6.3f} {rate:>13.1f}  {float(difference):.1e}"


def main() -> None:
    """Prints one line per clip."""
    options = parse(__doc__, rounds=5)
    torch.set_num_threads(2)
    print(f"{'frames x pixels':>16} {'ours s':>9} {'diffusers s':>12} {'ratio':>6} {'ours GFLOP/s':>13}  difference")
    with torch.inference_mode():
        for line in lines(FULL if options.full else SMALL, options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
