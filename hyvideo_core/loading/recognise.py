"""What a weight file is, told from tensor names and shapes alone: the one place that loaders and the doctor ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from ..errors import WrongModelError
from .checkpoint import Checkpoint, TensorInfo
from .signatures import (
    ADAPTER,
    ADAPTERS,
    FRAMEPACK,
    HOMES,
    NATIVE_CLIP,
    NATIVE_MODEL,
    NATIVE_VAE,
    NATIVE_VISION,
    OTHERS,
    PREVIEW_VAE,
    TRANSFORMERS,
    VAES,
    WHOLE_CHECKPOINTS,
    Home,
    Part,
    Signature,
)

LORA_ENDING = re.compile(
    r"(?:[._]lora(?:_linear_layer)?[._](?:down|up|A|B)(?:\.(?!bias$)[A-Za-z_]\w*)?(?:\.weight)?"
    r"|\.(?:hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?|diff|diff_b|set_weight))$"
)
LEAST_LORA_SHARE = 6  # one of so many names: files have alphas and further factors besides
HUNYUAN_IMAGE_WIDTH = 3584
BYT5_WIDTH, SIGLIP_WIDTH, QWEN_VL_WIDTH = 1472, 1152, 3584
VISION_MARK, PROJECTOR_MARK = (
    "vision_model.embeddings.position_embedding.weight",
    "multi_modal_projector.linear_1.weight",
)
BLOCK_NAME = re.compile(r"(?:double|single|transformer)_blocks\.\d+\.")
NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file holds.

    Attributes:
        words: with its article, as messages name it.
        home: where it belongs; None for what nothing is known of.
    """

    words: str
    home: Home | None = None

    @property
    def part(self) -> Part | None:
        """What it is to this pack; None for everything that this pack does not open."""
        return self.home.part if self.home else None


class Endings:
    """The tensors of a file by the ends of their names, so that any prefix may stand before them."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._by_tail: dict[str, list[str]] = {}
        for name in tensors:
            self._by_tail.setdefault(_tail(name), []).append(name)

    def __contains__(self, mark: str) -> bool:
        return self._find(mark) is not None

    def has(self, *marks: str) -> bool:
        """Whether at least one of the marks is there."""
        return any(mark in self for mark in marks)

    def shape(self, mark: str) -> tuple[int, ...]:
        """The shape of a marked tensor; empty without it."""
        name = self._find(mark)
        return () if name is None else self.tensors[name].shape

    def size(self, mark: str, axis: int) -> int:
        """One side of a marked tensor; 0 without it."""
        shape = self.shape(mark)
        return shape[axis] if len(shape) > axis else 0

    def prefix(self, mark: str) -> str:
        """What stands before a mark in the file; empty without it."""
        return (self._find(mark) or mark)[: -len(mark)]

    def _find(self, mark: str) -> str | None:
        alike = self._by_tail.get(_tail(mark), ())
        return next((name for name in alike if name == mark or name.endswith("." + mark)), None)


def _tail(name: str) -> str:
    """The last two parts of a name, by which the few that may end in a mark are found among thousands."""
    return ".".join(name.rsplit(".", 2)[-2:])


def recognise(checkpoint: Checkpoint) -> Kind:
    """What the file holds."""
    return recognise_tensors(checkpoint.tensors)


def recognise_tensors(tensors: Mapping[str, TensorInfo]) -> Kind:
    """What tensors of these names and shapes are."""
    if are_mostly(tensors, lambda name: LORA_ENDING.search(name) is not None):
        return Kind("a LoRA", HOMES["lora"])
    if are_mostly(tensors, lambda name: adapter_kind(name) is not None):
        adapters = dict.fromkeys(adapter for name in tensors if (adapter := adapter_kind(name)))
        return Kind(f"a file of {' and '.join(adapters)}, a kind of change that no node applies", ADAPTER)
    keys = Endings(tensors)
    for rule in RULES:
        kind = rule(keys)
        if kind is not None:
            return kind
    if is_scale_map(tensors):
        words = "the scales (_map) of the official fp8 release, no model"
        return Kind(words, Home("models/diffusion_models", "the loader of the fp8 file beside which it belongs"))
    return Kind(f"something unknown ({len(tensors)} tensors{_such_as(tensors)})")


def are_mostly(names: Collection[str], is_part: Callable[[str], bool]) -> bool:
    """Whether so many of a file's tensors are of a kind that the file is: they have others beside them."""
    return sum(map(is_part, names)) * LEAST_LORA_SHARE > len(names)


