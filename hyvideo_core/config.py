"""Sizes of every network, as frozen dataclasses, and the published presets."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Sizes of the denoising transformer.

    Raises:
        ConfigError: sizes that contradict each other.
    Source: Kong et al. 2024, "HunyuanVideo", sec. 4.2 and table 2.
    """

    hidden_size: int
    num_heads: int
    num_double_blocks: int
    num_single_blocks: int
    rope_axes: tuple[int, int, int]
    text_width: int
    pooled_width: int | None
    has_guidance: bool
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    mlp_ratio: float = 4.0
    refiner_mlp_ratio: float = 4.0
    num_refiner_blocks: int = 2
    rope_theta: float = 256.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden size {self.hidden_size} is not a multiple of {self.num_heads} heads; "
                "choose a number of heads that divides it"
            )
        if sum(self.rope_axes) != self.head_size or any(d % 2 for d in self.rope_axes):
            raise ConfigError(
                f"rope axes {self.rope_axes} must be even and add up to the head size {self.head_size}; "
                "set rope_dim_list in the file's config metadata"
            )

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the feed-forward networks in the blocks."""
        return _whole(self.hidden_size * self.mlp_ratio)

    @property
    def refiner_mlp_width(self) -> int:
        """Hidden width of the feed-forward networks in the token refiner."""
        return _whole(self.hidden_size * self.refiner_mlp_ratio)


def _whole(width: float) -> int:
    """The width rounded down, as the reference does, but never below one that only float division made smaller."""
    return int(width + 1e-6)


HYVIDEO_T2 = TransformerConfig(
    hidden_size=3072,
    num_heads=24,
    num_double_blocks=20,
    num_single_blocks=40,
    rope_axes=(16, 56, 56),
    text_width=4096,
    pooled_width=768,
    has_guidance=False,
)
HYVIDEO_T2_CFGDISTILL = TransformerConfig(
    hidden_size=3072,
    num_heads=24,
    num_double_blocks=20,
    num_single_blocks=40,
    rope_axes=(16, 56, 56),
    text_width=4096,
    pooled_width=768,
    has_guidance=True,
)


def tiny(**changes: object) -> TransformerConfig:
    """A transformer small enough for tests, with every part present."""
    sizes: dict[str, object] = {
        "hidden_size": 64,
        "num_heads": 4,
        "num_double_blocks": 2,
        "num_single_blocks": 3,
        "rope_axes": (4, 6, 6),
        "text_width": 32,
        "pooled_width": 24,
        "has_guidance": True,
        "in_channels": 4,
        "out_channels": 4,
    }
    return TransformerConfig(**{**sizes, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeConfig:
    """Sizes of the causal 3D autoencoder; the defaults are 884-16c-hy.

    `sample_size` (pixels) and `sample_frames` are the tile that tiled coding uses by default.

    Source: Kong et al. 2024, sec. 4.1.
    """

    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    image_channels: int = 3
    norm_groups: int = 32
    spatial_factor: int = 8
    time_factor: int = 4
    scaling_factor: float = 0.476986
    sample_size: int = 256
    sample_frames: int = 64

    def __post_init__(self) -> None:
        if any(c % self.norm_groups for c in self.block_channels):
            raise ConfigError(
                f"channels {self.block_channels} are not multiples of {self.norm_groups} norm groups; "
                "set norm_num_groups in the file's config metadata"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig:
    """Sizes of the language model; the defaults are LLaVA-Llama-3-8B's text part."""

    vocab_size: int = 128320
    hidden_size: int = 4096
    ffn_size: int = 14336
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    rope_theta: float = 500000.0
    rms_eps: float = 1e-5
    max_positions: int = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTextConfig:
    """Sizes of the pooled text encoder; the defaults are CLIP ViT-L/14's."""

    vocab_size: int = 49408
    hidden_size: int = 768
    ffn_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_positions: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
