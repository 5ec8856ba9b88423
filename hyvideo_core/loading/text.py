"""Text encoder files: sizes from shapes, whether all is there, then the encoder with its weights."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..config import ClipTextConfig, LlamaConfig
from ..errors import ConfigError, WrongModelError
from ..text_encoders.clip import CLIP_LAYOUTS, ClipTextEncoder, build_clip, clip_shapes
from ..text_encoders.llm import LlamaTextEncoder, build_llama, llama_layouts, llama_shapes
from ..text_encoders.weights import KeyLayouts
from .build import fill_weights
from .checkpoint import Checkpoint
from .coverage import Coverage, Shapes, view_coverage
from .key_maps import OFFICIAL, KeyView
from .policies import find_policy
from .recognise import holds, refusal
from .settings import choice, number, whole

logger = logging.getLogger(__name__)

LLAMA_ANCHOR = "embed_tokens.weight"
CLIP_ANCHOR = "embeddings.token_embedding.weight"
EXPECTED_LLAMA = "the Llama-3 language model (for example llava_llama3_fp16.safetensors in models/text_encoders)"
EXPECTED_CLIP = "a CLIP text encoder (for example clip_l.safetensors in models/text_encoders)"
LLAMA_HEAD_SIZE = 128
CLIP_HEAD_SIZE = 64
MAX_LAYERS = 1000
LLAMA3_ROWS = range(128256, 128321)  # with and without the tokens that LLaVA adds
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh")
# what lies beside the text part in files of whole models, by the words that name it there
BESIDE = {
    "vision_tower.": "a vision tower",
    "vision_model.": "a vision tower",
    "multi_modal_projector.": "a projector of image tokens",
    "lm_head.": "the language model's head",
}


def detect_llama(checkpoint: Checkpoint) -> LlamaConfig:
    """Sizes of a language model file, of a plain Llama or inside a LLaVA.

    Raises:
        WrongModelError: the file holds something else, or lacks what its sizes are told from.
        ConfigError: the number of attention heads stays unknown.
    """
    if not holds(checkpoint, "llm"):
        raise refusal(checkpoint, EXPECTED_LLAMA)
    view = llama_view(checkpoint)
    given, defaults = _given(checkpoint), LlamaConfig()
    if given.get("rope_scaling") or _rope_parameters(given).get("rope_type", "default") != "default":
        raise WrongModelError(
            f"{checkpoint.name} is a language model with scaled positions (Llama 3.1 or newer); expected "
            "LLaVA-Llama-3, which HunyuanVideo was trained with"
        )
    rows, width = _shape(view, LLAMA_ANCHOR)
    num_heads = _num_heads(checkpoint, width, LLAMA_HEAD_SIZE)
    keys, _ = _shape(view, "layers.0.self_attn.k_proj.weight")
    # a file that was cut short has the sizes of a whole one, except for its layers
    is_llama3 = width == defaults.hidden_size and rows in LLAMA3_ROWS
    num_layers = max(_num_layers(view, r"layers\.(\d+)\."), defaults.num_layers if is_llama3 else 1)
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        ffn_size=_shape(view, "layers.0.mlp.gate_proj.weight")[0],
        num_layers=max(num_layers, whole(checkpoint, given, "num_hidden_layers", default=1, largest=MAX_LAYERS)),
        num_heads=num_heads,
        num_kv_heads=keys * num_heads // width,
        rope_theta=number(checkpoint, {**_rope_parameters(given), **given}, "rope_theta", default=defaults.rope_theta),
        rms_eps=number(checkpoint, given, "rms_norm_eps", default=defaults.rms_eps),
    )


def detect_clip(checkpoint: Checkpoint) -> ClipTextConfig:
    """Sizes of a CLIP text encoder file, of the text part alone or of the whole model.

    Longer position tables than CLIP's own 77, such as LongCLIP's 248, are used in their whole length.

    Raises:
        WrongModelError: the file holds something else, or lacks what its sizes are told from.
        ConfigError: the number of attention heads stays unknown.
    """
    if not holds(checkpoint, "clip"):
        raise refusal(checkpoint, EXPECTED_CLIP)
    view = clip_view(checkpoint)
    given, defaults = _given(checkpoint), ClipTextConfig()
    rows, width = _shape(view, CLIP_ANCHOR)
    return ClipTextConfig(
        vocab_size=rows,
        hidden_size=width,
        ffn_size=_shape(view, "encoder.layers.0.mlp.fc1.weight")[0],
        num_layers=max(
            _num_layers(view, r"encoder\.layers\.(\d+)\."),
            whole(checkpoint, given, "num_hidden_layers", default=1, largest=MAX_LAYERS),
            defaults.num_layers if width == defaults.hidden_size else 1,
        ),
        num_heads=_num_heads(checkpoint, width, CLIP_HEAD_SIZE),
        max_positions=_shape(view, "embeddings.position_embedding.weight")[0],
        activation=choice(checkpoint, given, "hidden_act", ACTIVATIONS, defaults.activation),
        norm_eps=number(checkpoint, given, "layer_norm_eps", default=defaults.norm_eps),
    )


def llama_view(checkpoint: Checkpoint) -> KeyView:
    """The language model in a file, by the names of LlamaModel."""
    return KeyView(checkpoint, OFFICIAL, _prefix(checkpoint, LLAMA_ANCHOR))


def clip_view(checkpoint: Checkpoint) -> KeyView:
    """The text model in a file, by the names of CLIPTextTransformer."""
    return KeyView(checkpoint, OFFICIAL, _prefix(checkpoint, CLIP_ANCHOR))


def check_llama(checkpoint: Checkpoint, config: LlamaConfig) -> Coverage:
    """Refuses a file that does not hold the whole language model of its sizes, from its header alone.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    coverage = llama_coverage(checkpoint, config)
    coverage.check(checkpoint.name)
    return coverage


