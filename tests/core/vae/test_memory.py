"""What the autoencoder holds at full size, counted on meta tensors."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.benchmarks.memory_meter import Reading, measure
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.vae import VideoAutoencoder


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    with torch.device("meta"):
        return VideoAutoencoder(VaeConfig()).half().requires_grad_(False)


def decoding(vae: VideoAutoencoder, size: tuple[int, int, int]) -> Reading:
    latents = torch.empty(1, 16, *size, dtype=torch.float16, device="meta")
    return measure(lambda: vae.decode(latents), inputs=latents, weights=[vae])


def num_pixels(size: tuple[int, int, int]) -> int:
    return (4 * size[0] - 3) * size[1] * size[2] * 64


@pytest.mark.parametrize(("frames", "limit"), [(17, 850), (9, 920)])
def test_decoding_a_tile_holds_few_bytes_for_each_pixel(vae: VideoAutoencoder, frames: int, limit: int) -> None:
    size = (frames, 32, 32)
    assert decoding(vae, size).peak <= limit * num_pixels(size)


def test_encoding_a_tile_holds_fewer_still(vae: VideoAutoencoder) -> None:
    video = torch.empty(1, 3, 65, 256, 256, dtype=torch.float16, device="meta")
    reading = measure(lambda: vae.encode(video), inputs=video, weights=[vae])
    assert reading.peak <= 600 * num_pixels((17, 32, 32))
