"""GGUF headers of full-size models, before which no weights lie: every tensor of the model is found."""

from __future__ import annotations

import json
import struct
import sys
from math import prod

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hyvideo_nodes.hyvideo_core.config import HYVIDEO_T2, HYVIDEO_T2_CFGDISTILL, LlamaConfig
from hyvideo_nodes.hyvideo_core.loading import (
    build_transformer,
    check_complete,
    detect_llama,
    detect_transformer,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.loading.gguf import GgufFile
from hyvideo_nodes.hyvideo_core.loading.text import check_llama
from hyvideo_nodes.hyvideo_core.quantization.gguf_blocks import GgufLinear

from .llama_names import llama_cpp_name

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files with holes would take their whole size")
MATRIX_TYPES = ("Q4_K", "Q4_K", "Q6_K")  # as mixed files have them
ALIGNMENT = 32


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


@pytest.fixture
def write(tmp_path):
    """A file with the header of tensors of these shapes and a hole in place of their bytes."""

    def write(table, architecture, **numbers):
        head = text("general.architecture") + struct.pack("<I", 8) + text(architecture)
        for name, value in numbers.items():
            head += text(name.replace("__", ".")) + struct.pack("<II", 4, value)
        offset, matrices = 0, 0
        for name, shape in table.items():
            kind = "F32"
            if len(shape) == 2 and prod(shape) > 1024 and shape[1] % 256 == 0:
                kind, matrices = MATRIX_TYPES[matrices % len(MATRIX_TYPES)], matrices + 1
            elif len(shape) == 2:
                kind = "F16"
            kind = GGMLQuantizationType[kind]
            head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)
            weights, num_bytes = GGML_QUANT_SIZES[kind]
            offset += -(-prod(shape) // weights * num_bytes // ALIGNMENT) * ALIGNMENT
        path = tmp_path / "model.gguf"
        with path.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", 3, len(table), 1 + len(numbers)) + head)
            file.truncate(file.tell() + ALIGNMENT + offset)
        return open_checkpoint(path)

    return write


def shapes(manifest_dir, name):
    return {key: tuple(entry[0]) for key, entry in json.loads((manifest_dir / f"{name}.json").read_text()).items()}


def comfy_shapes(manifest_dir):
    names = json.loads((manifest_dir / "peers_keys.json").read_text())["comfy_after_host_rename"]
    return {
        name.replace(".N.", f".{index}."): tuple(shape)
        for name, (shape, count) in names.items()
        for index in range(count)
    }


DISTILLED = "hunyuanvideo_t2v_cfgdistill_transformer.official"
MODELS = {
    DISTILLED: HYVIDEO_T2_CFGDISTILL,
    "hunyuanvideo_t2v_plain_transformer.official": HYVIDEO_T2,
    "hunyuanvideo_t2v_transformer.diffusers": HYVIDEO_T2_CFGDISTILL,
    "hunyuanvideo_i2v_token_replace_transformer.official": HYVIDEO_T2_CFGDISTILL,
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_transformer_is_found(name, prefix, write, manifest_dir):
    table = {prefix + key: shape for key, shape in shapes(manifest_dir, name).items()}
    detected = detect_transformer(write(table, "hyvid"))
    assert detected.config == MODELS[name]
    coverage = check_complete(detected)
    assert coverage.matched == coverage.expected == 852 + 4 * MODELS[name].has_guidance


def test_every_tensor_under_comfyui_names_is_found(write, manifest_dir):
    detected = detect_transformer(write(comfy_shapes(manifest_dir), "hyvid"))
    assert check_complete(detected).matched == 856
    assert detected.view.dialect.name == "ComfyUI"


def test_a_transformer_keeps_its_blocks(write, manifest_dir, monkeypatch):
    """Built on the meta device, where a read gives the shape of what would be read."""

    def read(self, file, name):
        info, (_, num_bytes) = self.tensors[name], self.places[name]
        rows = prod(info.shape[:-1])
        shape = info.shape if info.block is None else (*info.shape[:-1], num_bytes // rows)
        return torch.empty(shape, dtype=info.dtype, device="meta")

    monkeypatch.setattr(GgufFile, "_tensor", read)
    detected = detect_transformer(write(shapes(manifest_dir, DISTILLED), "hyvid"))
    model = build_transformer(detected, dtype=torch.bfloat16, device=torch.device("meta"))
    layers = [module for module in model.modules() if isinstance(module, GgufLinear)]
    in_blocks = sum(layer.out_features * layer.in_features for layer in layers)
    assert in_blocks > 0.99 * 12_821_000_000
    stored = sum(run.numel() for layer in layers for run in layer.runs)
    assert 4.5 <= 8 * stored / in_blocks <= 6.6  # bits of a weight
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())


@pytest.mark.parametrize("name", ["llama3_8b_text.LlamaForCausalLM", "llama3_8b_text.LlamaModel"])
def test_every_tensor_of_the_language_model_is_found(name, write, manifest_dir):
    table = {llama_cpp_name(key): shape for key, shape in shapes(manifest_dir, name).items()}
    heads = {"llama__attention__head_count": 32, "llama__attention__head_count_kv": 8}
    checkpoint = write(table, "llama", **heads)
    config = detect_llama(checkpoint)
    assert config == LlamaConfig(vocab_size=config.vocab_size)
    coverage = check_llama(checkpoint, config)
    assert coverage.matched == coverage.expected
    assert not coverage.stray
