"""One row for each kind of file: what it is called, from names and shapes alone."""

from __future__ import annotations

import re

import pytest
from hyvideo_nodes.hyvideo_core.doctor import inspect

REFINER = "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight"
DIFFUSERS_REFINER = "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight"
HY15 = {
    REFINER: [6144, 2048],
    "vision_in.proj.0.weight": [1152],
    "cond_type_embedding.weight": [3, 2048],
    "img_in.proj.weight": [2048, 65, 1, 1, 1],
    "byt5_in.fc1.weight": [2048, 1472],
}
SPLIT = {"double_blocks.0.img_attn_q.weight": [2048, 2048]}
FUSED = {"double_blocks.0.img_attn_qkv.weight": [6144, 2048]}
LLM = {"model.embed_tokens.weight": [1000, 64], "model.layers.0.self_attn.k_proj.weight": [64, 64]}

KINDS: dict[str, tuple[dict[str, list[int]], str]] = {
    # the family, and what is taken for it
    "FramePack": (
        {DIFFUSERS_REFINER: [8, 8], "clean_x_embedder.proj.weight": [8, 16, 1, 2, 2]},
        "a FramePack transformer",
    ),
    "FramePack by its projection": ({DIFFUSERS_REFINER: [8, 8], "image_projection.up.weight": [8, 8]}, "FramePack"),
    "HunyuanImage 2.1": ({REFINER: [8, 8], "img_in.proj.weight": [3584, 64, 1, 1]}, "a HunyuanImage 2.1 transformer"),
    "HunyuanImage 2.1 by its width": ({REFINER: [8, 8], "img_in.proj.weight": [3584, 64, 1, 1, 1]}, "HunyuanImage 2.1"),
    "HunyuanImage 2.1 by its glyphs": (
        {REFINER: [8, 8], "img_in.proj.weight": [3072, 64, 1, 1, 1], "byt5_in.fc1.weight": [8, 1472]},
        "HunyuanImage 2.1",
    ),
    "HunyuanImage in diffusers' layout": (
        {
            DIFFUSERS_REFINER: [3584, 3584],
            "context_embedder_2.linear_1.weight": [2048, 1472],
            "x_embedder.proj.weight": [3584, 64, 1, 1],
        },
        "a HunyuanImage 2.1 transformer",
    ),
    "HunyuanImage refiner": (
        {REFINER: [8, 8], "img_in.proj.weight": [3328, 128, 1, 1, 1]},
        "a HunyuanImage 2.1 refiner",
    ),
    "1.5 official": (HY15 | SPLIT, r"a HunyuanVideo 1\.5 transformer \(official layout\)"),
    "1.5 Comfy-Org": (HY15 | FUSED, r"a HunyuanVideo 1\.5 transformer \(Comfy-Org's layout\)"),
    "1.5 super-resolution": (
        HY15 | FUSED | {"img_in.proj.weight": [2048, 98, 1, 1, 1]},
        r"1\.5 transformer \(super-resolution, distilled, Comfy-Org's layout\)",
    ),
    "1.5 step-distilled": (
        HY15 | SPLIT | {"time_r_in.mlp.0.weight": [2048, 256]},
        r"1\.5 transformer \(step-distilled, official layout\)",
    ),
    "1.5 in diffusers' layout": (
        {DIFFUSERS_REFINER: [2048, 2048], "context_embedder_2.linear_1.weight": [2048, 1472]},
        r"1\.5 transformer \(diffusers' layout\)",
    ),
    # other transformers
    "Wan": ({"model.diffusion_model.blocks.0.self_attn.norm_q.weight": [8]}, "a Wan video transformer"),
    "Wan, diffusers": ({"condition_embedder.text_embedder.linear_1.weight": [8, 8]}, "a Wan video transformer"),
    "LTX": ({"patchify_proj.weight": [8, 8]}, "an LTX video transformer"),
    "Mochi": ({"t5_yproj.weight": [8, 8]}, "a Mochi video transformer"),
    "CogVideoX": ({"patch_embed.text_proj.weight": [8, 8]}, "a CogVideoX transformer"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": [8, 8]}, "a Flux-like transformer"),
    "SD3": ({"joint_blocks.0.context_block.attn.qkv.weight": [8, 8]}, "a Stable Diffusion 3 transformer"),
    "SDXL": ({"model.diffusion_model.label_emb.0.0.weight": [8, 8]}, "an SDXL-like U-Net checkpoint"),
    "SD 1.5": ({"model.diffusion_model.input_blocks.0.0.weight": [8, 4, 3, 3]}, "a Stable Diffusion U-Net checkpoint"),
    "Qwen-Image": (
        {"txt_norm.weight": [8], "transformer_blocks.0.attn.to_q.weight": [8, 8]},
        "a Qwen-Image transformer",
    ),
    # autoencoders
    "1.5 VAE": (
        {"decoder.conv_in.conv.weight": [1024, 32, 3, 3, 3], "decoder.mid.attn_1.q.weight": [1024, 1024, 1, 1, 1]},
        r"a HunyuanVideo 1\.5 VAE \(32 latent channels\)",
    ),
    "LTX VAE": (
        {"decoder.conv_in.conv.weight": [8, 128, 3, 3, 3], "per_channel_statistics.std-of-means": [128]},
        "an LTX video VAE",
    ),
    "Wan VAE": ({"decoder.middle.0.residual.0.gamma": [8, 1, 1, 1]}, "a Wan video VAE"),
    "Flux VAE": (
        {"decoder.mid.attn_1.q.weight": [512, 512, 1, 1], "decoder.conv_in.weight": [512, 16, 3, 3]},
        "an image VAE",
    ),
    "taehv": ({"decoder.1.weight": [256, 16, 3, 3]}, "a tiny VAE for previews"),
    # encoders
    "T5": ({"encoder.block.0.layer.0.SelfAttention.k.weight": [4096, 4096]}, "a T5 text encoder"),
    "byt5": ({"encoder.block.0.layer.0.SelfAttention.k.weight": [384, 1472]}, "a byt5 glyph encoder"),
    "Qwen 2.5 VL": (
        {
            "model.embed_tokens.weight": [152064, 3584],
            "model.layers.0.self_attn.k_proj.weight": [512, 3584],
            "model.layers.0.self_attn.k_proj.bias": [512],
            "visual.patch_embed.proj.weight": [1280, 3, 2, 14, 14],
        },
        r"a Qwen 2\.5 VL 7B language model",
    ),
    "Qwen 3": (LLM | {"model.layers.0.self_attn.q_norm.weight": [64]}, "a Qwen 3 or Gemma 3 language model"),
    "Gemma": (LLM | {"model.layers.0.pre_feedforward_layernorm.weight": [64]}, "a Gemma language model"),
    "Gemma in a GGUF": (
        {"token_embd.weight": [8, 8], "blk.0.attn_q.weight": [8, 8]},
        "another architecture than Llama",
    ),
    "SigLIP": ({"vision_model.embeddings.patch_embedding.weight": [1152, 3, 14, 14]}, "a SigLIP vision encoder"),
    "CLIP vision": ({"vision_model.embeddings.patch_embedding.weight": [1280, 3, 14, 14]}, "a CLIP vision encoder"),
    "LLaVA vision": (
        {
            "vision_model.embeddings.position_embedding.weight": [577, 1024],
            "multi_modal_projector.linear_1.bias": [4096],
            "multi_modal_projector.linear_1.weight": [4096, 1024],
        },
        "the LLaVA-Llama-3 vision tower with its projector, for image to video",
    ),
    "CLIP-G": ({"text_model.embeddings.token_embedding.weight": [49408, 1280]}, "CLIP-G, as SDXL has"),
    "a LoRA": ({"lora_unet_x.lora_down.weight": [4, 8], "lora_unet_x.lora_up.weight": [8, 4]}, "a LoRA"),
    "an upscaler": ({"model.1.sub.0.RDB1.conv1.0.weight": [8, 8, 3, 3]}, "an upscale model"),
    "a shard": ({"double_blocks.7.img_attn_qkv.weight": [8, 8]}, "one part of a transformer"),
    "a shard of a language model": ({"model.layers.9.mlp.gate_proj.weight": [8, 8]}, "one part of a language model"),
    "nothing known": ({"a": [1], "b": [1]}, r"something unknown \(2 tensors, such as a, b\)"),
    "nothing at all": ({}, r"something unknown \(0 tensors\)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_called_by_their_names(kind, write):
    table, words = KINDS[kind]
    findings = inspect(write("renamed.safetensors", {name: (shape, "bfloat16") for name, shape in table.items()}))
    assert findings.kind is not None
    assert re.search(words, findings.kind), findings.kind
    assert findings.is_sound
    assert findings.num_tensors == len(table)


OURS = {
    "hunyuanvideo_t2v_cfgdistill_transformer.official": ("transformer", "several that look alike", 856),
    "hunyuanvideo_t2v_plain_transformer.official": ("transformer", "undistilled", 852),
    "hunyuanvideo_t2v_transformer.diffusers": ("transformer", "several that look alike", 856),
    "hunyuanvideo_t2v_cfgdistill_transformer_fp8.official": ("transformer", "several that look alike", 856),
    "hunyuanvideo_i2v_token_replace_transformer.official": ("transformer", "several that look alike", 856),
    "hunyuanvideo_i2v_latent_concat_transformer.official": ("transformer", "image to video v1", 852),
    "hunyuanvideo_i2v_latent_concat_transformer.diffusers": ("transformer", "image to video v1", 852),
    "hunyuanvideo_vae.official": ("VAE", "16 latent channels", 248),
    "hunyuanvideo_vae.diffusers": ("VAE", "16 latent channels", 248),
    "llama3_8b_text.LlamaModel": ("Llama language model", "Llama-3 8B", 271),
    "llama3_8b_text.LlamaForCausalLM": ("Llama language model", "Llama-3 8B", 271),
    "llava_llama3_8b.LlavaForConditionalGeneration": ("LLaVA vision-language model", "Llama-3 8B", 271),
    "clip_l_text.CLIPTextModel": ("CLIP text encoder", "CLIP-L; 12 layers, 768 wide, reads 77 tokens", 196),
}


@pytest.mark.parametrize("name", OURS)
def test_published_files_are_known_and_whole(name, write, manifest):
    kind, variant, expected = OURS[name]
    findings = inspect(write("renamed.safetensors", manifest(name)))
    assert findings.problem is None
    assert kind in (findings.kind or "")
    assert variant in (findings.variant or "")
    assert findings.coverage == f"{expected} of {expected} tensors"
    assert (findings.opened_by or "").startswith("HunyuanVideo Load")


def test_the_scale_file_of_the_official_fp8_release_is_no_model(write, manifest):
    findings = inspect(write("x_fp8_map.safetensors", manifest("hunyuanvideo_fp8_map_keys.official")))
    assert "the scales (_map) of the official fp8 release" in (findings.kind or "")


def test_both_layouts_of_the_vae_are_told_apart(write, manifest):
    shapes = manifest("peers_keys")["vae_comfy"]
    comfy = inspect(write("hunyuan_video_vae_bf16.safetensors", {k: (s, "bfloat16") for k, s in shapes.items()}))
    official = inspect(write("hunyuan_video_vae_bf16.safetensors", manifest("hunyuanvideo_vae.official")))
    assert (comfy.dialect, official.dialect) == ("ComfyUI names", "official and diffusers' names")
    assert comfy.coverage == official.coverage
