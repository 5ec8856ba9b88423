"""Whose LoRA a file is, by names, sizes and metadata, as far as they tell.

Sources: tensor names as trainers publish them for each model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..loading.checkpoint import Checkpoint
from .keys import GroupedNames

# trainers' metadata that name the model that was trained
_ARCHITECTURE = ("modelspec.architecture", "ss_base_model_version")
_ARCHITECTURES: tuple[tuple[str, str], ...] = (
    (r"hunyuan-?video-?1[._]5|hunyuan_video_1_5|hv15", "HunyuanVideo 1.5"),
    (r"hunyuan-?image|hunyuan_image", "HunyuanImage 2.1"),
    (r"framepack", "FramePack"),
    (r"flux", "Flux"),
    (r"\bwan", "Wan"),
    (r"stable-diffusion-xl|sdxl", "SDXL"),
    (r"stable-diffusion-v?3|sd3", "Stable Diffusion 3"),
    (r"stable-diffusion|sd_v1|sd_v2", "Stable Diffusion 1 or 2"),
    (r"ltx", "LTX Video"),
    (r"qwen", "Qwen-Image"),
    (r"cogvideo", "CogVideoX"),
)
# names that only one model has; the first that fits is it
_NAMES: tuple[tuple[str, str], ...] = (
    (r"(clean_x_embedder|image_projection)", "FramePack"),
    (r"(vision_in|byt5_in|cond_type_embed)", "HunyuanVideo 1.5 or HunyuanImage 2.1"),
    (r"(distilled_guidance_layer)", "Chroma"),
    (r"(input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block)", "SDXL or Stable Diffusion"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"transformer_blocks[._]\d+[._](img_mod|txt_mod|img_mlp|txt_mlp)[._]", "Qwen-Image"),
    (r"transformer_blocks[._]\d+[._]attn[12][._]", "LTX Video or CogVideoX"),
    (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|attn[12]|ffn)[._]", "Wan"),
    (r"(^|[._])blocks[._]\d+[._]attn[._](qkv_x|qkv_y|proj_x)", "Mochi"),
    (r"(^|[._])layers[._]\d+[._](attention|feed_forward)[._]", "Lumina 2 or Z-Image"),
    (r"(^|[._])blocks[._]block\d+", "Cosmos"),
)
_DOUBLE = re.compile(r"(?:double_blocks|(?<!single_)transformer_blocks)[._](\d+)[._]")
_SINGLE = re.compile(r"(?:single_blocks|single_transformer_blocks)[._](\d+)[._]")
_SPLIT_QKV = re.compile(r"double_blocks[._]\d+[._](?:img|txt)_attn_[qkv]$")
SPLIT_WIDTH = 2048
_WIDTHS = {SPLIT_WIDTH: "HunyuanVideo 1.5", 3584: "HunyuanImage 2.1", 1536: "Stable Diffusion 3"}
_FLUX_BLOCKS = (19, 38)


@dataclass(frozen=True, slots=True)
class Family:
    """Another model that a LoRA was made for.

    Attributes:
        words: its name, with what gives it away.
        is_certain: a file of HunyuanVideo cannot look like this.
    """

    words: str
    is_certain: bool


def foreign_family(checkpoint: Checkpoint, groups: GroupedNames) -> Family | None:
    """The other model that a LoRA was made for; None if nothing speaks against HunyuanVideo."""
    stated = " ".join(str(checkpoint.metadata.get(name, "")) for name in _ARCHITECTURE).lower()
    for pattern, words in _ARCHITECTURES:
        if re.search(pattern, stated):
            # FramePack grew out of HunyuanVideo: its LoRAs are used on both
            return Family(f"{words} (so its metadata says)", is_certain=words != "FramePack")
    for pattern, words in _NAMES:
        if any(re.search(pattern, base) for base in groups.bases):
            return Family(words, is_certain=False)
    widths = _widths(checkpoint, groups)
    # HunyuanVideo's own trainers may split them too, at its own width
    if widths <= {SPLIT_WIDTH} and any(_SPLIT_QKV.search(base) for base in groups.bases):
        return Family("HunyuanVideo 1.5 (q, k and v stand apart)", is_certain=False)
    found = next((width for width in _WIDTHS if width in widths), None)
    if found is not None:
        return Family(f"{_WIDTHS[found]} ({found} wide)", is_certain=False)
    if looks_like_flux(groups.bases):
        return Family("Flux (19 double and 38 single blocks, of the same names and sizes)", is_certain=True)
    return None


def looks_like_flux(bases: Iterable[str]) -> bool:
    """Whether exactly Flux's blocks are there: HunyuanVideo has one more and two, of the same sizes."""
    counts = []
    for pattern in (_DOUBLE, _SINGLE):
        numbers = {int(match[1]) for base in bases if (match := pattern.search(base))}
        counts.append(len(numbers) if numbers == set(range(len(numbers))) else 0)
    return tuple(counts) == _FLUX_BLOCKS


def _widths(checkpoint: Checkpoint, groups: GroupedNames) -> set[int]:
    """What the attention layers of a file take in, by their first factors."""
    return {
        checkpoint.tensors[parts["down"]].shape[-1]
        for base, parts in groups.bases.items()
        if "attn" in base and "down" in parts and len(checkpoint.tensors[parts["down"]].shape) == 2
    }
