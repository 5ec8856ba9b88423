"""Every way of storing linear weights gives the numbers that its formula says, and stays small in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import LlamaConfig
from hyvideo_nodes.hyvideo_core.errors import CorruptFileError, WrongModelError
from hyvideo_nodes.hyvideo_core.loading import (
    build_llama_encoder,
    build_transformer,
    check_complete,
    detect_llama,
    detect_transformer,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.loading.key_maps import DIFFUSERS
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear, Nvfp4Linear, StoredLinear
from hyvideo_nodes.hyvideo_core.text_encoders import build_llama
from safetensors import safe_open
from safetensors.torch import load_file, save_file

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
needs_pickles = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6),
    reason="pickles are only opened on PyTorch 2.6 or newer",
)


class Source:
    """The golden model's weights, and what may become of them in a file."""

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(folder / "dit_weights.safetensors")
        with safe_open(folder / "dit_weights.safetensors", "pt") as file:
            self.metadata = {"config": (file.metadata() or {})["config"]}
        golden = load_file(folder / "dit_fp8.safetensors")
        self.official = {key.removeprefix("fp8."): value for key, value in golden.items() if key.startswith("fp8.")}
        self.scales = {key.removeprefix("map."): value for key, value in golden.items() if key.startswith("map.")}

    @property
    def layers(self) -> list[str]:
        """Names of the linear layers in the blocks."""
        return list(self.scales)

    def scaled(self, dtype: torch.dtype = E4M3) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Weight and scale of each layer, made as quantizing scripts do it."""
        made = {}
        for layer in self.layers:
            weight = self.weights[f"{layer}.weight"]
            scale = weight.abs().max() / torch.finfo(dtype).max
            made[layer] = ((weight / scale).to(dtype), scale)
        return made

    def with_layers(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**self.weights, **tensors}


@pytest.fixture
def source(golden_dir):
    return Source(golden_dir)


@pytest.fixture
def write(tmp_path, source):
    """Saves tensors under a prefix, with the golden configuration; gives the path."""

    def write(tensors, prefix="", name="m.safetensors", **metadata):
        named = {prefix + key: value.contiguous().clone() for key, value in tensors.items()}
        save_file(named, tmp_path / name, metadata={**source.metadata, **metadata})
        return tmp_path / name

    return write


def build(path, dtype=torch.float32):
    detected = detect_transformer(open_checkpoint(path))
    check_complete(detected)
    return build_transformer(detected, dtype=dtype)


def stored(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, StoredLinear)}


def assert_weights(model, expected, plain):
    """The layers' wide weights, and every other tensor bit for bit."""
    layers = stored(model)
    assert layers.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(layers[name].dequantized(), weight), name
    small = {f"{name}.{own}" for name in layers for own in ("weight", "scale", "block_scale")}
    state = model.state_dict()
    others = state.keys() - small
    assert others == plain.keys() - {f"{name}.weight" for name in layers}
    assert all(torch.equal(state[name], plain[name]) for name in others)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_weights_that_were_cast_are_used_as_they_are(dtype, source, write):
    cast = {f"{layer}.weight": source.weights[f"{layer}.weight"].to(dtype) for layer in source.layers}
    model = build(write(source.with_layers(cast)))
    assert_weights(model, {layer: cast[f"{layer}.weight"].float() for layer in source.layers}, source.weights)
    assert {layer.weight.dtype for layer in stored(model).values()} == {dtype}
    assert all(layer.scale is None for layer in stored(model).values())


def test_norms_biases_and_convolutions_in_fp8_are_widened(source, write):
    cast = {key: value.to(E4M3) for key, value in source.weights.items()}
    model = build(write(cast), torch.bfloat16)
    assert {value.dtype for key, value in model.state_dict().items() if value.dtype != E4M3} == {torch.bfloat16}
    assert torch.equal(model.img_in.proj.weight, cast["img_in.proj.weight"].bfloat16())
    assert all(value.ndim == 2 for value in model.state_dict().values() if value.dtype == E4M3)


