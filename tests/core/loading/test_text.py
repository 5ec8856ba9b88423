"""Text encoder files: a prefix that is recognised also loads, and sizes that cannot be told are asked for."""

from __future__ import annotations

import json

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import ClipTextConfig, LlamaConfig
from hyvideo_nodes.hyvideo_core.errors import ConfigError
from hyvideo_nodes.hyvideo_core.loading import (
    build_clip_encoder,
    build_llama_encoder,
    detect_clip,
    detect_llama,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.text_encoders import build_clip, build_llama
from safetensors.torch import save_file

OTHER_PART = "first_stage_model.decoder.conv_in.conv.weight"


@pytest.fixture
def write(tmp_path):
    """Saves weights under a prefix, beside a tensor of something else; gives the opened file."""

    def write(weights, prefix, **config):
        named = {prefix + name: tensor.clone() for name, tensor in weights.items() if "position_ids" not in name}
        path = tmp_path / "m.safetensors"
        save_file({**named, OTHER_PART: torch.zeros(1)}, path, metadata={"config": json.dumps(config)})
        return open_checkpoint(path)

    return write


@pytest.fixture
def clip_weights():
    sizes = ClipTextConfig(vocab_size=20, hidden_size=32, ffn_size=48, num_layers=2, num_heads=4, max_positions=9)
    return build_clip(sizes, dtype=torch.float32, device="cpu").model.state_dict()


@pytest.fixture
def llama_weights():
    sizes = LlamaConfig(vocab_size=20, hidden_size=32, ffn_size=48, num_layers=4, num_heads=4, num_kv_heads=2)
    return build_llama(sizes, dtype=torch.float32, device="cpu", skip_layers=1).model.state_dict()


@pytest.mark.parametrize("prefix", ["text_model.", "clip_l.transformer.text_model.", "cond_stage_model.transformer."])
def test_clip_loads_under_every_prefix_that_is_recognised(prefix, clip_weights, write):
    checkpoint = write(clip_weights, prefix, num_attention_heads=4)
    loaded = build_clip_encoder(checkpoint, detect_clip(checkpoint), dtype=torch.float32).model.state_dict()
    assert all(torch.equal(tensor, clip_weights[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "text_encoder.model."])
def test_llama_loads_under_every_prefix_that_is_recognised(prefix, llama_weights, write):
    checkpoint = write(llama_weights, prefix, num_attention_heads=4)
    loaded = build_llama_encoder(checkpoint, detect_llama(checkpoint), dtype=torch.float32).model.state_dict()
    assert all(torch.equal(tensor, llama_weights[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("config", [{}, {"num_attention_heads": 5}])
def test_heads_that_cannot_be_told_are_asked_for(config, llama_weights, clip_weights, write):
    with pytest.raises(ConfigError, match="correct num_attention_heads in the file's config"):
        detect_llama(write(llama_weights, "model.", **config))
    with pytest.raises(ConfigError, match="correct num_attention_heads in the file's config"):
        detect_clip(write(clip_weights, "text_model.", **config))
