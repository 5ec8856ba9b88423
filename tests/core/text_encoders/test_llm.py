"""The language model: what is kept of it, the names its files use, strict loading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hyvideo_nodes.hyvideo_core.config import LlamaConfig
from hyvideo_nodes.hyvideo_core.errors import ConfigError, WrongModelError
from hyvideo_nodes.hyvideo_core.text_encoders import build_llama, llama_layouts, load_llama
from torch import Tensor

IDS = torch.tensor([[1, 17, 5, 300, 42, 42, 7]])


@pytest.fixture
def whole(llama_config: LlamaConfig) -> transformers.LlamaModel:
    """The library's own model with every layer and its norm, as the independent answer."""
    sizes = transformers.LlamaConfig(
        vocab_size=llama_config.vocab_size,
        hidden_size=llama_config.hidden_size,
        intermediate_size=llama_config.ffn_size,
        num_hidden_layers=llama_config.num_layers,
        num_attention_heads=llama_config.num_heads,
        num_key_value_heads=llama_config.num_kv_heads,
        rms_norm_eps=llama_config.rms_eps,
        rope_theta=llama_config.rope_theta,
    )
    return transformers.LlamaModel(sizes).eval()


def test_states_are_the_third_hidden_state_from_the_end(
    whole: transformers.LlamaModel, llama_config: LlamaConfig
) -> None:
    encoder = build_llama(llama_config, dtype=torch.float32)
    load_llama(encoder, whole.state_dict())
    with torch.no_grad():
        expected = whole(IDS, output_hidden_states=True).hidden_states[-3]
        torch.testing.assert_close(encoder(IDS), expected, rtol=0, atol=2e-6)


def test_padding_on_the_right_changes_no_valid_token(llama_config: LlamaConfig) -> None:
    encoder = build_llama(llama_config, dtype=torch.float32, device="cpu")
    padded = torch.nn.functional.pad(IDS, (0, 4))
    mask = (torch.arange(padded.shape[1]) < IDS.shape[1]).long()[None]
    valid = encoder(padded, mask)[:, : IDS.shape[1]]
    torch.testing.assert_close(encoder(IDS), valid, rtol=0, atol=2e-6)


