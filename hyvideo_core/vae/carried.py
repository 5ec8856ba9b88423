"""Decoding in consecutive chunks, each of which goes on where the one before it stopped.

Nothing is decoded twice and nothing blended in time. The middle block and as many levels after it as cost no more
memory than one chunk does see all frames, and convolutions carry their last frames over, so that up to rounding only
one thing differs from decoding all at once: later norms know the clip's statistics up to the chunk's end and no
further. One chunk for everything is decoding at once, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .autoencoder import VideoAutoencoder, check_latents, layers_of, run_layer
from .carry import Carry
from .layers import Upsample, norm_silu
from .memory import num_whole_layers


@torch.no_grad()
def decode_carried(
    vae: VideoAutoencoder, latents: Tensor, chunk: int, out: Tensor, on_chunk: Callable[[], None] = lambda: None
) -> Tensor:
    """Video [B, 3, F, H, W], nominally in -1..1 and not clamped, written to out chunk by chunk.

    Args:
        vae: on the device that decodes.
        latents: [B, C, T, h, w], raw, on any device.
        chunk: latent frames that are decoded at once.
        out: any device, floating dtype and strides.
        on_chunk: called after each chunk; may raise in order to stop.
    Raises:
        ShapeError: latents of another model.
    """
    check_latents(tuple(latents.shape), vae.config)
    first = 0
    for video in _chunks(vae, latents.to(vae.weights_device, vae.dtype), chunk):
        out[:, :, first : first + video.shape[2]] = video
        first += video.shape[2]
        del video  # before the next one is made
        on_chunk()
    return out


def _chunks(vae: VideoAutoencoder, latents: Tensor, chunk: int) -> Iterator[Tensor]:
    num_latents, decoder = latents.shape[2], vae.decoder
    if chunk >= num_latents:
        yield vae.decode(latents)
        return
    layers = list(layers_of(decoder.up_blocks))
    whole = num_whole_layers(vae.config, (num_latents, latents.shape[3], latents.shape[4]), chunk)
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    rate = 1  # frames that one latent frame has become
    for layer in layers[:whole]:
        x = run_layer(layer, x)
        rate *= layer.factors[0] if isinstance(layer, Upsample) else 1
    carry = Carry()
    for first in range(0, num_latents, chunk):
        stop = min(first + chunk, num_latents)
        part = x[:, :, max(0, (first - 1) * rate + 1) : (stop - 1) * rate + 1]
        for i, layer in enumerate(layers[whole:]):
            part = run_layer(layer, part, reuse=i > 0, carry=carry)  # the first one reads x itself
        part = norm_silu(decoder.conv_norm_out, part, reuse=True, carry=carry)
        yield decoder.conv_out(part, carry=carry)