@pytest.fixture
def official_file(tmp_path, source):
    """Tencent's layout: fp8 weights in a pickle, their scales in a second one."""

    def save(scales, name="mp_rank_00_model_states_fp8"):
        tensors = source.with_layers(source.official)
        torch.save({"module": tensors, "config": json.loads(source.metadata["config"])}, tmp_path / f"{name}.pt")
        if scales is not None:
            torch.save(scales, tmp_path / f"{name}_map.pt")
        return tmp_path / f"{name}.pt"

    return save


@needs_pickles
@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("name", ["mp_rank_00_model_states_fp8", "renamed"])
def test_official_scales_come_from_the_map_beside_the_file(name, as_number, source, official_file):
    scales = {key: value.item() for key, value in source.scales.items()} if as_number else source.scales
    model = build(official_file(scales, name))
    expected = {
        layer: source.official[f"{layer}.weight"].float() * scale.float() for layer, scale in source.scales.items()
    }
    assert_weights(model, expected, source.weights)


def test_official_weights_in_bfloat16_equal_the_reference(golden_dir):
    case = load_file(golden_dir / "fp8_linear.safetensors")
    layer = "double_blocks.0.img_attn_qkv"
    weight, scale = case[f"{layer}.weight_fp8"], case[f"{layer}.scale_fp32"]
    small = Fp8Linear(
        weight.shape[1],
        weight.shape[0],
        has_bias=True,
        weight_dtype=E4M3,
        compute_dtype=torch.bfloat16,
        scaled=True,
    )
    bias = case[f"{layer}.bias_bf16"]
    small.load_state_dict({"weight": weight, "scale": scale, "bias": bias}, assign=True)
    assert torch.equal(small.dequantized(), case[f"{layer}.weight_dequant_bf16"])
    assert torch.equal(small(case[f"{layer}.x_bf16"]), case[f"{layer}.y_bf16"])


@needs_pickles
@pytest.mark.parametrize("name", ["mp_rank_00_model_states_fp8", "renamed"])
def test_official_weights_without_their_map_are_refused_by_its_name(name, official_file):
    with pytest.raises(WrongModelError, match=rf"holds scaled fp8 weights.*put {name}_map\.pt from the same release"):
        build(official_file(None, name))


@needs_pickles
def test_a_map_of_another_model_is_refused(source, official_file):
    scales = dict(list(source.scales.items())[:-2])
    with pytest.raises(WrongModelError, match=r"has scales for 27 layers.* has 29 in fp8 \(27 of the same name\)"):
        build(official_file(scales))


@needs_pickles
def test_a_map_that_is_no_table_of_scales_is_refused(official_file):
    with pytest.raises(CorruptFileError, match=r"_map\.pt is not a table of scales"):
        build(official_file({"double_blocks.0.img_attn_qkv": "one"}))


@needs_pickles
def test_cast_weights_under_the_name_of_the_scaled_file_never_take_its_scales(source, write, official_file):
    official_file(source.scales)
    cast = {f"{layer}.weight": source.weights[f"{layer}.weight"].to(E4M3) for layer in source.layers}
    model = build(write(source.with_layers(cast), name="mp_rank_00_model_states_fp8.safetensors"))
    assert_weights(model, {layer: cast[f"{layer}.weight"].float() for layer in source.layers}, source.weights)


def test_a_map_that_is_not_needed_is_not_even_opened(source, write, tmp_path):
    (tmp_path / "m_map.pt").write_bytes(b"damaged")
    cast = {f"{layer}.weight": source.weights[f"{layer}.weight"].to(E4M3) for layer in source.layers}
    assert "without scales" in detect_transformer(open_checkpoint(write(source.with_layers(cast)))).policy.label


@needs_pickles
def test_cast_weights_in_a_pickle_ignore_a_map_of_something_else(source, tmp_path):
    cast = {f"{layer}.weight": source.weights[f"{layer}.weight"].to(E4M3) for layer in source.layers}
    tensors = {"module": source.with_layers(cast), "config": json.loads(source.metadata["config"])}
    torch.save(tensors, tmp_path / "m.pt")
    torch.save({"another.layer": torch.ones(1)}, tmp_path / "m_map.pt")
    expected = {layer: cast[f"{layer}.weight"].float() for layer in source.layers}
    assert_weights(build(tmp_path / "m.pt"), expected, source.weights)