def adapter_kind(name: str) -> str | None:
    """Which kind of change a tensor belongs to that is like a LoRA and not applied; None for any other tensor."""
    return next((kind for kind, endings in ADAPTERS.items() if name.endswith(endings)), None)


def holds(checkpoint: Checkpoint, part: Part) -> bool:
    """Whether a VAE or text encoder is in the file, alone or beside other models as whole checkpoints have it."""
    rules: dict[Part, Callable[[Endings], Kind | None]] = {"vae": _hunyuan_vae, "llm": _language_model, "clip": _clip}
    kind = rules[part](Endings(checkpoint.tensors))
    return kind is not None and kind.part == part


def refusal(checkpoint: Checkpoint, expected: str) -> WrongModelError:
    """The error for a file that is something else than what a loader opens: what it is, and who opens it.

    Args:
        expected: what the loader wanted, with an example.
    """
    kind = recognise(checkpoint)
    return WrongModelError(f"{checkpoint.name} is {kind.words}; expected {expected}{opened_by(kind)}")


def opened_by(kind: Kind) -> str:
    """Who opens such a file and where it belongs, as a sentence after another one; empty where nobody does."""
    home = kind.home
    if home is None:
        return ""
    return f". This file belongs in {home.folder}" + (f", for {home.loader}" if home.loader else "")


