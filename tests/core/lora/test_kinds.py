"""Every form of a change against its published formula, made dense."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hyvideo_nodes.hyvideo_core.doctor import inspect
from hyvideo_nodes.hyvideo_core.errors import CorruptFileError
from hyvideo_nodes.hyvideo_core.loading import open_checkpoint
from hyvideo_nodes.hyvideo_core.lora import Attached, load_lora, open_lora, with_loras, with_merged_loras
from torch.nn.functional import linear

NAME = "double_blocks.1.img_mlp.fc1"
BASE = "lora_unet_double_blocks_1_img_mlp_fc1"
FUSED = "single_blocks.1.linear1"


@pytest.fixture
def apply(model, config, write):
    def apply(tensors, strength=1.0, attach=with_loras, **metadata):
        lora = open_lora(write(tensors, **metadata), config)
        return attach(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32), strength=strength)])

    return apply


def check_layer(layer, weight, bias) -> None:
    """The layer's weight, its output, and its output by rows are those of a dense weight."""
    torch.testing.assert_close(layer.dequantized(), weight, rtol=1e-5, atol=1e-6)
    x = torch.randn(2, 5, weight.shape[1])
    expected = linear(x, weight, bias)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        third = len(weight) // 3
        torch.testing.assert_close(
            layer(x, rows=(third, 2 * third)), expected[..., third : 2 * third], rtol=1e-5, atol=1e-5
        )


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) * 0.2


def low_rank(out: int, width: int, rank: int = 3):
    down, up = random(rank, width), random(out, rank)
    return {"lora_down.weight": down, "lora_up.weight": up}, up @ down, rank


def low_rank_with_middle(out: int, width: int):
    down, middle, up = random(3, width), random(4, 3), random(out, 4)
    parts = {"lora_down.weight": down[..., None, None], "lora_mid.weight": middle[..., None, None]}
    return parts | {"lora_up.weight": up[..., None, None]}, up @ middle @ down, 4


def loha(out: int, width: int):
    a1, b1, a2, b2 = random(out, 3), random(3, width), random(out, 3), random(3, width)
    return {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}, (a1 @ b1) * (a2 @ b2), 3


def loha_tucker(out: int, width: int):
    (a1, b1, t1), (a2, b2, t2) = ((random(3, out), random(3, width), random(3, 3, 1, 1)) for _ in range(2))
    first, second = (a.T @ t[..., 0, 0] @ b for a, b, t in ((a1, b1, t1), (a2, b2, t2)))
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_t1": t1, "hada_w2_a": a2, "hada_w2_b": b2, "hada_t2": t2}
    return parts, first * second, 3


