"""Trained modules to the files that are shipped: official names, small dtypes, and what shapes cannot tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import ClipTextConfig, LlamaConfig, TransformerConfig, VaeConfig
from ..model.transformer import Transformer
from ..vae.autoencoder import VideoAutoencoder
from .readers import LanguageReader, PooledReader

STEM = "hyvideo_embedded"


@dataclass(frozen=True, slots=True)
class EmbeddedFiles:
    """Where each part lies under a folder laid out as the host's model folders are."""

    root: Path

    @property
    def transformer(self) -> Path:
        """The denoising transformer."""
        return self.root / "diffusion_models" / f"{STEM}_t2v.safetensors"

    @property
    def vae(self) -> Path:
        """The autoencoder."""
        return self.root / "vae" / f"{STEM}_vae.safetensors"

    @property
    def llama(self) -> Path:
        """The language model."""
        return self.root / "text_encoders" / f"{STEM}_llama.safetensors"

    @property
    def clip(self) -> Path:
        """The pooled text encoder."""
        return self.root / "text_encoders" / f"{STEM}_clip.safetensors"

    @staticmethod
    def tokenizer_of(weights: Path) -> Path:
        """The tokenizer beside a text encoder."""
        return weights.with_name(f"{weights.stem}.tokenizer.json")


def export_transformer(model: Transformer, path: Path, latent_rgb: tuple[Tensor, Tensor]) -> None:
    """Writes bfloat16 weights.

    Args:
        latent_rgb: factors (C, 3) and bias (3,) from scaled latents to colours in -1..1, for previews.
    """
    factors, bias = (tensor.tolist() for tensor in latent_rgb)
    extra = {"latent_rgb": json.dumps({"factors": factors, "bias": bias})}
    _write(model.state_dict(), path, torch.bfloat16, transformer_metadata(model.config), extra)


def transformer_metadata(config: TransformerConfig) -> dict[str, object]:
    """Sizes under the names of the official configuration."""
    return {
        "hidden_size": config.hidden_size,
        "heads_num": config.num_heads,
        "rope_dim_list": list(config.rope_axes),
        "rope_theta": config.rope_theta,
        "mlp_width_ratio": config.mlp_ratio,
        "mm_double_blocks_depth": config.num_double_blocks,
        "mm_single_blocks_depth": config.num_single_blocks,
        "patch_size": list(config.patch_size),
        "text_states_dim": config.text_width,
        "text_states_dim_2": config.pooled_width,
        "latent_channels": config.in_channels,
        "guidance_embed": config.has_guidance,
    }


def export_vae(vae: VideoAutoencoder, path: Path) -> None:
    """Writes float16 weights."""
    _write(vae.state_dict(), path, torch.float16, vae_metadata(vae.config), {})


def vae_metadata(config: VaeConfig) -> dict[str, object]:
    """Sizes under the names of the official configuration."""
    return {
        "block_out_channels": list(config.block_channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": config.sample_size,
        "sample_tsize": config.sample_frames,
        "scaling_factor": config.scaling_factor,
    }


def export_llama(reader: LanguageReader, config: LlamaConfig, path: Path) -> None:
    """Writes bfloat16 weights of all layers, of which prompts need all but the last two."""
    tensors = {f"model.{name}": tensor for name, tensor in reader.model.state_dict().items()}
    tensors["model.norm.weight"] = reader.norm.weight.detach()
    metadata = {
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_eps,
        "max_position_embeddings": config.max_positions,
    }
    _write(tensors, path, torch.bfloat16, metadata, {})


def export_clip(reader: PooledReader, config: ClipTextConfig, path: Path) -> None:
    """Writes bfloat16 weights."""
    weights = {name for name, _ in reader.encoder.model.named_parameters()}
    tensors = {f"text_model.{name}": t for name, t in reader.encoder.model.state_dict().items() if name in weights}
    metadata = {
        "num_attention_heads": config.num_heads,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
    }
    _write(tensors, path, torch.bfloat16, metadata, {})


def _write(
    tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype, config: Mapping[str, object], extra: dict[str, str]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(packed, path, metadata={"config": json.dumps(config), **extra})
