"""What other VAE objects are called, by the same words as files."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import WrongModelError
from hyvideo_nodes.nodes import host
from hyvideo_nodes.nodes.native_vae import check_native, describe_native


class HostVae:
    """As far as a recogniser looks at one."""

    latent_dim = 3

    def __init__(self, shapes):
        self._weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def get_sd(self):
        return self._weights


def causal(channels):
    return {
        "decoder.conv_in.conv.weight": (512, channels, 3, 3, 3),
        "decoder.mid.attn_1.q.weight": (512, 512, 1, 1, 1),
        "post_quant_conv.weight": (channels, channels, 1, 1, 1),
    }


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (causal(16), None),
        (causal(32), "a HunyuanVideo 1.5 VAE (32 latent channels), another model family"),
        (causal(8), "a video VAE of 8 channels"),
        ({"decoder.middle.0.residual.0.gamma": (4, 1, 1, 1)}, "a Wan video VAE"),
        ({"decoder.mid_block.resnets.0.norm1.norm_layer.weight": (4,)}, "a CogVideoX VAE"),
        ({"per_channel_statistics.std-of-means": (128,), "decoder.conv_in.conv.weight": (1, 1)}, "an LTX video VAE"),
    ],
)
def test_native_vaes_are_told_by_their_weights(shapes, words, monkeypatch):
    monkeypatch.setattr(host, "is_host_vae", lambda candidate: isinstance(candidate, HostVae))
    vae = HostVae(shapes)
    assert describe_native(vae) == words
    if words is not None:
        with pytest.raises(WrongModelError, match="expected the HunyuanVideo VAE"):
            check_native(vae)


def test_an_object_that_is_no_vae_is_named_by_its_type():
    assert describe_native(object()) == "an unknown object (object)"