def lokr_whole(out: int, width: int):
    w1, w2 = random(4, 8), random(out // 4, width // 8)
    return {"lokr_w1": w1, "lokr_w2": w2}, torch.kron(w1, w2), None


def lokr_right_decomposed(out: int, width: int):
    w1, a, b = random(4, 8), random(out // 4, 2), random(2, width // 8)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, torch.kron(w1, a @ b), 2


def lokr_both_decomposed(out: int, width: int):
    a1, b1, a2, b2 = random(4, 5), random(5, 8), random(out // 4, 2), random(2, width // 8)
    parts = {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2_a": a2, "lokr_w2_b": b2}
    return parts, torch.kron(a1 @ b1, a2 @ b2), 2


def lokr_tucker(out: int, width: int):
    w1, a, b, t = random(4, 8), random(2, out // 4), random(2, width // 8), random(2, 2, 1, 1)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": t}
    return parts, torch.kron(w1, a.T @ t[..., 0, 0] @ b), 2


MAKERS = {
    "LoRA": low_rank,
    "LoRA with a middle": low_rank_with_middle,
    "LoHa": loha,
    "LoHa, Tucker": loha_tucker,
    "LoKr, whole": lokr_whole,
    "LoKr, right decomposed": lokr_right_decomposed,
    "LoKr, both decomposed": lokr_both_decomposed,
    "LoKr, Tucker": lokr_tucker,
}


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("name", [NAME, FUSED])
@pytest.mark.parametrize("alpha", [None, 5.0])
def test_each_form_is_its_formula(kind, name, alpha, model, apply):
    plain = model.get_submodule(name)
    parts, change, rank = MAKERS[kind](*plain.weight.shape)
    tensors = {f"lora_unet_{name.replace('.', '_')}.{part}": tensor for part, tensor in parts.items()}
    if alpha is not None:
        tensors[f"lora_unet_{name.replace('.', '_')}.alpha"] = torch.tensor(alpha)
    # without alpha it is the rank; with both halves of a LoKr whole there is no rank to divide by
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    layer = apply(tensors, 0.7).get_submodule(name)
    check_layer(layer, plain.weight + 0.7 * scale * change, plain.bias)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_the_doctor_knows_a_file_of_any_form_as_a_lora(kind, model, write):
    parts, _, _ = MAKERS[kind](*model.get_submodule(NAME).weight.shape)
    tensors = {f"{BASE}.{part}": tensor for part, tensor in parts.items()} | {f"{BASE}.alpha": torch.tensor(2.0)}
    assert inspect(write(tensors).path).lora is not None


@pytest.mark.parametrize("kind", list(MAKERS))
def test_each_form_is_named_with_its_rank(kind, model, config, write):
    parts, _, rank = MAKERS[kind](*model.get_submodule(NAME).weight.shape)
    lora = open_lora(write({f"{BASE}.{part}": tensor for part, tensor in parts.items()}), config)
    assert lora.kinds == (kind.split(" ")[0].rstrip(","),)
    if "middle" not in kind and "Tucker" not in kind:
        assert lora.ranks == (() if rank is None else (rank,))


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr, whole"])
@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("name", [NAME, FUSED])
def test_dora_scales_the_changed_weight_to_its_lengths(kind, axis, strength, name, model, apply):
    plain = model.get_submodule(name)
    out, width = plain.weight.shape
    parts, change, _ = MAKERS[kind](out, width)
    magnitude = torch.rand(out, 1) + 0.5 if axis == "output" else torch.rand(1, width) + 0.5
    base = f"lora_unet_{name.replace('.', '_')}"
    tensors = {f"{base}.{part}": tensor for part, tensor in parts.items()} | {f"{base}.dora_scale": magnitude}
    changed = plain.weight + change
    changed = magnitude * changed / changed.norm(dim=1 if axis == "output" else 0, keepdim=True)
    expected = plain.weight + strength * (changed - plain.weight)
    check_layer(apply(tensors, strength).get_submodule(name), expected, plain.bias)
    merged = apply(tensors, strength, with_merged_loras).get_submodule(name)
    torch.testing.assert_close(merged.weight, expected, rtol=1e-5, atol=1e-6)


def test_dora_of_a_split_target_sees_its_own_rows(model, apply, config):
    plain, width = model.double_blocks[0].img_attn_qkv, config.hidden_size
    expected, tensors = plain.weight.clone(), {}
    for index, part in enumerate(("to_q", "to_k", "to_v")):
        down, up, magnitude = random(2, width), random(width, 2), torch.rand(1, width) + 0.5
        base = f"lora_transformer_transformer_blocks_0_attn_{part}"
        tensors |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up, f"{base}.dora_scale": magnitude}
        rows = slice(index * width, (index + 1) * width)
        changed = plain.weight[rows] + up @ down
        expected[rows] = magnitude * changed / changed.norm(dim=0, keepdim=True)
    check_layer(apply(tensors).double_blocks[0].img_attn_qkv, expected, plain.bias)


def test_pefts_magnitude_vector_is_one_length_for_each_output(model, apply):
    plain = model.get_submodule(NAME)
    parts, change, _ = low_rank(*plain.weight.shape)
    magnitude = torch.rand(len(plain.weight)) + 0.5
    tensors = {
        f"transformer.{NAME}.lora_A.default.weight": parts["lora_down.weight"],
        f"transformer.{NAME}.lora_B.default.weight": parts["lora_up.weight"],
        f"transformer.{NAME}.lora_magnitude_vector.default.weight": magnitude,
    }
    changed = plain.weight + change
    expected = magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
    check_layer(apply(tensors).get_submodule(NAME), expected, plain.bias)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_differences_of_weight_and_bias(strength, model, apply):
    plain = model.get_submodule(FUSED)
    difference, bias = random(*plain.weight.shape), random(len(plain.bias))
    tensors = {f"diffusion_model.{FUSED}.diff": difference, f"diffusion_model.{FUSED}.diff_b": bias}
    layer = apply(tensors, strength).get_submodule(FUSED)
    check_layer(layer, plain.weight + strength * difference, plain.bias + strength * bias)
    merged = apply(tensors, strength, with_merged_loras).get_submodule(FUSED)
    torch.testing.assert_close(merged.bias, plain.bias + strength * bias)


def test_a_bias_beside_factors_as_extracted_loras_have(model, apply):
    plain = model.get_submodule(NAME)
    parts, change, _ = low_rank(*plain.weight.shape)
    bias = random(len(plain.bias))
    tensors = {f"diffusion_model.double_blocks.1.img_mlp.0.{part}": tensor for part, tensor in parts.items()}
    tensors["diffusion_model.double_blocks.1.img_mlp.0.diff_b"] = bias
    check_layer(apply(tensors, 0.5).get_submodule(NAME), plain.weight + 0.5 * change, plain.bias + 0.5 * bias)


def test_a_bias_of_lora_b_is_scaled_like_its_weight(model, apply):
    plain = model.get_submodule(NAME)
    parts, change, rank = low_rank(*plain.weight.shape)
    bias = random(len(plain.bias))
    tensors = {
        f"{NAME}.lora_A.weight": parts["lora_down.weight"],
        f"{NAME}.lora_B.weight": parts["lora_up.weight"],
        f"{NAME}.lora_B.bias": bias,
        f"{NAME}.alpha": torch.tensor(6.0),
    }
    layer = apply(tensors).get_submodule(NAME)
    check_layer(layer, plain.weight + 6 / rank * change, plain.bias + 6 / rank * bias)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_a_replaced_weight(strength, model, apply):
    plain = model.get_submodule(FUSED)
    weight = random(*plain.weight.shape)
    layer = apply({f"diffusion_model.{FUSED}.set_weight": weight}, strength).get_submodule(FUSED)
    check_layer(layer, torch.lerp(plain.weight, weight, strength), plain.bias)


def test_norms_take_differences(model, apply):
    norm = "txt_in.individual_token_refiner.blocks.0.norm1"
    heads = "double_blocks.0.img_attn_q_norm"
    tensors = {
        f"diffusion_model.{norm}.diff": random(64),
        f"diffusion_model.{norm}.diff_b": random(64),
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": random(16),
    }
    before = model.get_submodule(norm).weight.clone()
    view = apply(tensors, 0.5)
    plain, changed = model.get_submodule(norm), view.get_submodule(norm)
    torch.testing.assert_close(changed.weight, before + 0.5 * tensors[f"diffusion_model.{norm}.diff"])
    torch.testing.assert_close(changed.bias, plain.bias + 0.5 * tensors[f"diffusion_model.{norm}.diff_b"])
    difference = tensors["diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff"]
    expected = model.get_submodule(heads).weight + 0.5 * difference
    torch.testing.assert_close(view.get_submodule(heads).weight, expected)
    assert torch.equal(plain.weight, before)


def test_rank_stabilized_loras_divide_by_the_root_of_the_rank(model, apply):
    plain = model.get_submodule(NAME)
    parts, change, rank = low_rank(*plain.weight.shape)
    tensors = {f"{BASE}.{part}": tensor for part, tensor in parts.items()} | {f"{BASE}.alpha": torch.tensor(2.0)}
    marks = ({"use_rslora": "true"}, {"ss_network_args": '{"rs_lora": "True"}'})
    for metadata in (*marks, {"lora_adapter_metadata": '{"transformer.use_rslora": true}'}):
        layer = apply(tensors, **metadata).get_submodule(NAME)
        torch.testing.assert_close(layer.dequantized(), plain.weight + 2 / math.sqrt(rank) * change)


def test_alpha_may_stand_in_the_metadata(model, apply):
    plain = model.get_submodule(NAME)
    parts, change, rank = low_rank(*plain.weight.shape)
    tensors = {f"transformer.{NAME}.{part}": tensor for part, tensor in parts.items()}
    settings = {"transformer.lora_alpha": 6, "text_encoder.lora_alpha": 99}
    layer = apply(tensors, lora_adapter_metadata=json.dumps(settings)).get_submodule(NAME)
    torch.testing.assert_close(layer.dequantized(), plain.weight + 6 / rank * change)
    settings["transformer.alpha_pattern"] = {"img_mlp.fc1": 9}
    layer = apply(tensors, lora_adapter_metadata=json.dumps(settings)).get_submodule(NAME)
    torch.testing.assert_close(layer.dequantized(), plain.weight + 9 / rank * change)


@pytest.mark.parametrize(("name", "is_read"), [("adapter_model.safetensors", True), ("style.safetensors", False)])
def test_pefts_settings_beside_its_weights_give_alpha(name, is_read, model, config, write, tmp_path):
    plain = model.get_submodule(NAME)
    parts, change, rank = low_rank(*plain.weight.shape)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": rank, "use_rslora": True}))
    lora = open_lora(write({f"transformer.{NAME}.{part}": tensor for part, tensor in parts.items()}, name), config)
    view = with_loras(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32))])
    expected = plain.weight + (6 / math.sqrt(rank) if is_read else 1) * change
    torch.testing.assert_close(view.get_submodule(NAME).dequantized(), expected)


def test_pefts_settings_in_a_folder_that_is_opened_as_one_give_alpha(model, config, write, tmp_path):
    plain = model.get_submodule(NAME)
    parts, change, rank = low_rank(*plain.weight.shape)
    write({f"base_model.model.{NAME}.{part}": tensor for part, tensor in parts.items()}, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": rank}))
    lora = open_lora(open_checkpoint(tmp_path), config)
    view = with_loras(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32))])
    torch.testing.assert_close(view.get_submodule(NAME).dequantized(), plain.weight + 6 / rank * change)


