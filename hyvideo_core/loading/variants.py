"""Which member of the family a transformer is, as far as its shapes tell, and which others have the same ones.

Source: tensor names and shapes of the published files.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import HYVIDEO_T2, TransformerConfig

SAME_BY_KEYS = (
    "HunyuanVideo T2V",
    "FastHunyuan",
    "AccVideo",
    "SkyReels V1 T2V",
    "HunyuanVideo I2V v2 (token replace)",
    "HunyuanCustom",
)
"""Published with equal names and shapes: 16 channels in, guidance embedded."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A member of the family.

    Attributes:
        words: what it does.
        lookalikes: the published models among which names and shapes do not decide; empty where they do.
    """

    words: str
    lookalikes: tuple[str, ...] = ()


def transformer_variant(config: TransformerConfig) -> Variant:
    """The variant of a transformer of these sizes."""
    channels, made = config.in_channels, config.out_channels
    distilled = ", guidance-distilled" if config.has_guidance else ""
    if channels == 2 * made + 1:
        return Variant(f"image to video v1, latent concatenation: noise, image and mask{distilled}")
    if channels == 2 * made:
        merged = "a base model with a keyframe LoRA merged into it"
        return Variant(f"image to video, noise and image{distilled}", ("SkyReels V1 I2V", merged))
    if channels != made:
        return Variant(f"{channels} input channels for {made} made{distilled}, no published variant")
    if not config.has_guidance:
        return Variant("text to video, undistilled")
    if made == HYVIDEO_T2.out_channels and size_words(config) == size_words(HYVIDEO_T2):
        return Variant("guidance-distilled, one of several that look alike", SAME_BY_KEYS)
    return Variant("text to video, guidance-distilled")


def size_words(config: TransformerConfig) -> str:
    """The sizes that tell models of one architecture apart."""
    return (
        f"{config.hidden_size} wide, {config.num_heads} heads, {config.num_double_blocks} double and "
        f"{config.num_single_blocks} single blocks"
    )
