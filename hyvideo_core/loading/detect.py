"""What a weight file holds, told from names and shapes, never from the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import TransformerConfig, VaeConfig
from ..errors import ConfigError, WrongModelError
from .checkpoint import Checkpoint
from .key_maps import TRANSFORMER_DIALECTS, VAE_DIALECTS, KeyView, find_view
from .policies import LinearPolicy, find_policy
from .recognise import recognise, refusal
from .variants import transformer_variant

TRANSFORMER_PROBES = (
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight",
    "double_blocks.0.img_attn_q_norm.weight",
    "single_blocks.0.q_norm.weight",
)
VAE_PROBES = (
    "decoder.mid_block.attentions.0.to_q.weight",
    "decoder.mid_block.resnets.0.conv1.conv.weight",
    "post_quant_conv.weight",
)
DEFAULT_ROPE_SIXTEENTHS = (2, 7, 7)
# what the official configuration and diffusers' config.json call it
EXPECTED_TRANSFORMER = (
    "a HunyuanVideo transformer (for example hunyuan_video_720_cfgdistill_bf16.safetensors in models/diffusion_models)"
)
EXPECTED_VAE = "a HunyuanVideo VAE (for example hunyuan_video_vae_bf16.safetensors in models/vae)"
ROPE_AXES_NAMES = ("rope_dim_list", "rope_axes_dim")
HEADS_NAMES = ("heads_num", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class DetectedTransformer:
    """A transformer file: its sizes, its weights under official names, and how they are stored."""

    config: TransformerConfig
    view: KeyView
    policy: LinearPolicy

    @property
    def variant(self) -> str:
        """In words: which member of the family this is, as far as shapes can tell."""
        return transformer_variant(self.config).words


@dataclass(frozen=True, slots=True)
class DetectedVae:
    """An autoencoder file: its sizes, and its weights under official names."""

    config: VaeConfig
    view: KeyView


def detect_transformer(checkpoint: Checkpoint) -> DetectedTransformer:
    """Layout and sizes of a HunyuanVideo transformer file.

    Raises:
        WrongModelError: the file holds something else, or weights stored in a way that is not read.
        ConfigError: the sizes stay ambiguous.
    """
    view = find_view(checkpoint, TRANSFORMER_DIALECTS, TRANSFORMER_PROBES)
    if view is None or recognise(checkpoint).part != "transformer":
        raise refusal(checkpoint, EXPECTED_TRANSFORMER)
    policy = find_policy(view)
    return DetectedTransformer(transformer_config(policy.view), policy.view, policy)


def detect_vae(checkpoint: Checkpoint) -> DetectedVae:
    """Layout and sizes of a HunyuanVideo autoencoder file.

    Raises:
        WrongModelError: the file holds something else.
    """
    view = find_view(checkpoint, VAE_DIALECTS, VAE_PROBES)
    if view is None or recognise(checkpoint).part != "vae":
        raise refusal(checkpoint, EXPECTED_VAE)
    return DetectedVae(vae_config(view), view)


def transformer_config(view: KeyView) -> TransformerConfig:
    """Sizes of a transformer from shapes; what shapes cannot tell from the file's config, else as in the 13B model."""
    given: Mapping[str, Any] = view.checkpoint.config
    patch_embed = view.info("img_in.proj.weight").shape
    if len(patch_embed) != 5:
        raise WrongModelError(
            f"{view.checkpoint.name} makes images, not video (its patches have {len(patch_embed) - 2} axes); "
            "expected a HunyuanVideo transformer"
        )
    hidden_size, patch_size = patch_embed[0], (patch_embed[2], patch_embed[3], patch_embed[4])
    head_size = _head_size(view, hidden_size)
    patch_volume = patch_size[0] * patch_size[1] * patch_size[2]
    pooled = "vector_in.in_layer.weight"
    return TransformerConfig(
        hidden_size=hidden_size,
        num_heads=hidden_size // head_size,
        num_double_blocks=_count(view, "double_blocks.{}.img_attn_proj.weight"),
        num_single_blocks=_count(view, "single_blocks.{}.linear2.weight"),
        rope_axes=_rope_axes(view.checkpoint, head_size),
        text_width=view.info("txt_in.input_embedder.weight").shape[1],
        pooled_width=view.info(pooled).shape[1] if pooled in view else None,
        has_guidance="guidance_in.mlp.0.weight" in view,
        in_channels=patch_embed[1],
        out_channels=view.info("final_layer.linear.weight").shape[0] // patch_volume,
        patch_size=patch_size,
        mlp_ratio=_mlp_width(view, hidden_size) / hidden_size,
        refiner_mlp_ratio=_refiner_mlp_width(view) / hidden_size,
        num_refiner_blocks=_count(view, "txt_in.individual_token_refiner.blocks.{}.self_attn_qkv.weight"),
        rope_theta=float(given.get("rope_theta", 256.0)),
    )