@pytest.mark.parametrize("text", ["[" * 50_000, "{", "[1]", '{"lora_alpha": "many"}', '{"lora_alpha": 1e999}'])
def test_settings_that_say_nothing_leave_the_plain_rule(text, model, apply):
    plain = model.get_submodule(NAME)
    parts, change, _ = low_rank(*plain.weight.shape)
    tensors = {f"transformer.{NAME}.{part}": tensor for part, tensor in parts.items()}
    layer = apply(tensors, lora_adapter_metadata=text).get_submodule(NAME)
    torch.testing.assert_close(layer.dequantized(), plain.weight + change)


def test_a_lora_stored_in_fp8_is_widened(model, apply):
    plain = model.get_submodule(NAME)
    parts, _, _ = low_rank(*plain.weight.shape)
    small = {part: tensor.to(torch.float8_e4m3fn) for part, tensor in parts.items()}
    layer = apply({f"{BASE}.{part}": tensor for part, tensor in small.items()}).get_submodule(NAME)
    change = small["lora_up.weight"].float() @ small["lora_down.weight"].float()
    torch.testing.assert_close(layer.dequantized(), plain.weight + change)


@torch.no_grad()
@pytest.mark.parametrize("is_conv", [True, False])
@pytest.mark.parametrize("attach", [with_loras, with_merged_loras])
def test_a_keyframe_lora_widens_the_patch_embedding(is_conv, attach, model, apply, config, inputs):
    channels, width = 2 * config.in_channels, config.hidden_size
    down, up = random(3, channels, 1, 2, 2), random(width, 3)
    tensors = {
        "diffusion_model.img_in.proj.lora_A.weight": down if is_conv else down.flatten(1),
        "diffusion_model.img_in.proj.lora_B.weight": up[..., None, None, None] if is_conv else up,
    }
    view = apply(tensors, 0.5, attach)
    assert (model.config.in_channels, view.config.in_channels) == (channels // 2, channels)
    latents = torch.randn(1, channels, 2, 4, 6)
    weight = torch.zeros(width, channels, 1, 2, 2)
    weight[:, : channels // 2] = model.img_in.proj.weight
    weight += 0.5 * (up @ down.flatten(1)).reshape(weight.shape)
    expected = torch.nn.functional.conv3d(latents, weight, model.img_in.proj.bias, stride=(1, 2, 2))
    torch.testing.assert_close(view.img_in(latents), expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert view(latents, *inputs[1:]).shape == (1, config.out_channels, 2, 4, 6)
    assert model.img_in.proj.weight.shape[1] == channels // 2


@torch.no_grad()
def test_a_narrow_lora_leaves_further_channels_of_the_patch_embedding_alone(model, config, write):
    wide, narrow = (
        {
            "img_in.proj.lora_A.weight": random(3, channels, 1, 2, 2),
            "img_in.proj.lora_B.weight": random(config.hidden_size, 3),
        }
        for channels in (2 * config.in_channels, config.in_channels)
    )
    first = open_lora(write(narrow, "narrow.safetensors"), config)
    second = open_lora(write(wide, "wide.safetensors"), first.widened)
    both = [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32)) for lora in (first, second)]
    latents = torch.randn(1, 2 * config.in_channels, 1, 4, 4)
    change = narrow["img_in.proj.lora_B.weight"] @ narrow["img_in.proj.lora_A.weight"].flatten(1)
    torch.testing.assert_close(
        with_loras(model, both).img_in(latents) - with_loras(model, both[1:]).img_in(latents),
        torch.nn.functional.conv3d(
            latents[:, : config.in_channels], change.reshape(model.img_in.proj.weight.shape), stride=(1, 2, 2)
        )
        .flatten(2)
        .transpose(1, 2),
        rtol=1e-4,
        atol=1e-5,
    )


def test_two_kinds_for_one_layer_are_refused(model, config, write):
    out, width = model.get_submodule(NAME).weight.shape
    parts = {**low_rank(out, width)[0], **loha(out, width)[0]}
    with pytest.raises(CorruptFileError, match="has a LoRA and a LoHa at once"):
        open_lora(write({f"{BASE}.{part}": tensor for part, tensor in parts.items()}), config)
