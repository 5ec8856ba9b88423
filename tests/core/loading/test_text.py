"""Text encoder files: a prefix that is recognised also loads, and sizes that cannot be told are asked for."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import ClipTextConfig, LlamaConfig
from hyvideo_nodes.hyvideo_core.errors import ConfigError, WrongModelError
from hyvideo_nodes.hyvideo_core.loading import (
    build_clip_encoder,
    build_llama_encoder,
    check_clip,
    check_llama,
    detect_clip,
    detect_llama,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.loading.checkpoint import Checkpoint, TensorInfo
from hyvideo_nodes.hyvideo_core.loading.text import parts_aside
from hyvideo_nodes.hyvideo_core.text_encoders import build_clip, build_llama
from hyvideo_nodes.hyvideo_core.text_encoders.clip import clip_shapes
from hyvideo_nodes.hyvideo_core.text_encoders.llm import llama_shapes
from safetensors.torch import save_file

META = torch.device("meta")
OTHER_PART = "first_stage_model.decoder.conv_in.conv.weight"


@pytest.fixture
def write(tmp_path):
    """Saves weights under a prefix, beside a tensor of something else; gives the opened file."""

    def write(weights, prefix, **config):
        named = {prefix + name: tensor.clone() for name, tensor in weights.items() if "position_ids" not in name}
        path = tmp_path / "m.safetensors"
        # without a prefix nothing can be told to be of another model
        other = {OTHER_PART: torch.zeros(1)} if prefix else {}
        save_file({**named, **other}, path, metadata={"config": json.dumps(config)})
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


LLAMA_PREFIXES = ["", "model.", "language_model.", "language_model.model.", "model.language_model."]


@pytest.mark.parametrize("prefix", [*LLAMA_PREFIXES, "text_encoder.model."])
def test_llama_loads_under_every_prefix_that_is_recognised(prefix, llama_weights, write):
    checkpoint = write(llama_weights, prefix, num_attention_heads=4)
    loaded = build_llama_encoder(checkpoint, detect_llama(checkpoint), dtype=torch.float32).model.state_dict()
    assert all(torch.equal(tensor, llama_weights[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("config", [{}, {"num_attention_heads": 5}])
def test_heads_that_cannot_be_told_are_asked_for(config, llama_weights, clip_weights, write):
    with pytest.raises(ConfigError, match=r"(correct|write) num_attention_heads (in|into) the file's config"):
        detect_llama(write(llama_weights, "model.", **config))
    with pytest.raises(ConfigError, match=r"(correct|write) num_attention_heads (in|into) the file's config"):
        detect_clip(write(clip_weights, "text_model.", **config))


class Headers(Checkpoint):
    """A file of which only names and shapes exist."""

    @contextmanager
    def reading(self):
        yield lambda name: torch.empty(self.tensors[name].shape, dtype=self.tensors[name].dtype, device=META)


@pytest.fixture
def headers(manifest_dir):
    """A published file's header, its names changed by a function."""

    def headers(name, rename=lambda key: key, **more):
        table = json.loads((manifest_dir / f"{name}.json").read_text(encoding="utf-8"))
        shapes = {rename(key): tuple(shape) for key, (shape, _) in table.items()} | more.get("tensors", {})
        tensors = {key: TensorInfo(shape, torch.float16) for key, shape in shapes.items() if shape is not None}
        return Headers(path=Path("renamed.safetensors"), tensors=tensors)

    return headers


def newer_names(key):
    """LLaVA as transformers writes it since 4.52."""
    for old, new in (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return f"model.{key}"


LLAVA = "llava_llama3_8b.LlavaForConditionalGeneration"


@pytest.mark.parametrize("prefix", LLAMA_PREFIXES)
@pytest.mark.parametrize("name", ["llama3_8b_text.LlamaModel", "llama3_8b_text.LlamaForCausalLM"])
def test_full_size_language_models_are_whole_under_every_prefix(name, prefix, headers):
    def rename(key):
        return prefix + key.removeprefix("model.") if "lm_head" not in key else key

    file = headers(name, rename)
    coverage = check_llama(file, detect_llama(file))
    assert (coverage.matched, coverage.expected, coverage.stray, coverage.beside) == (271, 271, (), ())


@pytest.mark.parametrize("rename", [lambda key: key, newer_names])
def test_a_whole_llava_is_read_and_its_vision_tower_is_named(rename, headers):
    file = headers(LLAVA, rename)
    coverage = check_llama(file, detect_llama(file))
    assert (coverage.matched, coverage.stray, coverage.beside) == (271, (), ())
    assert "a vision tower (391 tensors)" in parts_aside(coverage)
    assert "a projector of image tokens (4 tensors)" in parts_aside(coverage)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.layers.15.self_attn.k_proj.weight": None}, r"lacks 1 tensor: layers\.15\.self_attn\.k_proj"),
        ({"model.layers.15.surprise": (1,)}, r"has 1 unexpected tensor: model\.layers\.15\.surprise"),
        (
            {"model.layers.15.mlp.up_proj.weight": (8, 8)},
            r"layers\.15\.mlp\.up_proj\.weight is \[8, 8\], expected \[14336, 4096",
        ),
        (
            {f"model.layers.{i}.{n}": None for i in (28, 29) for n in ("mlp.up_proj.weight", "input_layernorm.weight")},
            "lacks 4",
        ),
    ],
)
def test_a_language_model_that_is_not_whole_is_refused_from_its_header(changes, words, headers):
    file = headers("llama3_8b_text.LlamaForCausalLM", tensors=changes)
    with pytest.raises(WrongModelError, match=words):
        check_llama(file, detect_llama(file))


