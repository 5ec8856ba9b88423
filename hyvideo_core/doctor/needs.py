"""What else it takes to make a video with a file, and what metadata and file names suggest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..config import HYVIDEO_T2_CFGDISTILL, ClipTextConfig, LlamaConfig, TransformerConfig, VaeConfig
from ..loading.signatures import HOMES, Part

NAME_HINTS: tuple[tuple[str, str], ...] = (
    (r"skyreels.*i2v", "SkyReels V1 I2V"),
    (r"skyreels", "SkyReels V1 T2V"),
    (r"accvid", "AccVideo"),
    (r"fast[-_]?(hunyuan|video)", "FastHunyuan"),
    (r"custom", "HunyuanCustom"),
    (r"(v2|fixed|replace).*(i2v|image[-_]to[-_]video)|i2v.*(fixed|v2|replace)", "HunyuanVideo I2V v2 (token replace)"),
    (r"i2v|image[-_]to[-_]video", "an image-to-video model"),
    (r"t2v|text[-_]to[-_]video|cfgdistill|720_fp8|mp_rank_00", "HunyuanVideo T2V"),
)
METADATA_KEYS = re.compile(
    r"modelspec\.|source|description|general\.(name|architecture|basename|quantized_by)|ss_(base_model_version|sd_model_name"
    r"|output_name|network_module|network_dim|network_alpha)|base_model|author|name$|title$",
    re.IGNORECASE,
)
MAX_HINTS, MAX_HINT_LENGTH = 12, 160
OTHERS_OF_ITS_MODEL = "the other files of the model that it was trained with; it is of no published size"
USUAL = {
    "llm": ("the language model", "llava_llama3_fp16.safetensors or llava_llama3_fp8_scaled.safetensors"),
    "clip": ("CLIP-L", "clip_l.safetensors"),
    "vae": ("the HunyuanVideo VAE", "hunyuan_video_vae_bf16.safetensors"),
    "transformer": ("a HunyuanVideo transformer", "hunyuan_video_720_cfgdistill_bf16.safetensors"),
}


def need(part: Part, limit: str = "") -> str:
    """A companion of a file: what it is, an example, and who opens it from where."""
    words, example = USUAL[part]
    home = HOMES[part]
    return f"{words}{limit} (such as {example}), in {home.folder}, for {home.loader}"


def transformer_needs(config: TransformerConfig) -> tuple[str, ...]:
    """What runs beside a transformer of these sizes."""
    needs = []
    if config.text_width == HYVIDEO_T2_CFGDISTILL.text_width:
        needs.append(need("llm"))
    else:
        needs.append(f"the language model that it was trained with, {config.text_width} wide")
    if config.pooled_width == ClipTextConfig().hidden_size:
        needs.append(need("clip"))
    elif config.pooled_width is not None:
        needs.append(f"the CLIP text encoder that it was trained with, {config.pooled_width} wide")
    if config.hidden_size == HYVIDEO_T2_CFGDISTILL.hidden_size:
        needs.append(need("vae"))
    else:
        needs.append(f"the VAE that it was trained with, of {config.out_channels} latent channels")
    if config.in_channels != config.out_channels:
        needs.append(
            "for its start image the LLaVA vision tower (llava_llama3_vision.safetensors), in models/clip_vision"
        )
    return tuple(needs)


def encoder_needs(part: Part, config: LlamaConfig | ClipTextConfig) -> tuple[str, ...]:
    """What runs beside a text encoder."""
    kind = "LLaMA-3" if part == "llm" else "CLIP"
    tokenizer = (
        f"a {kind} tokenizer for {config.vocab_size} rows: tokenizer.json beside the file, under models/text_encoders, "
        "or the one that ComfyUI ships"
    )
    published = LlamaConfig() if part == "llm" else ClipTextConfig()
    if config.hidden_size != published.hidden_size:
        return tokenizer, OTHERS_OF_ITS_MODEL
    return tokenizer, need("clip" if part == "llm" else "llm"), need("transformer"), need("vae")


def vae_needs(config: VaeConfig) -> tuple[str, ...]:
    """What runs beside an autoencoder."""
    if config.block_channels != VaeConfig().block_channels:
        return (OTHERS_OF_ITS_MODEL,)
    return need("transformer"), need("llm"), need("clip")


def lora_needs() -> tuple[str, ...]:
    """What runs beside a LoRA."""
    return (need("transformer", " of the kind that it was trained on"),)


def hints(name: str, metadata: Mapping[str, str], lookalikes: Sequence[str]) -> Iterator[str]:
    """What a file says of itself; proves nothing.

    Args:
        name: the file's.
        lookalikes: what names and shapes leave open; the file's name is asked only there.
    """
    if lookalikes:
        guess = next((words for pattern, words in NAME_HINTS if re.search(pattern, name, re.IGNORECASE)), None)
        if guess is not None:
            yield f"the file's name speaks of {guess} (names prove nothing)"
        else:
            yield "the file's name does not say which of them it is"
    told = [(key, value) for key, value in metadata.items() if METADATA_KEYS.match(key)]
    for key, value in told[:MAX_HINTS]:
        cut = value if len(value) <= MAX_HINT_LENGTH else value[: MAX_HINT_LENGTH - 3] + "..."
        yield f"its metadata says {key[:60]} = {cut}"
