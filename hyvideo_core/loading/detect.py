"""What a weight file holds, told from names and shapes, never from the file's name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod

from ..config import TransformerConfig, VaeConfig
from ..errors import ConfigError, WrongModelError
from .checkpoint import Checkpoint
from .key_maps import TRANSFORMER_DIALECTS, VAE_DIALECTS, KeyView, find_view
from .policies import LinearPolicy, find_policy
from .recognise import holds, recognise, refusal
from .settings import configured, number, whole
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
EXPECTED_TRANSFORMER = (
    "a HunyuanVideo transformer (for example hunyuan_video_720_cfgdistill_bf16.safetensors in models/diffusion_models)"
)
EXPECTED_VAE = "a HunyuanVideo VAE (for example hunyuan_video_vae_bf16.safetensors in models/vae)"
# what the official configuration and diffusers' config.json call it
ROPE_AXES_NAMES = ("rope_dim_list", "rope_axes_dim")
HEADS_NAMES = ("heads_num", "num_attention_heads")
DOUBLE_NAMES = ("mm_double_blocks_depth", "num_layers")
SINGLE_NAMES = ("mm_single_blocks_depth", "num_single_layers")
REFINER_NAMES = ("num_refiner_layers",)
MAX_SIZE, MAX_BLOCKS = 2**20, 500  # far beyond every model; a damaged file must not make an endless one


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
    if view is None or not holds(checkpoint, "vae"):
        raise refusal(checkpoint, EXPECTED_VAE)
    return DetectedVae(vae_config(view), view)


def transformer_config(view: KeyView) -> TransformerConfig:
    """Sizes of a transformer from shapes; what shapes cannot tell from the file's config, else as in the 13B model.

    Raises:
        WrongModelError: a tensor that tells a size is missing or cannot be what its name says.
        ConfigError: the sizes contradict each other, or the file's config is none.
    """
    patch_embed = view.info("img_in.proj.weight").shape
    if len(patch_embed) == 4:
        raise WrongModelError(
            f"{view.checkpoint.name} makes images, not video (its patches have 2 axes); "
            "expected a HunyuanVideo transformer"
        )
    hidden_size, in_channels, *patch = _shape(view, "img_in.proj.weight", 5)
    head_size = _head_size(view, hidden_size)
    pooled = "vector_in.in_layer.weight"
    make = partial(
        TransformerConfig,
        hidden_size=hidden_size,
        num_heads=hidden_size // head_size,
        num_double_blocks=_depth(view, "double_blocks.{}.img_attn_proj.weight", *DOUBLE_NAMES),
        num_single_blocks=_depth(view, "single_blocks.{}.linear2.weight", *SINGLE_NAMES),
        rope_axes=_rope_axes(view.checkpoint, head_size),
        text_width=_shape(view, "txt_in.input_embedder.weight", 2)[1],
        pooled_width=_shape(view, pooled, 2)[1] if pooled in view else None,
        has_guidance="guidance_in.mlp.0.weight" in view,
        in_channels=in_channels,
        out_channels=max(1, _shape(view, "final_layer.linear.weight", 2)[0] // prod(patch)),
        patch_size=(patch[0], patch[1], patch[2]),
        mlp_ratio=_mlp_width(view, hidden_size) / hidden_size,
        refiner_mlp_ratio=_refiner_mlp_width(view) / hidden_size,
        num_refiner_blocks=_depth(
            view, "txt_in.individual_token_refiner.blocks.{}.self_attn_qkv.weight", *REFINER_NAMES
        ),
        rope_theta=number(view.checkpoint, view.checkpoint.config, "rope_theta", default=256.0),
    )
    return configured(view.checkpoint, make)


def vae_config(view: KeyView) -> VaeConfig:
    """Sizes of an autoencoder from shapes; norm groups, factors, tile sizes and scaling from the file's config.

    Raises:
        WrongModelError, ConfigError: see `transformer_config`.
    """
    checkpoint, defaults = view.checkpoint, VaeConfig()

    def given(*names: str, default: int) -> int:
        return whole(checkpoint, checkpoint.config, *names, default=default)

    # at least one, so that a file without an encoder is refused by the name of what it lacks
    levels = max(1, _count(view, "encoder.down_blocks.{}.resnets.0.conv1.conv.weight"))
    channels = tuple(
        _shape(view, f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight", 5)[0] for level in range(levels)
    )
    make = partial(
        VaeConfig,
        block_channels=channels,
        layers_per_block=_count(view, "encoder.down_blocks.0.resnets.{}.conv1.conv.weight"),
        latent_channels=_shape(view, "post_quant_conv.weight", 5)[1],
        norm_groups=given("norm_num_groups", default=defaults.norm_groups),
        spatial_factor=given("spatial_compression_ratio", default=defaults.spatial_factor),
        time_factor=given("time_compression_ratio", "temporal_compression_ratio", default=defaults.time_factor),
        scaling_factor=number(checkpoint, checkpoint.config, "scaling_factor", default=defaults.scaling_factor),
        sample_size=given("sample_size", default=defaults.sample_size),
        sample_frames=given("sample_tsize", default=defaults.sample_frames),
    )
    return configured(checkpoint, make)


def _head_size(view: KeyView, hidden_size: int) -> int:
    keys = ("double_blocks.0.img_attn_q_norm.weight", "single_blocks.0.q_norm.weight")
    if norm := next((key for key in keys if key in view), None):
        (head_size,) = _shape(view, norm, 1)
        if hidden_size % head_size:
            raise ConfigError(
                f"{view.checkpoint.name} is {hidden_size} wide, which heads of {head_size} do not divide; "
                "it is damaged, download it again"
            )
        return head_size
    heads = whole(view.checkpoint, view.checkpoint.config, *HEADS_NAMES, default=0)
    if not heads or heads > hidden_size:
        raise ConfigError(
            f"{view.checkpoint.name} has no blocks to tell its head size from; "
            "write heads_num into the file's config metadata"
        )
    return hidden_size // heads


def _rope_axes(checkpoint: Checkpoint, head_size: int) -> tuple[int, int, int]:
    """From the file's config, else the 13B model's shares of the head size."""
    axes = next((axes for name in ROPE_AXES_NAMES if (axes := checkpoint.config.get(name)) is not None), None)
    if axes is None:
        time, height, width = (head_size * part // 16 for part in DEFAULT_ROPE_SIXTEENTHS)
        return time, height, width
    if not isinstance(axes, list) or len(axes) != 3 or not all(type(axis) is int and axis > 0 for axis in axes):
        raise ConfigError(
            f"{checkpoint.name} gives {axes!r:.60} as rope axes, expected three whole numbers for time, height and "
            "width; correct rope_dim_list in the file's config metadata"
        )
    return axes[0], axes[1], axes[2]


def _mlp_width(view: KeyView, hidden_size: int) -> int:
    if "double_blocks.0.img_mlp.fc1.weight" in view:
        return _shape(view, "double_blocks.0.img_mlp.fc1.weight", 2)[0]
    if "single_blocks.0.linear2.weight" in view:
        return max(1, _shape(view, "single_blocks.0.linear2.weight", 2)[1] - hidden_size)
    return _refiner_mlp_width(view)


def _refiner_mlp_width(view: KeyView) -> int:
    return _shape(view, "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight", 2)[0]


def _shape(view: KeyView, key: str, num_axes: int) -> tuple[int, ...]:
    """The shape of a tensor that tells a size."""
    shape = view.info(key).shape
    if len(shape) != num_axes or not all(1 <= size <= MAX_SIZE for size in shape):
        raise WrongModelError(
            f"{view.checkpoint.name}: {key} is {list(shape)}, expected {num_axes} axes of 1 to {MAX_SIZE}; "
            "the file is damaged, download it again"
        )
    return shape


def _depth(view: KeyView, pattern: str, *names: str) -> int:
    """How many blocks there are, or ought to be by the file's config: of a file that was cut, the last are missing."""
    return max(
        _count(view, pattern), whole(view.checkpoint, view.checkpoint.config, *names, default=0, largest=MAX_BLOCKS)
    )


def _count(view: KeyView, pattern: str) -> int:
    """How many blocks there are, the first one being number 0."""
    count = 0
    while count < MAX_BLOCKS and pattern.format(count) in view:
        count += 1
    if count == MAX_BLOCKS:
        raise WrongModelError(
            f"{view.checkpoint.name} has {MAX_BLOCKS} or more of {pattern.format(0)}, expected some tens; "
            "it is of a model that this pack does not know"
        )
    return count
