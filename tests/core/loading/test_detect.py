"""Every published layout is recognised from names and shapes, and builds strictly on the meta device."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import (
    HYVIDEO_T2,
    HYVIDEO_T2_CFGDISTILL,
    ClipTextConfig,
    LlamaConfig,
    TransformerConfig,
    VaeConfig,
)
from hyvideo_nodes.hyvideo_core.errors import WrongModelError
from hyvideo_nodes.hyvideo_core.loading import build_transformer, build_vae, detect_transformer, detect_vae
from hyvideo_nodes.hyvideo_core.loading.checkpoint import Checkpoint, TensorInfo
from hyvideo_nodes.hyvideo_core.loading.key_maps import DIFFUSERS
from hyvideo_nodes.hyvideo_core.loading.quantization import Fp8Linear
from hyvideo_nodes.hyvideo_core.loading.text import detect_clip, detect_llama

META = torch.device("meta")


class MetaCheckpoint(Checkpoint):
    """A file of which only names and shapes exist."""

    @contextmanager
    def reading(self):
        yield lambda name: torch.empty(self.tensors[name].shape, dtype=self.tensors[name].dtype, device=META)


def from_table(table: dict, prefix: str = "") -> MetaCheckpoint:
    tensors = {prefix + name: TensorInfo(tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in table.items()}
    return MetaCheckpoint(path=Path("renamed.safetensors"), tensors=tensors)


def manifest(manifest_dir: Path, name: str) -> dict:
    return json.loads((manifest_dir / f"{name}.json").read_text())


TRANSFORMERS: dict[str, TransformerConfig] = {
    "hunyuanvideo_t2v_cfgdistill_transformer.official": HYVIDEO_T2_CFGDISTILL,
    "hunyuanvideo_t2v_plain_transformer.official": HYVIDEO_T2,
    "hunyuanvideo_t2v_transformer.diffusers": HYVIDEO_T2_CFGDISTILL,
    "hunyuanvideo_t2v_cfgdistill_transformer_fp8.official": HYVIDEO_T2_CFGDISTILL,
    "hunyuanvideo_i2v_token_replace_transformer.official": HYVIDEO_T2_CFGDISTILL,
    "hunyuanvideo_i2v_token_replace_transformer.diffusers": HYVIDEO_T2_CFGDISTILL,
    "hunyuanvideo_i2v_latent_concat_transformer.official": replace(HYVIDEO_T2, in_channels=33),
    "hunyuanvideo_i2v_latent_concat_transformer.diffusers": replace(HYVIDEO_T2, in_channels=33),
}


@pytest.mark.parametrize("prefix", ["", "model.model.", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_full_size_transformers_are_recognised_under_any_prefix(name, prefix, manifest_dir):
    detected = detect_transformer(from_table(manifest(manifest_dir, name), prefix))
    assert detected.config == TRANSFORMERS[name]
    assert detected.view.prefix == prefix


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_full_size_transformers_build_strictly(name, manifest_dir):
    table = manifest(manifest_dir, name)
    model = build_transformer(detect_transformer(from_table(table)), dtype=torch.bfloat16, device=META)
    official = name.replace(".diffusers", ".official").replace("t2v_transformer", "t2v_cfgdistill_transformer")
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {key: shape for key, (shape, _) in manifest(manifest_dir, official).items()}


def test_fp8_weights_stay_fp8(manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_cfgdistill_transformer_fp8.official")
    model = build_transformer(detect_transformer(from_table(table)), dtype=torch.bfloat16, device=META)
    layers = [module for module in model.modules() if isinstance(module, Fp8Linear)]
    assert len(layers) == 320
    assert {layer.weight.dtype for layer in layers} == {torch.float8_e4m3fn}
    assert model.dtype == torch.bfloat16


def peer_table(manifest_dir: Path, dialect: str) -> dict:
    """Names of one peer's layout with every block index written out."""
    names = json.loads((manifest_dir / "peers_keys.json").read_text())[dialect]
    table = {}
    for name, (shape, count) in names.items():
        for index in range(count):
            table[name.replace(".N.", f".{index}.")] = (shape, "bfloat16")
    return table


@pytest.mark.parametrize("scale_name", ["scale", "weight"])
def test_comfyui_names_are_recognised_in_both_spellings(scale_name, manifest_dir):
    table = peer_table(manifest_dir, "comfy_after_host_rename")
    renamed = {name.replace("_norm.scale", f"_norm.{scale_name}"): entry for name, entry in table.items()}
    detected = detect_transformer(from_table(renamed, "model.model."))
    assert detected.view.dialect.name == "ComfyUI"
    assert detected.config == HYVIDEO_T2_CFGDISTILL
    assert len(build_transformer(detected, dtype=torch.bfloat16, device=META).state_dict()) == 856