def test_a_file_cut_after_some_layers_is_refused(headers):
    """Its sizes alone would make it a smaller model, which reads prompts as noise."""
    whole = headers("llama3_8b_text.LlamaForCausalLM")
    late = [key for key in whole.tensors if re.match(r"model\.layers\.[23]\d\.", key)]
    file = headers("llama3_8b_text.LlamaForCausalLM", tensors=dict.fromkeys(late))
    with pytest.raises(WrongModelError, match=r"lacks 90 tensors, such as layers\.20\."):
        check_llama(file, detect_llama(file))


def test_layers_that_are_not_used_may_be_absent(headers):
    whole = headers("llama3_8b_text.LlamaModel")
    last = [key for key in whole.tensors if key.startswith(("layers.30.", "layers.31.", "norm."))]
    file = headers("llama3_8b_text.LlamaModel", tensors=dict.fromkeys(last))
    assert check_llama(file, detect_llama(file)).is_whole


CLIP_EXTRAS = {
    "text_model.embeddings.position_ids": (1, 77),
    "text_projection.weight": (768, 768),
    "visual_projection.weight": (768, 1024),
    "logit_scale": (),
    "vision_model.embeddings.class_embedding": (1024,),
    "vision_model.encoder.layers.0.mlp.fc1.weight": (4096, 1024),
}


@pytest.mark.parametrize("extras", [{}, {"text_projection.weight": (768, 768)}, CLIP_EXTRAS])
def test_full_size_clip_is_whole_with_and_without_what_is_not_needed(extras, headers):
    file = headers("clip_l_text.CLIPTextModel", tensors=extras)
    coverage = check_clip(file, detect_clip(file))
    assert (coverage.matched, coverage.expected, coverage.stray, coverage.beside) == (196, 196, (), ())
    assert set(coverage.aside) == set(extras)


def test_a_clip_that_is_not_whole_is_refused_from_its_header(headers):
    file = headers(
        "clip_l_text.CLIPTextModel", tensors={"text_model.encoder.layers.11.mlp.fc1.bias": None, "text_model.x": (1,)}
    )
    with pytest.raises(WrongModelError, match=r"lacks 1 tensor: encoder\.layers\.11\.mlp\.fc1\.bias, and it has 1 un"):
        check_clip(file, detect_clip(file))


def test_longclip_is_read_in_its_whole_length(headers):
    table = {"text_model.embeddings.position_embedding.weight": (248, 768)}
    file = headers("clip_l_text.CLIPTextModel", tensors=table)
    config = detect_clip(file)
    assert config.max_positions == 248
    assert check_clip(file, config).is_whole
    small = replace(config, hidden_size=32, ffn_size=48, num_layers=1, num_heads=4, vocab_size=20)
    assert build_clip(small, dtype=torch.float32, device="cpu").max_positions == 248


def test_what_is_wanted_of_a_header_is_what_the_encoders_hold(llama_weights, clip_weights):
    sizes = LlamaConfig(vocab_size=20, hidden_size=32, ffn_size=48, num_layers=4, num_heads=4, num_kv_heads=2)
    wanted = llama_shapes(sizes, skip_layers=1)
    assert wanted == {key: tuple(value.shape) for key, value in llama_weights.items()}
    clip = ClipTextConfig(vocab_size=20, hidden_size=32, ffn_size=48, num_layers=2, num_heads=4, max_positions=9)
    held = {key: tuple(value.shape) for key, value in clip_weights.items() if "position_ids" not in key}
    assert clip_shapes(clip) == held
    published = build_llama(LlamaConfig(), dtype=torch.float16).model.state_dict()
    assert llama_shapes(LlamaConfig()) == {key: tuple(value.shape) for key, value in published.items()}


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": "many"},
        {"num_attention_heads": -4},
        {"num_hidden_layers": 10**9, "num_attention_heads": 4},
        {"rope_theta": "big", "num_attention_heads": 4},
        {"rms_norm_eps": float("inf"), "num_attention_heads": 4},
    ],
)
def test_a_configuration_that_is_none_is_refused(config, llama_weights, write):
    with pytest.raises(ConfigError, match="in the file's config metadata"):
        detect_llama(write(llama_weights, "model.", **config))


def test_a_width_without_its_number_of_heads_says_what_to_write(llama_weights, write):
    words = "is 32 wide, which heads of 128 do not divide, and does not say how many heads it has; write num_attention"
    with pytest.raises(ConfigError, match=words):
        detect_llama(write(llama_weights, "model."))


def test_an_activation_that_clip_does_not_have_is_refused(clip_weights, write):
    with pytest.raises(ConfigError, match=r"gives 'os\.system' as hidden_act, expected one of quick_gelu"):
        detect_clip(write(clip_weights, "text_model.", num_attention_heads=4, hidden_act="os.system"))