def test_scaled_weights_without_scales_are_told_from_their_numbers(source, write):
    with pytest.raises(WrongModelError, match=r"scaled fp8 weights.*m_map\.pt"):
        build(write(source.with_layers(source.official)))


@pytest.mark.parametrize("prefix", ["", "model.model.", "model.diffusion_model."])
@pytest.mark.parametrize("marker", [torch.zeros(2, dtype=E4M3), torch.zeros(0, dtype=E4M3), torch.zeros(1)])
def test_comfyuis_older_layout(marker, prefix, source, write):
    tensors, expected = {"scaled_fp8": marker}, {}
    for layer, (weight, scale) in source.scaled().items():
        tensors |= {f"{layer}.weight": weight, f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(1)}
        expected[layer] = weight.float() * scale
    assert_weights(build(write(source.with_layers(tensors), prefix)), expected, source.weights)


def test_a_scale_for_each_row(source, write):
    tensors, expected = {}, {}
    for layer in source.layers:
        weight = source.weights[f"{layer}.weight"]
        scale = weight.abs().amax(1, keepdim=True) / 448
        tensors |= {f"{layer}.weight": (weight / scale).to(E4M3), f"{layer}.fp8_scale": scale}
        expected[layer] = (weight / scale).to(E4M3).float() * scale
    model = build(write(source.with_layers(tensors)))
    assert_weights(model, expected, source.weights)
    layer = model.single_blocks[0].linear1
    x = torch.randn(3, layer.in_features)
    assert torch.allclose(layer(x, rows=(64, 192)), layer(x)[:, 64:192], atol=1e-5)


def test_a_scale_of_a_layer_that_does_not_exist_is_a_stray(source, write):
    tensors = {}
    for layer, (weight, scale) in source.scaled().items():
        tensors |= {f"{layer}.weight": weight, f"{layer}.scale_weight": scale}
    path = write(source.with_layers(tensors | {"single_blocks.9.linear1.scale_weight": torch.ones(1)}))
    with pytest.raises(WrongModelError, match=r"has 1 unexpected tensor: single_blocks\.9\.linear1\.scale_weight"):
        build(path)


def test_a_missing_scale_is_refused(source, write):
    tensors = {}
    for layer, (weight, scale) in source.scaled().items():
        tensors |= {f"{layer}.weight": weight, f"{layer}.scale_weight": scale}
    del tensors["single_blocks.1.linear2.scale_weight"]
    with pytest.raises(WrongModelError, match=r"lacks the scales of 1 of them, such as single_blocks\.1\.linear2"):
        build(write(source.with_layers(tensors)))


def test_a_scale_of_a_wrong_size_is_refused(source, write):
    tensors = {}
    for layer, (weight, scale) in source.scaled().items():
        tensors |= {f"{layer}.weight": weight, f"{layer}.scale_weight": scale.repeat(3)}
    with pytest.raises(WrongModelError, match=r"has the shape \[3\], expected one number or"):
        build(write(source.with_layers(tensors)))


def test_scales_of_split_weights_become_scales_of_rows(source, write):
    """In diffusers' layout q, k and v have a scale each, and halves of the last modulation change places."""
    tensors, expected = {}, {}
    layers = [*source.layers, "final_layer.adaLN_modulation.1"]
    for key, weight in source.weights.items():
        parts = DIFFUSERS.sources(key)
        if DIFFUSERS.swapped_halves is not None and key.startswith(DIFFUSERS.swapped_halves):
            weight = torch.cat(weight.chunk(2)[::-1])
        sizes = [64] * (len(parts) - 1)
        for name, part in zip(parts, weight.split([*sizes, len(weight) - sum(sizes)]), strict=True):
            tensors[name] = part
            if key.removesuffix(".weight") in layers and key.endswith(".weight"):
                scale = part.abs().max() / 448
                tensors |= {name: (part / scale).to(E4M3), name.removesuffix("weight") + "weight_scale": scale}
                expected.setdefault(key.removesuffix(".weight"), []).append(tensors[name].float() * scale)
    joined = {layer: torch.cat(parts) for layer, parts in expected.items()}
    joined["final_layer.adaLN_modulation.1"] = torch.cat(joined["final_layer.adaLN_modulation.1"].chunk(2)[::-1])
    model = build(write(tensors))
    assert_weights(model, joined, source.weights)
    assert model.double_blocks[0].img_attn_qkv.scale.shape == (192, 1)
    assert model.double_blocks[0].img_attn_proj.scale.shape == (1,)