@pytest.mark.parametrize("dialect", ["vae_official_or_diffusers", "vae_comfy"])
def test_full_size_vaes_build_strictly(dialect, manifest_dir):
    names = json.loads((manifest_dir / "peers_keys.json").read_text())[dialect]
    checkpoint = from_table({name: (shape, "float16") for name, shape in names.items()}, "vae.")
    detected = detect_vae(checkpoint)
    assert detected.config == VaeConfig()
    model = build_vae(detected, dtype=torch.float16, device=META)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    official = manifest(manifest_dir, "hunyuanvideo_vae.official")
    assert shapes == {key: shape for key, (shape, _) in official.items()}


@pytest.mark.parametrize(
    "name",
    [
        "llama3_8b_text.LlamaModel",
        "llama3_8b_text.LlamaForCausalLM",
        "llava_llama3_8b.LlavaForConditionalGeneration",
    ],
)
def test_full_size_language_models_are_recognised(name, manifest_dir):
    assert detect_llama(from_table(manifest(manifest_dir, name))) == LlamaConfig()


def test_full_size_clip_is_recognised(manifest_dir):
    assert detect_clip(from_table(manifest(manifest_dir, "clip_l_text.CLIPTextModel"))) == ClipTextConfig()


def test_each_encoder_refuses_the_other_by_name(manifest_dir):
    llama = from_table(manifest(manifest_dir, "llama3_8b_text.LlamaForCausalLM"))
    clip = from_table(manifest(manifest_dir, "clip_l_text.CLIPTextModel"))
    with pytest.raises(WrongModelError, match=r"is a language model; expected a CLIP text encoder"):
        detect_clip(llama)
    with pytest.raises(WrongModelError, match=r"is a CLIP text encoder; expected the Llama-3 language model"):
        detect_llama(clip)


FOREIGN = {
    "SDXL": ({"model.diffusion_model.label_emb.0.0.weight": ([1280, 2816], "float16")}, "SDXL"),
    "Wan": (
        {
            "patch_embedding.weight": ([5120, 16, 1, 2, 2], "bfloat16"),
            "blocks.0.self_attn.norm_q.weight": ([5120], "bfloat16"),
        },
        "Wan",
    ),
    "HunyuanVideo 1.5": (
        {
            "vision_in.proj.0.weight": ([1152], "bfloat16"),
            "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight": ([6144, 2048], "bfloat16"),
        },
        r"HunyuanVideo 1\.5",
    ),
    "VAE": ({"decoder.mid_block.attentions.0.to_q.weight": ([512, 512], "float16")}, "VAE"),
    "LoRA": ({"lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight": ([4, 3072], "float16")}, "LoRA"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_models_are_refused_by_name(name):
    table, words = FOREIGN[name]
    with pytest.raises(WrongModelError, match=rf"{words}.*expected a HunyuanVideo transformer"):
        detect_transformer(from_table(table))


def test_scaled_fp8_is_refused_rather_than_read_as_noise(manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_cfgdistill_transformer_fp8.official")
    table["double_blocks.0.img_mod.linear.scale_weight"] = ([1], "float32")
    with pytest.raises(WrongModelError, match=r"scaled fp8.*use the bf16 file"):
        detect_transformer(from_table(table))


def test_a_missing_or_unknown_tensor_is_named(manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_plain_transformer.official")
    incomplete = {name: entry for name, entry in table.items() if name != "final_layer.linear.bias"}
    with pytest.raises(WrongModelError, match=r"lacks 1 tensors, such as final_layer\.linear\.bias"):
        build_transformer(detect_transformer(from_table(incomplete)), dtype=torch.bfloat16, device=META)
    with pytest.raises(WrongModelError, match="has unexpected 1 tensors, such as surprise"):
        stranger = from_table(table | {"surprise": ([1], "float32")})
        build_transformer(detect_transformer(stranger), dtype=torch.bfloat16, device=META)


def test_the_diffusers_table_equals_the_published_key_map(manifest_dir):
    table = manifest(manifest_dir, "keymap_transformer_official_to_diffusers")
    assert len(table) > 850
    for key, parts in table.items():
        assert [name for name, _ in parts] == list(DIFFUSERS.sources(key)), key
        swapped = any(operation == ["swap_halves"] for _, operation in parts)
        assert swapped == key.startswith(DIFFUSERS.swapped_halves), key
