"""What the autoencoder holds at full size, counted on meta tensors."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.benchmarks.memory_meter import Meter, Reading, measure
from hyvideo_nodes.hyvideo_core.config import VaeConfig
from hyvideo_nodes.hyvideo_core.vae import Tiling, VideoAutoencoder, decode_tiled
from hyvideo_nodes.hyvideo_core.vae.autoencoder import layers_of
from hyvideo_nodes.hyvideo_core.vae.carried import decode_carried
from hyvideo_nodes.hyvideo_core.vae.fitting import tile_bytes
from hyvideo_nodes.hyvideo_core.vae.layers import ResnetBlock
from hyvideo_nodes.hyvideo_core.vae.memory import decode_bytes, decoder_layers, encode_bytes

CONFIG = VaeConfig()


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


@pytest.mark.parametrize("size", [(17, 16, 16), (5, 24, 24), (1, 90, 160), (2, 60, 106), (9, 3, 5)])
def test_the_arithmetic_says_what_the_meter_says(vae: VideoAutoencoder, size: tuple[int, int, int]) -> None:
    assert decode_bytes(CONFIG, size, 2) == pytest.approx(decoding(vae, size).peak, rel=0.01)


@pytest.mark.parametrize(("size", "chunk"), [((9, 32, 32), 4), ((3, 90, 160), 1)])
def test_the_arithmetic_knows_carried_chunks(vae: VideoAutoencoder, size: tuple[int, int, int], chunk: int) -> None:
    latents = torch.empty(1, 16, *size, dtype=torch.float16, device="meta")
    out = torch.empty(1, 3, 4 * size[0] - 3, 8 * size[1], 8 * size[2])
    reading = measure(lambda: decode_carried(vae, latents, chunk, out), inputs=latents, weights=[vae])
    assert decode_bytes(CONFIG, size, 2, chunk) == pytest.approx(reading.peak, rel=0.01)


def test_strips_of_tiles_are_counted_and_the_output_lies_elsewhere(vae: VideoAutoencoder) -> None:
    latents = torch.empty(1, 16, 6, 40, 56, dtype=torch.float16, device="meta")
    tiling, out = Tiling(temporal_size=16, temporal_overlap=4), torch.empty(1, 3, 21, 320, 448)
    reading = measure(lambda: decode_tiled(vae, latents, tiling, out=out), inputs=latents, weights=[vae])
    assert reading.peak == pytest.approx(tile_bytes(CONFIG, (6, 40, 56), 2, tiling), rel=0.02)
    assert reading.peak > 1.005 * decode_bytes(CONFIG, (5, 32, 32), 2)


@pytest.mark.parametrize("carried", [False, True])
def test_after_an_interrupt_nothing_of_a_tile_is_left(carried: bool) -> None:
    config = VaeConfig(block_channels=(4, 8, 8, 12), layers_per_block=1, latent_channels=3, norm_groups=2)
    with torch.device("meta"):
        small, latents = VideoAutoencoder(config), torch.empty(1, 3, 9, 5, 5)
    tiling = Tiling(tile_size=32, overlap=8, temporal_size=8, temporal_overlap=4, carried=carried)

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with Meter(weights=[small]) as meter:
        meter.watch(latents)
        with pytest.raises(KeyboardInterrupt) as caught:
            decode_tiled(small, latents, tiling, out=torch.empty(1, 3, 33, 40, 40), on_tile=stop)
        assert meter.reading.peak > 2 * latents.nbytes
        del caught
        assert meter.live == latents.nbytes


def test_the_arithmetic_walks_the_layers_of_the_decoder(vae: VideoAutoencoder) -> None:
    layers = list(layers_of(vae.decoder.up_blocks))
    sizes = decoder_layers(CONFIG, (3, 4, 5))
    assert [one.enlarges for one in sizes] == [not isinstance(layer, ResnetBlock) for layer in layers]
    for one, layer in zip(sizes, layers, strict=True):
        if isinstance(layer, ResnetBlock):
            assert one.channels == (layer.norm1.num_channels, layer.norm2.num_channels)
        else:
            assert one.factors == layer.factors
    assert sizes[-1].size == (9, 32, 40)


def test_encoding_a_tile_holds_fewer_still(vae: VideoAutoencoder) -> None:
    video = torch.empty(1, 3, 33, 256, 256, dtype=torch.float16, device="meta")
    reading = measure(lambda: vae.encode(video), inputs=video, weights=[vae])
    assert reading.peak <= 670 * num_pixels((9, 32, 32))
    assert encode_bytes(CONFIG, (9, 32, 32), 2) == pytest.approx(reading.peak, rel=0.02)
