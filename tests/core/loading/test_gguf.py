"""GGUF files: what is recognised, what is put back in order, what is refused and in which words."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFEndian, GGUFWriter, quants
from hyvideo_nodes.hyvideo_core.config import LlamaConfig, tiny
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, CorruptFileError, WrongModelError
from hyvideo_nodes.hyvideo_core.loading import (
    build_llama_encoder,
    build_transformer,
    detect_llama,
    detect_transformer,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.loading.gguf import deinterleave_heads
from hyvideo_nodes.hyvideo_core.loading.key_maps import DIFFUSERS, OFFICIAL
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.quantization.gguf_blocks import FORMATS, GgufLinear
from hyvideo_nodes.hyvideo_core.text_encoders import build_llama
from safetensors.torch import load_file

from ..quantization.block_samples import HALVES, random_blocks
from .llama_names import llama_cpp_name
from .writers import Blocks, Stored, gguf, in_blocks, in_dialect, single


@pytest.fixture(scope="module")
def golden_weights(golden_dir):
    return load_file(golden_dir / "dit_weights.safetensors")


@pytest.fixture(scope="module")
def golden_config(golden_dir):
    return dict(open_checkpoint(golden_dir / "dit_weights.safetensors").config)


@pytest.fixture(scope="module")
def wide_weights():
    """A transformer whose matrices all have rows of whole K blocks."""
    torch.manual_seed(3)
    sizes = tiny(hidden_size=256, num_heads=2, rope_axes=(16, 56, 56), text_width=256, pooled_width=256)
    return {name: tensor.detach() for name, tensor in Transformer(sizes).state_dict().items()}


def numbers(stored):
    """What a file holds, in numbers."""
    return {
        name: torch.from_numpy(quants.dequantize(tensor.rows, GGMLQuantizationType[tensor.block]))
        if isinstance(tensor, Blocks)
        else tensor.float()
        for name, tensor in stored.items()
    }


def model_of(path, dtype=torch.float32):
    return build_transformer(detect_transformer(open_checkpoint(path)), dtype=dtype)


@torch.no_grad()
def velocity(model):
    torch.manual_seed(1)
    config = model.config
    latents, text = torch.randn(1, config.in_channels, 2, 4, 4), torch.randn(1, 5, config.text_width)
    return model(latents, torch.tensor([500.0]), [text], torch.randn(1, config.pooled_width), torch.tensor([6000.0]))


def assert_same(blocks, plain):
    """The same numbers, bit for bit; their sums may be taken in another order, which depends on where they lie."""
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert torch.equal(blocks.get_submodule(name).dequantized(), module.weight), name
    expected = velocity(plain)
    assert (velocity(blocks) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("dialect", [OFFICIAL, DIFFUSERS], ids=["official", "diffusers"])
@pytest.mark.parametrize("block", HALVES)
def test_a_model_of_blocks_computes_as_one_of_the_same_numbers(block, dialect, wide_weights, tmp_path):
    stored = {}
    for index, (name, tensor) in enumerate(in_dialect(wide_weights, dialect).items()):
        rows = random_blocks(block, *tensor.shape, seed=index).numpy() if tensor.ndim == 2 else None
        stored[name] = tensor if rows is None else Blocks(rows, block)
    blocks = model_of(gguf(Stored(stored), tmp_path))
    assert not any(isinstance(module, torch.nn.Linear) for module in blocks.modules())
    assert_same(blocks, model_of(single(Stored(numbers(stored)), tmp_path)))


def test_parts_in_several_formats_make_one_layer(wide_weights, tmp_path):
    """As quantizers do, which give some tensors more bits than others."""
    named = in_dialect(wide_weights, DIFFUSERS)
    formats = ["Q4_K", "Q4_K", "Q6_K", "BF16", "Q5_0", "F16", "F32"]
    matrices = [name for name, tensor in named.items() if tensor.ndim == 2]
    stored = dict(named)
    for index, name in enumerate(matrices):
        block = formats[index % len(formats)]
        stored[name] = Blocks(random_blocks(block, *named[name].shape, seed=index).numpy(), block)
    model = model_of(gguf(Stored(stored), tmp_path))
    assert any(len(set(layer.formats)) > 1 for layer in model.modules() if isinstance(layer, GgufLinear))
    assert_same(model, model_of(single(Stored(numbers(stored)), tmp_path)))


@pytest.mark.parametrize("architecture", ["hyvid", "pig", "cow", "wan", None])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_architecture_that_a_file_claims_does_not_matter(
    architecture, prefix, golden_weights, golden_config, tmp_path
):
    named = in_dialect(golden_weights, OFFICIAL, prefix)
    detected = detect_transformer(open_checkpoint(gguf(Stored(named, golden_config), tmp_path, architecture)))
    assert (detected.view.prefix, detected.config.rope_axes) == (prefix, (4, 6, 6))


def test_text_entries_are_metadata_and_the_config_is_read(golden_weights, golden_config, tmp_path):
    stored = Stored(in_blocks("Q8_0")(golden_weights), golden_config, {"general.name": "a name"})
    checkpoint = open_checkpoint(gguf(stored, tmp_path))
    assert checkpoint.config == golden_config
    assert checkpoint.metadata["general.name"] == "a name"
    assert checkpoint.metadata["general.architecture"] == "hyvid"
    info = checkpoint.tensors["double_blocks.0.img_mlp.fc2.weight"]
    assert (info.shape, info.dtype, info.block) == ((64, 256), torch.uint8, "Q8_0")
    assert checkpoint.tensors["img_in.proj.weight"].shape == (64, 4, 1, 2, 2)
    assert detect_transformer(checkpoint).policy.label == "GGUF Q8_0"


def test_a_shape_that_was_flattened_is_restored(golden_weights, golden_config, tmp_path):
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "hyvid")
    writer.add_string("config", json.dumps(golden_config))
    writer.add_array("comfy.gguf.orig_shape.img_in.proj.weight", [64, 4, 1, 2, 2])
    for name, tensor in golden_weights.items():
        writer.add_tensor(name, tensor.flatten(1).numpy() if tensor.ndim == 5 else tensor.numpy())
    finish(writer)
    assert torch.equal(model_of(path).img_in.proj.weight, golden_weights["img_in.proj.weight"])


def test_a_flattened_convolution_in_blocks_is_restored(golden_config, golden_weights, tmp_path):
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "hyvid")
    writer.add_string("config", json.dumps(golden_config))
    writer.add_array("comfy.gguf.orig_shape.img_in.proj.weight", [64, 8, 1, 2, 2])
    flat = quants.quantize(torch.randn(64, 32).numpy(), GGMLQuantizationType.Q8_0)
    for name, tensor in golden_weights.items():
        if name == "img_in.proj.weight":
            writer.add_tensor(name, flat, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor.numpy())
    finish(writer)
    convolution = model_of(path).img_in.proj.weight
    assert convolution.shape == (64, 8, 1, 2, 2)
    assert torch.equal(convolution.flatten(1), torch.from_numpy(quants.dequantize(flat, GGMLQuantizationType.Q8_0)))


def test_biases_in_blocks_are_widened_on_loading(golden_weights, golden_config, tmp_path):
    stored = {
        name: Blocks(quants.quantize(tensor.numpy(), GGMLQuantizationType.Q8_0), "Q8_0")
        if tensor.ndim < 3 and tensor.shape[-1] % 32 == 0
        else tensor
        for name, tensor in golden_weights.items()
    }
    model = model_of(gguf(Stored(stored, golden_config), tmp_path))
    expected = numbers(stored)
    name = "double_blocks.0.img_attn_qkv"
    assert isinstance(stored[f"{name}.bias"], Blocks)
    assert torch.equal(model.get_submodule(name).bias, expected[f"{name}.bias"])


def test_a_part_of_a_split_file_is_named(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "hyvid")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("x", np.zeros(4, dtype=np.float32))
    finish(writer)
    with pytest.raises(CheckpointError, match="one of 3 parts of a model"):
        open_checkpoint(tmp_path / "m.gguf")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_any_alignment_is_kept(alignment, golden_weights, golden_config, tmp_path):
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "hyvid")
    writer.add_custom_alignment(alignment)
    writer.add_string("config", json.dumps(golden_config))
    for name, tensor in golden_weights.items():
        writer.add_tensor(name, tensor.numpy())
    finish(writer)
    loaded = model_of(path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in golden_weights.items())


def test_numbers_that_lie_at_odd_bytes_are_read(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    # version, tensors, entries; an alignment of 1; a tensor of 2 axes at offset 1
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("general.alignment") + struct.pack("<II", 4, 1)
    header += text("x") + struct.pack("<IQQIQ", 2, 3, 2, 0, 1)
    path = tmp_path / "m.gguf"
    path.write_bytes(header + b"?" * (1 + len(header) % 2) + numbers.tobytes() + b"?")
    with open_checkpoint(path).reading() as read:
        tensor = read("x")
    assert tensor.shape == (2, 3)


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def test_weights_read_in_inference_mode_can_be_trained(golden_weights, golden_config, tmp_path):
    path = gguf(Stored(golden_weights, golden_config), tmp_path)
    with torch.inference_mode():
        model = model_of(path)
    assert not any(parameter.is_inference() for parameter in model.parameters())


LLAMA = LlamaConfig(vocab_size=40, hidden_size=256, ffn_size=512, num_layers=4, num_heads=8, num_kv_heads=2)


@pytest.fixture
def llama_weights():
    weights = dict(build_llama(LLAMA, dtype=torch.float32, device="cpu", skip_layers=1).model.state_dict())
    last = {name.replace("layers.2.", "layers.3."): tensor.clone() for name, tensor in weights.items()}
    return {**last, **weights, "norm.weight": torch.ones(256), "lm_head.weight": torch.zeros(40, 256)}


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows as llama.cpp stores them: of each head, row i of its first half, then row i of its second."""
    half = len(weight) // num_heads // 2
    order = [head * 2 * half + side * half + i for head in range(num_heads) for i in range(half) for side in range(2)]
    return weight[torch.tensor(order)]