def test_parts_of_several_dtypes_are_joined_in_the_wider_one(source, write):
    tensors, cast = {}, {}
    for key, weight in source.weights.items():
        parts = DIFFUSERS.sources(key)
        if DIFFUSERS.swapped_halves is not None and key.startswith(DIFFUSERS.swapped_halves):
            weight = torch.cat(weight.chunk(2)[::-1])
        sizes = [64] * (len(parts) - 1)
        tensors |= dict(zip(parts, weight.split([*sizes, len(weight) - sum(sizes)]), strict=True))
    name = "transformer_blocks.0.attn.to_q.weight"
    cast = tensors[name].to(E4M3)
    model = build(write(tensors | {name: cast}))
    whole = model.double_blocks[0].img_attn_qkv.dequantized()
    assert torch.equal(whole[:64], cast.float())
    assert torch.equal(whole[64:], source.weights["double_blocks.0.img_attn_qkv.weight"][64:])


def mark(**words):
    return torch.tensor(list(json.dumps(words).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("place", ["tensors", "metadata", "metadata with the prefix"])
def test_comfyuis_newer_layout(place, dtype, source, write):
    prefix, name = "model.diffusion_model.", str(dtype).removeprefix("torch.")
    tensors, expected, layers = {}, {}, {}
    for layer, (weight, scale) in source.scaled(dtype).items():
        tensors |= {f"{layer}.weight": weight, f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.ones(())}
        if place == "tensors":
            tensors[f"{layer}.comfy_quant"] = mark(format=name, full_precision_matrix_mult=True)
        layers[prefix + layer if place.endswith("prefix") else layer] = {"format": name}
        expected[layer] = weight.float() * scale
    metadata = {} if place == "tensors" else {"_quantization_metadata": json.dumps({"layers": layers})}
    path = write(source.with_layers(tensors), prefix, **metadata)
    assert_weights(build(path), expected, source.weights)
    assert detect_transformer(open_checkpoint(path)).policy.label == f"ComfyUI quantized: 29 layers {name}"


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def to_nvfp4(weight):
    """Packed bytes, block scales in order, the tensor's scale, and what they stand for."""
    scale = weight.abs().max() / (448 * 6)
    blocks = weight.unflatten(1, (-1, 16))
    block_scales = (blocks.abs().amax(-1) / 6 / scale).clamp(max=448).to(E4M3)
    steps = (block_scales.float() * scale).unsqueeze(-1)
    wanted = (blocks / steps).nan_to_num()
    codes = (wanted.abs().unsqueeze(-1) - E2M1).abs().argmin(-1)
    values = E2M1[codes].copysign(wanted)
    codes = (codes + 8 * (values.signbit())).flatten(1).to(torch.uint8)
    packed = codes[:, 0::2] * 16 + codes[:, 1::2]
    return packed, block_scales, scale, (values * steps).flatten(1)


def tiled(scales):
    """Block scales one by one to where tensor cores look for them."""
    rows, columns = scales.shape
    down, across = (rows + 127) // 128, (columns + 3) // 4
    flat = torch.zeros(down * across * 512)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * across + column // 4
            flat[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = scales[row, column].float()
    return flat.to(E4M3).reshape(down * 128, across * 4)


@pytest.mark.parametrize("is_tiled", [True, False])
def test_nvfp4_is_widened_in_both_orders_of_its_scales(is_tiled, source, write):
    tensors, expected = {}, {}
    for layer in source.layers:
        packed, blocks, scale, expected[layer] = to_nvfp4(source.weights[f"{layer}.weight"])
        tensors |= {
            f"{layer}.weight": packed,
            f"{layer}.weight_scale": tiled(blocks) if is_tiled else blocks,
            f"{layer}.weight_scale_2": scale,
            f"{layer}.comfy_quant": mark(format="nvfp4"),
        }
    model = build(write(source.with_layers(tensors)))
    layers = stored(model)
    assert {type(layer) for layer in layers.values()} == {Nvfp4Linear}
    for name, weight in expected.items():
        assert torch.allclose(layers[name].dequantized(), weight, rtol=1e-6, atol=0), name
        assert torch.equal(layers[name].dequantized((8, 24)), layers[name].dequantized()[8:24])
        assert layers[name].weight.numel() == weight.numel() // 2


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"format": "mxfp8"}, WrongModelError, r"has 1 layer stored as mxfp8, which is not read"),
        ({}, WrongModelError, "stored as None, which is not read"),
        ({"format": "nvfp4"}, CorruptFileError, "marks single_blocks.0.linear1 as nvfp4 and lacks its weight_scale_2"),
    ],
)
def test_formats_that_are_not_read_are_refused_by_name(words, error, message, source, write):
    weight, scale = source.scaled()["single_blocks.0.linear1"]
    tensors = {"weight": weight, "weight_scale": scale, "comfy_quant": mark(**words)}
    named = {f"single_blocks.0.linear1.{own}": value for own, value in tensors.items()}
    with pytest.raises(error, match=message):
        build(write(source.with_layers(named)))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_marks_that_are_not_json_are_refused(content, source, write):
    damaged = {"single_blocks.0.linear1.comfy_quant": torch.tensor(list(content), dtype=torch.uint8)}
    with pytest.raises(CorruptFileError, match=r"single_blocks\.0\.linear1\.comfy_quant is not"):
        build(write(source.with_layers(damaged)))


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": 5}', '{"layers": {"single_blocks.0.linear1": 5}}'])
def test_metadata_that_lists_no_layers_is_refused(text, source, write):
    with pytest.raises(CorruptFileError, match="_quantization_metadata"):
        build(write(source.weights, _quantization_metadata=text))


