"""Every published layout is recognised from names and shapes, and builds strictly on the meta device."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from hyvideo_nodes.hyvideo_core.config import (
    HYVIDEO_T2,
    HYVIDEO_T2_CFGDISTILL,
    ClipTextConfig,
    LlamaConfig,
    TransformerConfig,
    VaeConfig,
)
from hyvideo_nodes.hyvideo_core.errors import ConfigError, WrongModelError
from hyvideo_nodes.hyvideo_core.loading import (
    build_transformer,
    build_vae,
    check_complete,
    detect_transformer,
    detect_vae,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.loading.checkpoint import Checkpoint, TensorInfo
from hyvideo_nodes.hyvideo_core.loading.key_maps import DIFFUSERS
from hyvideo_nodes.hyvideo_core.loading.text import check_clip, check_llama, detect_clip, detect_llama
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear

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
    with pytest.raises(WrongModelError, match=r"is a Llama language model; expected a CLIP text encoder"):
        detect_clip(llama)
    with pytest.raises(WrongModelError, match=r"is a CLIP text encoder; expected the Llama-3 language model"):
        detect_llama(clip)


FOREIGN = {
    "Wan without norms": (
        {
            "patch_embedding.weight": ([1536, 16, 1, 2, 2], "bfloat16"),
            "blocks.0.self_attn.q.weight": ([1536, 1536], "bfloat16"),
        },
        "Wan",
    ),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": ([9216, 3072], "bfloat16")}, "Flux"),
    "SDXL in parts": (
        {
            "model.diffusion_model.middle_block.1.proj_in.weight": ([1280, 1280], "float16"),
            "first_stage_model.decoder.conv_in.weight": ([512, 4, 3, 3], "float16"),
        },
        "Stable Diffusion",
    ),
    "SDXL": ({"model.diffusion_model.label_emb.0.0.weight": ([1280, 2816], "float16")}, "SDXL"),
    "Wan in diffusers' layout": (
        {"condition_embedder.text_embedder.linear_1.weight": ([5120, 4096], "bfloat16")},
        "Wan",
    ),
    "SDXL in diffusers' layout": ({"add_embedding.linear_1.weight": ([1280, 2816], "float16")}, "SDXL"),
    "HunyuanVideo 1.5 in diffusers' layout": (
        {
            "context_embedder_2.linear_1.weight": ([2048, 1472], "bfloat16"),
            "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight": ([2048, 2048], "bfloat16"),
        },
        r"HunyuanVideo 1\.5",
    ),
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


def test_scaled_fp8_without_all_of_its_scales_is_refused_rather_than_read_as_noise(manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_cfgdistill_transformer_fp8.official")
    table["double_blocks.0.img_mod.linear.scale_weight"] = ([1], "float32")
    with pytest.raises(WrongModelError, match=r"scaled fp8.*use the bf16 file"):
        detect_transformer(from_table(table))


def test_a_missing_or_unknown_tensor_is_named(manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_plain_transformer.official")
    incomplete = {name: entry for name, entry in table.items() if name != "final_layer.linear.bias"}
    with pytest.raises(WrongModelError, match=r"lacks 1 tensor: final_layer\.linear\.bias"):
        build_transformer(detect_transformer(from_table(incomplete)), dtype=torch.bfloat16, device=META)
    with pytest.raises(WrongModelError, match="has 1 unexpected tensor: surprise"):
        stranger = from_table(table | {"surprise": ([1], "float32")})
        build_transformer(detect_transformer(stranger), dtype=torch.bfloat16, device=META)


def test_the_diffusers_table_equals_the_published_key_map(manifest_dir):
    table = manifest(manifest_dir, "keymap_transformer_official_to_diffusers")
    assert len(table) > 850
    for key, parts in table.items():
        assert [name for name, _ in parts] == list(DIFFUSERS.sources(key)), key
        swapped = any(operation == ["swap_halves"] for _, operation in parts)
        assert swapped == key.startswith(DIFFUSERS.swapped_halves), key


def test_a_diffusers_folder_is_read_with_its_own_config_names(tmp_path):
    """What shapes cannot tell (rope axes) and feed-forward widths that differ between blocks and refiner."""
    torch.manual_seed(0)
    reference = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.66,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_theta=1000.0,
        rope_axes_dim=(4, 4, 8),
    ).eval()
    reference.save_pretrained(tmp_path)
    model = build_transformer(detect_transformer(open_checkpoint(tmp_path)), dtype=torch.float32)
    latents, states, pooled = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 5, 12), torch.randn(1, 10)
    timesteps, guidance, mask = torch.tensor([500.0]), torch.tensor([6000.0]), torch.ones(1, 5, dtype=torch.long)
    with torch.no_grad():
        expected = reference(latents, timesteps, states, mask, pooled, guidance=guidance, return_dict=False)[0]
        assert torch.allclose(model(latents, timesteps, [states], pooled, guidance), expected, atol=1e-5)


@pytest.mark.parametrize("axes", [[4, 6], "446", 5, [4, 6, "6"]])
def test_rope_axes_that_are_none_are_refused(axes, manifest_dir):
    table = from_table(manifest(manifest_dir, "hunyuanvideo_t2v_plain_transformer.official"))
    with pytest.raises(ConfigError, match="as rope axes, expected three whole numbers"):
        detect_transformer(replace(table, config={"rope_dim_list": axes}))


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        ({"mm_double_blocks_depth": 20}, "double_blocks.19."),
        ({"num_single_layers": 40, "num_layers": 20}, "single_blocks.39."),
        ({"num_refiner_layers": 2}, "txt_in.individual_token_refiner.blocks.1."),
    ],
)
def test_last_blocks_that_are_missing_are_missed_where_the_config_counts_them(names, lost, manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_plain_transformer.official")
    cut = from_table({name: entry for name, entry in table.items() if not name.startswith(lost)})
    count = len(table) - len(cut.tensors)
    assert count > 0
    with pytest.raises(WrongModelError, match=rf"lacks {count} tensors, such as {re.escape(lost)}"):
        check_complete(detect_transformer(replace(cut, config=names)))


@pytest.mark.parametrize("axes", [[4, 6, 6], [15, 57, 56]])
def test_settings_that_contradict_the_sizes_name_their_file(axes, manifest_dir):
    table = from_table(manifest(manifest_dir, "hunyuanvideo_t2v_plain_transformer.official"))
    with pytest.raises(ConfigError, match=rf"^{re.escape(table.name)}: rope axes .* add up to the head size 128"):
        detect_transformer(replace(table, config={"rope_dim_list": axes}))
    vae = from_table(manifest(manifest_dir, "hunyuanvideo_vae.official"))
    with pytest.raises(ConfigError, match=rf"^{re.escape(vae.name)}: channels .* 48 norm groups"):
        detect_vae(replace(vae, config={"norm_num_groups": 48}))


@pytest.mark.parametrize(
    "name",
    ["img_in.proj.weight", "final_layer.linear.weight", "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight"],
)
def test_a_file_without_a_tensor_that_gives_its_sizes_names_it(name, manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_plain_transformer.official")
    del table[name]
    with pytest.raises(WrongModelError, match=f"lacks {name}.*download it again"):
        detect_transformer(from_table(table))


def test_a_vae_without_its_encoder_is_refused(manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_vae.official")
    decoder = {name: entry for name, entry in table.items() if not name.startswith("encoder.")}
    with pytest.raises(WrongModelError, match=r"lacks encoder\.down_blocks\.0"):
        detect_vae(from_table(decoder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"final_layer.linear.bias": None}, r"lacks 1 tensor: final_layer\.linear\.bias"),
        ({"time_in.mlp.0.weight": ([3072, 128], "bfloat16")}, r"time_in\.mlp\.0\.weight is \[3072, 128\], expected"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_from_its_header(changes, words, manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_t2v_plain_transformer.official") | changes
    checkpoint = from_table({name: entry for name, entry in table.items() if entry is not None})
    with pytest.raises(WrongModelError, match=words):
        check_complete(detect_transformer(checkpoint))


def test_each_part_of_a_whole_checkpoint_is_found_under_its_prefix(manifest_dir):
    parts = {
        "model.diffusion_model.": "hunyuanvideo_t2v_plain_transformer.official",
        "vae.": "hunyuanvideo_vae.official",
        "text_encoders.llama.transformer.model.": "llama3_8b_text.LlamaModel",
        "text_encoders.clip_l.transformer.": "clip_l_text.CLIPTextModel",
    }
    tables = [
        {prefix + key: entry for key, entry in manifest(manifest_dir, name).items()} for prefix, name in parts.items()
    ]
    checkpoint = from_table({name: entry for table in tables for name, entry in table.items()})
    transformer, vae = detect_transformer(checkpoint), detect_vae(checkpoint)
    assert (transformer.view.prefix, vae.view.prefix) == ("model.diffusion_model.", "vae.")
    for found, table in ((check_complete(transformer), tables[0]), (check_complete(vae), tables[1])):
        assert found.matched == len(table)
        assert len(found.beside) == len(checkpoint.tensors) - len(table)
    assert check_llama(checkpoint, detect_llama(checkpoint)).is_whole
    assert check_clip(checkpoint, detect_clip(checkpoint)).is_whole


@pytest.mark.parametrize("dialect", ["vae_official_or_diffusers", "vae_comfy"])
def test_whole_vaes_pass_the_header_check_in_both_layouts(dialect, manifest_dir):
    names = json.loads((manifest_dir / "peers_keys.json").read_text())[dialect]
    check_complete(detect_vae(from_table({name: (shape, "float16") for name, shape in names.items()})))


def test_vae_factors_come_from_the_config(manifest_dir):
    checkpoint = from_table(manifest(manifest_dir, "hunyuanvideo_vae.official"))
    config = {"spatial_compression_ratio": 4, "time_compression_ratio": 2}
    detected = detect_vae(replace(checkpoint, config=config))
    assert (detected.config.spatial_factor, detected.config.time_factor) == (4, 2)


def test_the_rope_base_of_newer_llama_configs_is_found(manifest_dir):
    checkpoint = from_table(manifest(manifest_dir, "llama3_8b_text.LlamaModel"))
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}}
    assert detect_llama(replace(checkpoint, config=config)).rope_theta == 12345.0


def test_a_language_model_with_scaled_positions_is_refused(manifest_dir):
    plain = from_table(manifest(manifest_dir, "llama3_8b_text.LlamaForCausalLM"))
    newer = replace(plain, config={"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
    with pytest.raises(WrongModelError, match=r"scaled positions .* expected LLaVA-Llama-3"):
        detect_llama(newer)


def test_the_vae_of_hunyuanvideo_15_is_refused_by_name(manifest_dir):
    table = manifest(manifest_dir, "hunyuanvideo_vae.official")
    table["post_quant_conv.weight"] = ([32, 32, 1, 1, 1], "float32")
    with pytest.raises(
        WrongModelError, match=r"is a HunyuanVideo 1\.5 VAE \(32 latent channels\), another model family"
    ):
        detect_vae(from_table(table))