def write_llama(weights, path, block="F32", **extra):
    writer = GGUFWriter(path, "llama")
    writer.add_head_count(LLAMA.num_heads)
    writer.add_head_count_kv(LLAMA.num_kv_heads)
    writer.add_rope_freq_base(LLAMA.rope_theta)
    writer.add_layer_norm_rms_eps(LLAMA.rms_eps)
    writer.add_token_list([f"token {index}" for index in range(500)])
    writer.add_token_merges([f"{index} x" for index in range(500)])
    writer.add_token_scores([float(index) for index in range(500)])
    for name, tensor in {**weights, **extra}.items():
        if name.endswith("q_proj.weight"):
            tensor = interleaved(tensor, LLAMA.num_heads)
        if name.endswith("k_proj.weight"):
            tensor = interleaved(tensor, LLAMA.num_kv_heads)
        stored = llama_cpp_name(name)
        if tensor.ndim == 2:
            kind = GGMLQuantizationType[block]
            writer.add_tensor(stored, quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, tensor.numpy())
    finish(writer)
    return open_checkpoint(path)


@torch.no_grad()
def states(encoder):
    return encoder(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]))


@pytest.mark.parametrize("block", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_a_language_model_computes_as_its_safetensors(block, llama_weights, tmp_path):
    checkpoint = write_llama(llama_weights, tmp_path / "m.gguf", block)
    assert detect_llama(checkpoint) == LLAMA
    encoder = build_llama_encoder(checkpoint, LLAMA, dtype=torch.float32)
    kind = GGMLQuantizationType[block]
    rounded = {
        f"model.{name}": torch.from_numpy(quants.dequantize(quants.quantize(tensor.numpy(), kind), kind))
        if tensor.ndim == 2
        else tensor
        for name, tensor in llama_weights.items()
    }
    heads = {"num_attention_heads": LLAMA.num_heads}
    plain = open_checkpoint(single(Stored(rounded, heads), tmp_path))
    expected = states(build_llama_encoder(plain, LLAMA, dtype=torch.float32))
    assert torch.allclose(states(encoder), expected, rtol=1e-5, atol=1e-6)
    is_block = block in ("Q8_0", "Q4_1")
    assert isinstance(encoder.model.layers[0].self_attn.q_proj, GgufLinear) == is_block
    assert encoder.model.embed_tokens.weight.dtype == torch.float32


def test_rows_are_put_back_in_order():
    rows = torch.arange(24).reshape(24, 1)
    assert deinterleave_heads(interleaved(rows, 3), 3).flatten().tolist() == list(range(24))


def test_a_language_model_of_scaled_positions_is_refused(llama_weights, tmp_path):
    checkpoint = write_llama(llama_weights, tmp_path / "m.gguf", **{"rope_freqs.weight": torch.ones(16)})
    with pytest.raises(WrongModelError, match="scaled positions"):
        detect_llama(checkpoint)


def test_a_language_model_without_its_number_of_heads_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), dtype=np.float32))
    finish(writer)
    with pytest.raises(CheckpointError, match=r"gives None attention heads for .*q_proj"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_clip_in_place_of_a_transformer_is_named(llama_weights, tmp_path):
    with pytest.raises(WrongModelError, match=r"m\.gguf is a Llama language model; expected a HunyuanVideo transform"):
        detect_transformer(write_llama(llama_weights, tmp_path / "m.gguf"))


def test_without_the_package_it_is_named(golden_weights, tmp_path, monkeypatch):
    path = gguf(Stored(golden_weights), tmp_path)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(CheckpointError, match=r"run 'pip install gguf'"):
        open_checkpoint(path)


@pytest.mark.parametrize("block", ["IQ2_XXS", "TQ1_0", "Q8_K"])
def test_formats_that_are_not_read_are_named(block, tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "hyvid")
    kind = GGMLQuantizationType[block]
    width = {"IQ2_XXS": 66, "TQ1_0": 54, "Q8_K": 292}[block]
    writer.add_tensor("x.weight", np.zeros((4, width), dtype=np.uint8), raw_dtype=kind)
    finish(writer)
    with pytest.raises(CheckpointError, match=rf"x\.weight is stored as {block}, which is not read; .*Q4_K"):
        open_checkpoint(tmp_path / "m.gguf")
    assert block not in FORMATS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 a pickle", "it is a PyTorch pickle; rename it to .pt"),
        (b"neither", "does not begin with GGUF"),
        (b"GGUF", "is damaged"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is of GGUF version 1, which is not read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian machines, which is not read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "promises 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "promises 9223372036854775808 metadata entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"x" * 40, "promises 4611686018427387904 characters"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 77), "a value of type 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 0), "an array of type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 6, 2**61), "numbers"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**61), "texts"),
    ],
)
def test_damaged_headers_are_refused(content, words, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


def test_tensors_that_overlap_are_refused(tmp_path):
    entries = [text(name) + struct.pack("<IQIQ", 1, 16, 0, offset) for name, offset in (("a", 0), ("b", 32))]
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + b"".join(entries) + bytes(256))
    with pytest.raises(CorruptFileError, match="its tensors a and b overlap"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_big_endian_file_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "hyvid", endianess=GGUFEndian.BIG)
    writer.add_tensor("x", np.zeros(4, dtype=np.float32))
    finish(writer)
    with pytest.raises(CheckpointError, match="big-endian"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [10, 200, -1])
def test_a_truncated_file_is_refused(keep, golden_weights, tmp_path):
    path = gguf(Stored(golden_weights), tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match="download it again"):
        open_checkpoint(path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(golden_weights, tmp_path):
    path = gguf(Stored(golden_weights), tmp_path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with checkpoint.reading() as read, pytest.raises(CorruptFileError, match="cut off"):
        for name in checkpoint.tensors:
            read(name)