def vae_config(view: KeyView) -> VaeConfig:
    """Sizes of an autoencoder from shapes; norm groups, factors, tile sizes and scaling from the file's config."""
    given: Mapping[str, Any] = view.checkpoint.config
    # at least one, so that a file without an encoder is refused by the name of what it lacks
    levels = max(1, _count(view, "encoder.down_blocks.{}.resnets.0.conv1.conv.weight"))
    channels = tuple(
        view.info(f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight").shape[0] for level in range(levels)
    )
    defaults = VaeConfig()
    return VaeConfig(
        block_channels=channels,
        layers_per_block=_count(view, "encoder.down_blocks.0.resnets.{}.conv1.conv.weight"),
        latent_channels=view.info("post_quant_conv.weight").shape[1],
        norm_groups=int(given.get("norm_num_groups", defaults.norm_groups)),
        spatial_factor=int(given.get("spatial_compression_ratio", defaults.spatial_factor)),
        time_factor=int(
            _first_given(given, "time_compression_ratio", "temporal_compression_ratio") or defaults.time_factor
        ),
        scaling_factor=float(given.get("scaling_factor", defaults.scaling_factor)),
        sample_size=int(given.get("sample_size", defaults.sample_size)),
        sample_frames=int(given.get("sample_tsize", defaults.sample_frames)),
    )


def _head_size(view: KeyView, hidden_size: int) -> int:
    for key in ("double_blocks.0.img_attn_q_norm.weight", "single_blocks.0.q_norm.weight"):
        if key in view:
            return view.info(key).shape[0]
    heads = _first_given(view.checkpoint.config, *HEADS_NAMES)
    if not heads:
        raise ConfigError(
            f"{view.checkpoint.name} has no blocks to tell its head size from; "
            "write heads_num into the file's config metadata"
        )
    return hidden_size // int(heads)


def _rope_axes(checkpoint: Checkpoint, head_size: int) -> tuple[int, int, int]:
    """From the file's config, else the 13B model's shares of the head size."""
    axes = _first_given(checkpoint.config, *ROPE_AXES_NAMES)
    if axes is None:
        time, height, width = (head_size * part // 16 for part in DEFAULT_ROPE_SIXTEENTHS)
        return time, height, width
    if not isinstance(axes, list) or len(axes) != 3 or not all(isinstance(axis, int) for axis in axes):
        raise ConfigError(
            f"{checkpoint.name} gives {axes!r:.60} as rope axes, expected three whole numbers for time, height and "
            "width; correct rope_dim_list in the file's config metadata"
        )
    return axes[0], axes[1], axes[2]


def _mlp_width(view: KeyView, hidden_size: int) -> int:
    if "double_blocks.0.img_mlp.fc1.weight" in view:
        return view.info("double_blocks.0.img_mlp.fc1.weight").shape[0]
    if "single_blocks.0.linear2.weight" in view:
        return view.info("single_blocks.0.linear2.weight").shape[1] - hidden_size
    return _refiner_mlp_width(view)


def _refiner_mlp_width(view: KeyView) -> int:
    return view.info("txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight").shape[0]


def _first_given(config: Mapping[str, Any], *names: str) -> Any:
    """The first of several spellings of a setting that a file's config has; None without any."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def _count(view: KeyView, pattern: str) -> int:
    count = 0
    while pattern.format(count) in view:
        count += 1
    return count