@pytest.fixture
def llama_weights():
    sizes = LlamaConfig(vocab_size=20, hidden_size=32, ffn_size=48, num_layers=4, num_heads=4, num_kv_heads=2)
    return build_llama(sizes, dtype=torch.float32, device="cpu", skip_layers=1).model.state_dict()


@pytest.mark.parametrize("prefix", ["model.", "language_model.model."])
@pytest.mark.parametrize("layout", ["scaled_fp8", "comfy_quant", "cast"])
def test_the_language_model_keeps_fp8_in_memory(layout, prefix, llama_weights, tmp_path):
    tensors, wide = {}, {}
    for key, weight in llama_weights.items():
        tensors[key] = wide[key] = weight
        if weight.ndim == 2 and "embed" not in key:
            scale = weight.abs().max() / 448 if layout != "cast" else torch.ones(())
            tensors[key], base = (weight / scale).to(E4M3), key.removesuffix("weight")
            wide[key] = tensors[key].float() * scale
            if layout == "scaled_fp8":
                tensors[base + "scale_weight"] = scale
            if layout == "comfy_quant":
                tensors |= {base + "weight_scale": scale, base + "comfy_quant": mark(format="float8_e4m3fn")}
    named = {prefix + key: value.clone() for key, value in tensors.items()}
    if layout == "scaled_fp8":
        named["scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    encoders = []
    for name, content in (("small", named), ("wide", {prefix + key: value.clone() for key, value in wide.items()})):
        path = tmp_path / f"{name}.safetensors"
        save_file(content, path, metadata={"config": json.dumps({"num_attention_heads": 4})})
        checkpoint = open_checkpoint(path)
        encoders.append(build_llama_encoder(checkpoint, detect_llama(checkpoint), dtype=torch.float32))
    small, expected = encoders
    assert len(stored(small)) == 7 * len(small.model.layers)
    assert small.model.layers[0].mlp.up_proj.weight.dtype == E4M3
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.allclose(small(ids), expected(ids), atol=1e-5)