def layouts_of(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    head = torch.zeros(1)
    vision = {"vision_tower.vision_model.x": head, "multi_modal_projector.linear_1.weight": head}
    return {
        "LlamaModel": dict(state),
        "without the norm": {key: value for key, value in state.items() if key != "norm.weight"},
        "LlamaForCausalLM": {**{f"model.{key}": value for key, value in state.items()}, "lm_head.weight": head},
        "headless LLaVA": {f"language_model.{key}": value for key, value in state.items()} | vision,
        "LLaVA": {f"language_model.model.{key}": value for key, value in state.items()}
        | {"language_model.lm_head.weight": head}
        | vision,
        "newer LLaVA": {f"model.language_model.{key}": value for key, value in state.items()}
        | {"lm_head.weight": head}
        | {f"model.{key}": value for key, value in vision.items()},
        "stored frequencies": {**state, "layers.1.self_attn.rotary_emb.inv_freq": head},
    }


@pytest.mark.parametrize("layout", list(layouts_of({})))
def test_every_known_layout_gives_the_same_states(
    layout: str, whole: transformers.LlamaModel, llama_config: LlamaConfig
) -> None:
    plain, other = (build_llama(llama_config, dtype=torch.float32) for _ in range(2))
    load_llama(plain, whole.state_dict())
    load_llama(other, layouts_of(whole.state_dict())[layout])
    assert torch.equal(plain(IDS), other(IDS))


@pytest.mark.parametrize("layout", ["LlamaModel", "LlamaForCausalLM", "llava"])
def test_full_size_files_have_every_tensor_and_no_other(layout: str, manifest_dir: Path) -> None:
    name = "llava_llama3_8b.LlavaForConditionalGeneration" if layout == "llava" else f"llama3_8b_text.{layout}"
    keys = json.loads((manifest_dir / f"{name}.json").read_text())
    encoder = build_llama(LlamaConfig(), dtype=torch.float16)
    state = encoder.model.state_dict()
    matched = encoder.layouts.match(keys)
    assert matched.keys() == state.keys()
    shapes = {own: list(state[own].shape) for own in matched}
    assert shapes == {own: keys[key][0] for own, key in matched.items()}


def test_building_on_meta_takes_no_memory_but_knows_its_positions(llama_config: LlamaConfig) -> None:
    encoder = build_llama(llama_config, dtype=torch.float16)
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    assert {p.dtype for p in encoder.parameters()} == {torch.float16}
    head = llama_config.hidden_size // llama_config.num_heads
    expected = llama_config.rope_theta ** (-torch.arange(0, head, 2).float() / head)
    for name, buffer in encoder.named_buffers():
        assert buffer.dtype == torch.float32, name
        torch.testing.assert_close(buffer, expected)


def test_the_default_dtype_of_the_process_changes_nothing(
    whole: transformers.LlamaModel, llama_config: LlamaConfig
) -> None:
    encoder, other = build_llama(llama_config, dtype=torch.float32), None
    torch.set_default_dtype(torch.bfloat16)
    try:
        other = build_llama(llama_config, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    for each in (encoder, other):
        load_llama(each, whole.state_dict())
    assert torch.equal(encoder(IDS), other(IDS))


def test_weights_are_cast_to_the_dtype_that_was_built(
    whole: transformers.LlamaModel, llama_config: LlamaConfig
) -> None:
    encoder = build_llama(llama_config, dtype=torch.bfloat16)
    load_llama(encoder, whole.state_dict())
    assert encoder(IDS).dtype == torch.bfloat16


def test_loading_shares_memory_and_works_inside_inference_mode(
    whole: transformers.LlamaModel, llama_config: LlamaConfig
) -> None:
    state = whole.state_dict()
    state["layers.0.mlp.down_proj.weight"] = state["layers.0.mlp.down_proj.weight"].half()
    with torch.inference_mode():
        encoder = build_llama(llama_config, dtype=torch.float32)
        load_llama(encoder, state)
    assert not any(parameter.is_inference() for parameter in encoder.parameters())
    weight = encoder.model.layers[0].mlp.up_proj.weight
    assert weight.data_ptr() == state["layers.0.mlp.up_proj.weight"].data_ptr()
    encoder.requires_grad_(True)(IDS).sum().backward()
    assert weight.grad is not None


class CountingReader(dict):
    """A mapping that notes what was read, as a lazy file reader would be asked."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__(state)
        self.read: list[str] = []

    def __getitem__(self, key: str) -> Tensor:
        self.read.append(key)
        return super().__getitem__(key)


def test_layers_that_are_not_needed_are_never_read(whole: transformers.LlamaModel, llama_config: LlamaConfig) -> None:
    reader = CountingReader(whole.state_dict())
    load_llama(build_llama(llama_config, dtype=torch.float32), reader)
    assert len(reader.read) == len(set(reader.read))
    assert not [key for key in reader.read if key.startswith(("layers.2.", "layers.3.", "norm."))]


def test_a_missing_tensor_is_named(whole: transformers.LlamaModel, llama_config: LlamaConfig) -> None:
    state = whole.state_dict()
    del state["layers.1.mlp.up_proj.weight"]
    with pytest.raises(WrongModelError, match=r"1 missing \(layers\.1\.mlp\.up_proj\.weight\)"):
        load_llama(build_llama(llama_config, dtype=torch.float32), state)


@pytest.mark.parametrize(
    "key", ["layers.0.mlp.up_proj.scale_weight", "scaled_fp8", "layers.4.mlp.up_proj.weight", "layers.20.x"]
)
def test_an_unexpected_tensor_is_named(key: str, whole: transformers.LlamaModel, llama_config: LlamaConfig) -> None:
    state = {f"model.{name}": value for name, value in whole.state_dict().items()}
    for name in (key, f"model.{key}"):
        with pytest.raises(WrongModelError, match=rf"1 unexpected \({name}\)"):
            load_llama(build_llama(llama_config, dtype=torch.float32), {**state, name: torch.zeros(1)})


def test_a_key_outside_the_prefix_never_stands_in_for_one_inside(
    whole: transformers.LlamaModel, llama_config: LlamaConfig
) -> None:
    state = {f"model.{name}": value for name, value in whole.state_dict().items()}
    state["layers.0.mlp.up_proj.weight"] = state.pop("model.layers.0.mlp.up_proj.weight")
    with pytest.raises(WrongModelError, match=r"1 missing .* 1 unexpected"):
        load_llama(build_llama(llama_config, dtype=torch.float32), state)


def test_another_size_is_named_with_both_shapes(whole: transformers.LlamaModel, llama_config: LlamaConfig) -> None:
    encoder = build_llama(replace(llama_config, ffn_size=64), dtype=torch.float32)
    with pytest.raises(WrongModelError, match=r"\[48, 32\], expected \[64, 32\]|\[32, 48\], expected \[32, 64\]"):
        load_llama(encoder, whole.state_dict())


def test_another_model_is_refused_with_what_it_holds(llama_config: LlamaConfig) -> None:
    with pytest.raises(WrongModelError, match=r"it has double_blocks\.0\.img_mod"):
        load_llama(
            build_llama(llama_config, dtype=torch.float32), {"double_blocks.0.img_mod.linear.weight": torch.zeros(1)}
        )


@pytest.mark.parametrize("skip_layers", [0, 4])
def test_a_model_without_layers_left_is_refused(skip_layers: int, llama_config: LlamaConfig) -> None:
    with pytest.raises(ConfigError, match=f"{skip_layers} skipped layers of 4"):
        build_llama(llama_config, dtype=torch.float32, skip_layers=skip_layers)


def test_fewer_skipped_layers_are_one_more_needed(llama_config: LlamaConfig) -> None:
    keys = {"embed_tokens.weight", "layers.2.x", "layers.3.x"}
    assert llama_layouts(llama_config, skip_layers=1).match(keys).keys() == {"embed_tokens.weight", "layers.2.x"}


def test_the_encoder_says_where_its_ids_go(llama_config: LlamaConfig) -> None:
    encoder = build_llama(llama_config, dtype=torch.float32)
    assert encoder.weights_device.type == "meta"
    assert encoder.num_rows == llama_config.vocab_size
