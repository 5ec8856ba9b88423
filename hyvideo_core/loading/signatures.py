"""Marks by which files of other models are told, as tables: tensor names, what has them, and who opens it.

Sources: tensor names as published with each model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["transformer", "vae", "llm", "clip", "lora"]


@dataclass(frozen=True, slots=True)
class Home:
    """Where a kind of file belongs.

    Attributes:
        folder: the folder of models in which it is looked for.
        loader: the node that opens it, as its title says; None where no node does.
        part: what it is to this pack; None for everything that this pack does not open.
    """

    folder: str
    loader: str | None
    part: Part | None = None


HOMES: dict[Part, Home] = {
    "transformer": Home("models/diffusion_models", "HunyuanVideo Load Model", "transformer"),
    "vae": Home("models/vae", "HunyuanVideo Load VAE", "vae"),
    "llm": Home("models/text_encoders", "HunyuanVideo Load Text Encoders (llm)", "llm"),
    "clip": Home("models/text_encoders", "HunyuanVideo Load Text Encoders (clip)", "clip"),
    "lora": Home("models/loras", "HunyuanVideo Load LoRA", "lora"),
}
NATIVE_MODEL = Home("models/diffusion_models", "ComfyUI's Load Diffusion Model")
NATIVE_CHECKPOINT = Home("models/checkpoints", "ComfyUI's Load Checkpoint")
NATIVE_VAE = Home("models/vae", "ComfyUI's Load VAE")
NATIVE_CLIP = Home("models/text_encoders", "ComfyUI's Load CLIP")
NATIVE_VISION = Home("models/clip_vision", "ComfyUI's Load CLIP Vision")
PREVIEW_VAE = Home("models/vae_approx", None)
UPSCALE = Home("models/upscale_models", "ComfyUI's Load Upscale Model")
CONTROL = Home("models/controlnet", "ComfyUI's Load ControlNet Model")
EMBEDDING = Home("models/embeddings", None)
ADAPTER = Home("models/loras", None)
FRAMEPACK = Home("models/diffusion_models", "a node pack made for FramePack")


@dataclass(frozen=True, slots=True)
class Signature:
    """A model that a tensor of one of the names `marks` gives away, where every tensor of `also` is there too."""

    words: str
    home: Home
    marks: tuple[str, ...]
    also: tuple[str, ...] = ()


WHOLE_CHECKPOINTS = (
    Signature("an SDXL-like U-Net checkpoint", NATIVE_CHECKPOINT, ("label_emb.0.0.weight",)),
    Signature("an SDXL checkpoint", NATIVE_CHECKPOINT, ("conditioner.embedders.1.model.ln_final.weight",)),
    Signature("an SDXL-like U-Net in diffusers' layout", NATIVE_MODEL, ("add_embedding.linear_1.weight",)),
    Signature(
        "a ControlNet", CONTROL, ("controlnet_cond_embedding.conv_in.weight", "control_model.time_embed.0.weight")
    ),
    Signature(
        "a Stable Diffusion U-Net checkpoint",
        NATIVE_CHECKPOINT,
        ("input_blocks.0.0.weight", "middle_block.1.proj_in.weight"),
    ),
    Signature(
        "a Stable Diffusion U-Net in diffusers' layout", NATIVE_MODEL, ("down_blocks.0.resnets.0.time_emb_proj.weight",)
    ),
)
TRANSFORMERS = (
    Signature("a HunyuanDiT image transformer", NATIVE_MODEL, ("mlp_t5.0.weight",)),
    Signature(
        "a Wan video transformer",
        NATIVE_MODEL,
        (
            "blocks.0.cross_attn.norm_k.weight",
            "blocks.0.self_attn.norm_q.weight",
            "blocks.0.cross_attn.q.weight",
            "blocks.0.self_attn.q.weight",
            "condition_embedder.text_embedder.linear_1.weight",
        ),
    ),
    Signature(
        "an LTX video transformer",
        NATIVE_MODEL,
        ("patchify_proj.weight", "adaln_single.linear.weight"),
        ("transformer_blocks.0.attn2.k_norm.weight",),
    ),
    Signature("an LTX video transformer", NATIVE_MODEL, ("patchify_proj.weight",)),
    Signature("an LTX video or PixArt transformer", NATIVE_MODEL, ("transformer_blocks.0.scale_shift_table",)),
    Signature("a PixArt transformer", NATIVE_MODEL, ("t_block.1.weight",)),
    Signature("a Mochi video transformer", NATIVE_MODEL, ("t5_y_embedder.to_q.weight", "t5_yproj.weight")),
    Signature("a CogVideoX transformer", NATIVE_MODEL, ("patch_embed.text_proj.weight",)),
    Signature("a Cosmos video transformer", NATIVE_MODEL, ("blocks.block0.blocks.0.block.attn.to_q.0.weight",)),
    Signature(
        "a Qwen-Image transformer", NATIVE_MODEL, ("txt_norm.weight",), ("transformer_blocks.0.attn.to_q.weight",)
    ),
    Signature("a HiDream image transformer", NATIVE_MODEL, ("caption_projection.0.linear.weight",)),
    Signature("a Lumina 2 image transformer", NATIVE_MODEL, ("cap_embedder.1.weight",)),
    Signature(
        "a Chroma image transformer",
        NATIVE_MODEL,
        ("distilled_guidance_layer.0.norms.0.scale", "distilled_guidance_layer.norms.0.scale"),
    ),
    Signature(
        "a Flux-like transformer",
        NATIVE_MODEL,
        (
            "double_blocks.0.img_attn.norm.query_norm.scale",
            "double_blocks.0.img_attn.qkv.weight",
            "single_transformer_blocks.0.proj_mlp.weight",
        ),
    ),
    Signature(
        "a Stable Diffusion 3 transformer",
        NATIVE_MODEL,
        ("joint_blocks.0.context_block.attn.qkv.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
        ("pos_embed.proj.weight",),
    ),
    Signature("a Stable Diffusion 3 transformer", NATIVE_MODEL, ("joint_blocks.0.context_block.attn.qkv.weight",)),
)
VAES = (
    Signature(
        "an LTX video VAE",
        NATIVE_VAE,
        (
            "per_channel_statistics.std-of-means",
            "decoder.last_scale_shift_table",
            "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight",
        ),
    ),
    Signature("a CogVideoX VAE", NATIVE_VAE, ("decoder.mid_block.resnets.0.norm1.norm_layer.weight",)),
    Signature("a Mochi VAE", NATIVE_VAE, ("blocks.2.blocks.3.stack.5.weight",)),
    Signature("a Wan video VAE", NATIVE_VAE, ("decoder.middle.0.residual.0.gamma",)),
    Signature(
        "an image VAE",
        NATIVE_VAE,
        ("decoder.mid.attn_1.q.weight", "decoder.mid_block.attentions.0.to_q.weight"),
        ("decoder.conv_in.weight",),
    ),
    Signature(
        "an image or video VAE",
        NATIVE_VAE,
        ("decoder.mid_block.attentions.0.to_q.weight", "decoder.mid.attn_1.q.weight"),
    ),
    Signature("a video VAE", NATIVE_VAE, ("decoder.conv_in.conv.weight",)),
    Signature("an image VAE", NATIVE_VAE, ("decoder.conv_in.weight",)),
)
# changes of other kinds than LoRA, LoHa, LoKr, DoRA and differences, by the ends of their tensors' names
ADAPTERS: dict[str, tuple[str, ...]] = {
    "OFT or BOFT": (".oft_blocks", ".oft_diag"),
    "OFT": (".oft_R", ".oft_R.weight", ".oft_R.default.weight"),
    "BOFT": (".boft_R", ".boft_s"),
    "GLoRA": (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"),
    "IA3": (".on_input", ".ia3_l", ".ia3_l.weight"),
    "VeRA": (".vera_lambda_b", ".vera_lambda_d"),
}
OTHERS = (
    Signature(
        "a CLIP text encoder in OpenAI's own layout", NATIVE_CLIP, ("transformer.resblocks.0.attn.in_proj_weight",)
    ),
    Signature(
        "an upscale model",
        UPSCALE,
        ("model.1.sub.0.RDB1.conv1.0.weight", "body.0.rdb1.conv1.weight", "upsampler.0.weight"),
    ),
    Signature("a textual inversion embedding", EMBEDDING, ("emb_params",)),
)