def llama_coverage(checkpoint: Checkpoint, config: LlamaConfig) -> Coverage:
    """How many tensors of the language model of its sizes a file gives; of its last layers none are needed."""
    return _coverage(llama_view(checkpoint), llama_shapes(config), llama_layouts(config))


def check_clip(checkpoint: Checkpoint, config: ClipTextConfig) -> Coverage:
    """Refuses a file that does not hold the whole text encoder of its sizes; see `check_llama`."""
    coverage = clip_coverage(checkpoint, config)
    coverage.check(checkpoint.name)
    return coverage


def clip_coverage(checkpoint: Checkpoint, config: ClipTextConfig) -> Coverage:
    """How many tensors of the text encoder of its sizes a file gives."""
    return _coverage(clip_view(checkpoint), clip_shapes(config), CLIP_LAYOUTS)


def build_llama_encoder(checkpoint: Checkpoint, config: LlamaConfig, *, dtype: torch.dtype) -> LlamaTextEncoder:
    """The language model with its weights, on the CPU.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    check_llama(checkpoint, config)
    encoder = build_llama(config, dtype=dtype)
    _fill(encoder.model, llama_view(checkpoint), dtype)
    return encoder


def build_clip_encoder(checkpoint: Checkpoint, config: ClipTextConfig, *, dtype: torch.dtype) -> ClipTextEncoder:
    """The CLIP text encoder with its weights, on the CPU; see `build_llama_encoder`."""
    check_clip(checkpoint, config)
    encoder = build_clip(config, dtype=dtype)
    _fill(encoder.model, clip_view(checkpoint), dtype)
    return encoder


def _fill(model: torch.nn.Module, view: KeyView, dtype: torch.dtype) -> None:
    fill_weights(model, find_policy(view), dtype=dtype, device=torch.device("cpu"))


def _coverage(view: KeyView, shapes: Shapes, layouts: KeyLayouts) -> Coverage:
    """Coverage in which tensors that files of whole models have beside the text part are no strays."""
    found = view_coverage(shapes, find_policy(view))
    needless = re.compile("|".join(f"(?:{rule})" for rule in layouts.ignored)).match
    stray = tuple(name for name in found.stray if not needless(name.removeprefix(view.prefix)))
    beside = tuple(name for name in found.beside if not needless(name))
    known = {*found.stray, *found.beside} - {*stray, *beside}
    return replace(found, stray=stray, beside=beside, aside=tuple(sorted(known)))


def parts_aside(coverage: Coverage) -> str:
    """What a file holds that a text encoder does not need, in words; empty if nothing."""
    found = (next((words for mark, words in BESIDE.items() if mark in name), None) for name in coverage.aside)
    return ", ".join(f"{words} ({count} tensors)" for words, count in Counter(filter(None, found)).items())


def _given(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The file's own configuration; in a LLaVA or CLIP folder the text part's."""
    inner = checkpoint.config.get("text_config")
    return inner if isinstance(inner, dict) else checkpoint.config


def _num_heads(checkpoint: Checkpoint, width: int, usual_head_size: int) -> int:
    """Attention heads from the file's configuration, else as many as the published models' head size gives."""
    usual = max(1, width // usual_head_size) if width % usual_head_size == 0 else 0
    num_heads = whole(checkpoint, _given(checkpoint), "num_attention_heads", default=usual, largest=width)
    if not num_heads:
        raise ConfigError(
            f"{checkpoint.name} is {width} wide, which heads of {usual_head_size} do not divide, and does not say how "
            "many heads it has; write num_attention_heads into the file's config metadata"
        )
    if width < 1 or width % num_heads:
        raise ConfigError(
            f"{checkpoint.name} is {width} wide, which {num_heads} attention heads do not divide; "
            "correct num_attention_heads in the file's config metadata"
        )
    return num_heads


def _rope_parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where config.json has them since transformers 5."""
    inner = given.get("rope_parameters")
    return inner if isinstance(inner, dict) else {}


def _prefix(checkpoint: Checkpoint, anchor: str) -> str:
    """What stands before the text model's own names."""
    for name in checkpoint.tensors:
        if name == anchor or name.endswith("." + anchor):
            return name[: -len(anchor)]
    return ""


def _shape(view: KeyView, key: str) -> tuple[int, int]:
    shape = view.info(key).shape
    if len(shape) != 2:
        raise WrongModelError(
            f"{view.checkpoint.name}: {key} is {list(shape)}, expected a matrix; the file is damaged, download it again"
        )
    return shape[0], shape[1]


def _num_layers(view: KeyView, pattern: str) -> int:
    """One more than the highest layer, so that layers which lack tensors are missed and not overlooked."""
    matches = map(re.compile(re.escape(view.prefix) + pattern).match, view.checkpoint.tensors)
    found = {int(match[1]) for match in matches if match and len(match[1]) < 4}
    return max(found, default=0) + 1