def is_scale_map(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether these are single numbers under the names of a transformer's linear layers."""
    return bool(tensors) and all(
        sum(info.shape) <= len(info.shape) and "_blocks." in name and not name.endswith((".weight", ".bias"))
        for name, info in tensors.items()
    )


def _framepack(keys: Endings) -> Kind | None:
    has_projection = any("image_projection." in name for name in keys.tensors)
    if "clean_x_embedder.proj.weight" in keys or (has_projection and keys.has(*REFINER_MARKS)):
        return Kind("a FramePack transformer, another model family", FRAMEPACK)
    return None


def _hunyuan_15(keys: Endings) -> Kind | None:
    is_published = keys.has("vision_in.proj.0.weight", "cond_type_embedding.weight")
    if is_published and "vector_in.in_layer.weight" not in keys:
        layout = "official layout" if "double_blocks.0.img_attn_q.weight" in keys else "Comfy-Org's layout"
    elif "cond_type_embed.weight" in keys or (_has_glyphs_of_diffusers(keys) and not _is_image_patch(keys)):
        layout = "diffusers' layout"
    else:
        return None
    channels = keys.size("img_in.proj.weight", 1) or keys.size("x_embedder.proj.weight", 1)
    details = [layout]
    if channels == 98:
        details.insert(0, "super-resolution, distilled")
    elif keys.has("time_r_in.mlp.0.weight", "time_r_in.in_layer.weight"):
        details.insert(0, "step-distilled")
    return Kind(f"a HunyuanVideo 1.5 transformer ({', '.join(details)}), another model family", NATIVE_MODEL)


def _has_glyphs_of_diffusers(keys: Endings) -> bool:
    return "context_embedder_2.linear_1.weight" in keys


def _is_image_patch(keys: Endings) -> bool:
    """Whether the patch embedding is that of HunyuanImage 2.1: of two axes, or of its width."""
    patch = keys.shape("img_in.proj.weight") or keys.shape("x_embedder.proj.weight")
    return len(patch) == 4 or (bool(patch) and patch[0] == HUNYUAN_IMAGE_WIDTH)


def _hunyuan_image(keys: Endings) -> Kind | None:
    patch = keys.shape("img_in.proj.weight")
    if not keys.has(*REFINER_MARKS):
        return None
    if len(patch) == 5 and patch[1] == 128 and "vector_in.in_layer.weight" not in keys:
        return Kind("a HunyuanImage 2.1 refiner, another model family", NATIVE_MODEL)
    if _is_image_patch(keys) or "byt5_in.fc1.weight" in keys or _has_glyphs_of_diffusers(keys):
        return Kind("a HunyuanImage 2.1 transformer, another model family", NATIVE_MODEL)
    return None


def _hunyuan_video(keys: Endings) -> Kind | None:
    return Kind("a HunyuanVideo transformer", HOMES["transformer"]) if keys.has(*REFINER_MARKS) else None


def _hunyuan_vae(keys: Endings) -> Kind | None:
    """Causal 3D convolutions with attention in the middle; the latent channels tell the families apart."""
    conv_in = "decoder.conv_in.conv.weight"
    has_attention = keys.has("decoder.mid.attn_1.q.weight", "decoder.mid_block.attentions.0.to_q.weight")
    if conv_in not in keys or not has_attention:
        return None
    channels = keys.size("post_quant_conv.weight", 1) or keys.size(conv_in, 1)
    if channels == 32:
        return Kind("a HunyuanVideo 1.5 VAE (32 latent channels), another model family", NATIVE_VAE)
    if channels == 64:
        return Kind("a HunyuanImage 2.1 refiner's VAE (64 latent channels), another model family", NATIVE_VAE)
    return Kind("a HunyuanVideo VAE", HOMES["vae"])


def _tiny_vae(keys: Endings) -> Kind | None:
    """Decoders for previews: plain numbered layers, the second one a convolution from latents."""
    if len(keys.shape("decoder.1.weight")) != 4:
        return None
    if keys.size("decoder.1.weight", 1) == 16:
        return Kind(
            "a tiny VAE for previews (taehv of HunyuanVideo, or taew2_1 of Wan 2.1, alike by names)", PREVIEW_VAE
        )
    return Kind("a tiny VAE for previews of another model", PREVIEW_VAE)


def _vision(keys: Endings) -> Kind | None:
    if not keys.has(VISION_MARK, "vision_model.embeddings.patch_embedding.weight") or keys.has(*TEXT_MARKS):
        return None
    if PROJECTOR_MARK in keys:
        return Kind("the LLaVA-Llama-3 vision tower with its projector, for image to video", NATIVE_VISION)
    width = keys.size("vision_model.embeddings.patch_embedding.weight", 0) or keys.size(VISION_MARK, 1)
    return Kind("a SigLIP vision encoder" if width == SIGLIP_WIDTH else "a CLIP vision encoder", NATIVE_VISION)


def _t5(keys: Endings) -> Kind | None:
    mark = "encoder.block.0.layer.0.SelfAttention.k.weight"
    if mark not in keys:
        return None
    if keys.size(mark, 1) == BYT5_WIDTH:
        return Kind("a byt5 glyph encoder, of HunyuanVideo 1.5 and HunyuanImage 2.1", NATIVE_CLIP)
    return Kind("a T5 text encoder", NATIVE_CLIP)


def _language_model(keys: Endings) -> Kind | None:
    if "embed_tokens.weight" not in keys:
        return None
    # asked for under the language model's own prefix: vision towers have layers of the same names
    prefix = keys.prefix("embed_tokens.weight")

    def has(name: str) -> bool:
        return f"{prefix}layers.0.{name}" in keys.tensors

    if has("self_attn.k_proj.bias"):
        is_large = keys.size("embed_tokens.weight", 1) == QWEN_VL_WIDTH
        family = " VL 7B language model, of HunyuanVideo 1.5 and HunyuanImage 2.1" if is_large else " language model"
        return Kind(f"a Qwen 2.5{family}", NATIVE_CLIP)
    if has("self_attn.q_norm.weight"):
        return Kind("a Qwen 3 or Gemma 3 language model", NATIVE_CLIP)
    if has("pre_feedforward_layernorm.weight"):
        return Kind("a Gemma language model", NATIVE_CLIP)
    if has("self_attn.k_proj.weight"):
        whole = PROJECTOR_MARK in keys
        return Kind("a LLaVA vision-language model" if whole else "a Llama language model", HOMES["llm"])
    if has("self_attn.qkv_proj.weight") or has("self_attn.q_proj.weight"):
        return Kind("a language model of an unknown family", NATIVE_CLIP)
    return None


def _gguf_text_encoder(keys: Endings) -> Kind | None:
    """Names of llama.cpp, which only files of other architectures than Llama keep."""
    if "enc.blk.0.attn_q.weight" in keys:
        return Kind("a T5 text encoder", NATIVE_CLIP)
    if "blk.0.attn_k.bias" in keys:
        return Kind("a Qwen 2.5 language model", NATIVE_CLIP)
    if "token_embd.weight" in keys:
        return Kind("a language model of another architecture than Llama", NATIVE_CLIP)
    return None


def _part_of_a_model(keys: Endings) -> Kind | None:
    """Files without what a model begins with: one of several shards."""
    if any(name.endswith(".mlp.gate_proj.weight") for name in keys.tensors):
        return Kind("one part of a language model in several files; choose the folder that holds all of them")
    marks = (".img_attn_qkv.weight", ".img_attn.qkv.weight", ".linear1.weight", ".proj_mlp.weight", ".attn.to_q.weight")
    if any(name.endswith(marks) and BLOCK_NAME.search(name) for name in keys.tensors):
        return Kind("one part of a transformer in several files, or an incomplete one; choose all of them together")
    return None


def _clip(keys: Endings) -> Kind | None:
    mark = "embeddings.token_embedding.weight"
    if mark not in keys:
        return None
    width = keys.size(mark, 1)
    if width in FOREIGN_CLIPS:
        return Kind(f"a CLIP text encoder of another size ({FOREIGN_CLIPS[width]}, {width} wide)", NATIVE_CLIP)
    return Kind("a CLIP text encoder", HOMES["clip"])


def _by(signatures: tuple[Signature, ...]) -> Callable[[Endings], Kind | None]:
    def find(keys: Endings) -> Kind | None:
        for signature in signatures:
            if keys.has(*signature.marks) and all(mark in keys for mark in signature.also):
                return Kind(signature.words, signature.home)
        return None

    return find


REFINER_MARKS = (
    "individual_token_refiner.blocks.0.self_attn_qkv.weight",
    "individual_token_refiner.blocks.0.self_attn.qkv.weight",
    "token_refiner.refiner_blocks.0.attn.to_q.weight",
)
TEXT_MARKS = ("embed_tokens.weight", "embeddings.token_embedding.weight")
FOREIGN_CLIPS = {1024: "OpenCLIP ViT-H", 1280: "CLIP-G, as SDXL has"}
RULES: tuple[Callable[[Endings], Kind | None], ...] = (
    _framepack,
    _hunyuan_15,
    _hunyuan_image,
    _hunyuan_video,
    _by(WHOLE_CHECKPOINTS),
    _by(TRANSFORMERS),
    _hunyuan_vae,
    _by(VAES),
    _tiny_vae,
    _language_model,
    _clip,
    _vision,
    _t5,
    _gguf_text_encoder,
    _by(OTHERS),
    _part_of_a_model,
)
"""Asked in this order; the first answer holds."""


def _such_as(names: Iterable[str]) -> str:
    shown = [name[:60] for name, _ in zip(names, range(NUM_SHOWN), strict=False)]
    return f", such as {', '.join(shown)}" if shown else ""
