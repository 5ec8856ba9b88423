"""Text encoder files: sizes from shapes, then the encoder with its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import ClipTextConfig, LlamaConfig
from ..errors import ConfigError, WrongModelError
from ..text_encoders.clip import ClipTextEncoder, build_clip, load_clip
from ..text_encoders.llm import LlamaTextEncoder, build_llama, load_llama
from .checkpoint import Checkpoint, ReadTensor, TensorInfo
from .detect import refuse_scaled_weights
from .recognise import holds, refusal

LLAMA_ANCHOR = "layers.0.self_attn.k_proj.weight"
CLIP_ANCHOR = "embeddings.token_embedding.weight"
EXPECTED_LLAMA = "the Llama-3 language model (for example llava_llama3_fp16.safetensors in models/text_encoders)"
EXPECTED_CLIP = "a CLIP text encoder (for example clip_l.safetensors in models/text_encoders)"
LLAMA_HEAD_SIZE = 128
CLIP_HEAD_SIZE = 64


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint under a prefix, by their names without it, each read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, read: ReadTensor) -> None:
        self._tensors = {name.removeprefix(prefix) for name in checkpoint.tensors if name.startswith(prefix)}
        self._prefix, self._read = prefix, read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self._prefix + name)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # the inherited test would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def detect_llama(checkpoint: Checkpoint) -> LlamaConfig:
    """Sizes of a language model file, of a plain Llama or inside a LLaVA.

    Raises:
        WrongModelError: the file holds something else, or weights with scales that are not read.
        ConfigError: the number of attention heads stays unknown.
    """
    prefix = _prefix(checkpoint, LLAMA_ANCHOR)
    if prefix is None or not holds(checkpoint, "llm"):
        raise refusal(checkpoint, EXPECTED_LLAMA)
    refuse_scaled_weights(checkpoint)
    embedding = _shape(checkpoint, f"{prefix}embed_tokens.weight")
    given, defaults = _given(checkpoint), LlamaConfig()
    if given.get("rope_scaling"):
        raise WrongModelError(
            f"{checkpoint.name} is a language model with scaled positions (Llama 3.1 or newer); expected "
            "LLaVA-Llama-3, which HunyuanVideo was trained with"
        )
    num_heads = _num_heads(checkpoint, embedding[1], LLAMA_HEAD_SIZE)
    keys = _shape(checkpoint, prefix + LLAMA_ANCHOR)[0]
    return LlamaConfig(
        vocab_size=embedding[0],
        hidden_size=embedding[1],
        ffn_size=_shape(checkpoint, f"{prefix}layers.0.mlp.gate_proj.weight")[0],
        num_layers=_count(checkpoint, prefix + "layers.{}.self_attn.k_proj.weight"),
        num_heads=num_heads,
        num_kv_heads=keys * num_heads // embedding[1],
        rope_theta=float(given.get("rope_theta") or _rope_parameters(given).get("rope_theta", defaults.rope_theta)),
        rms_eps=float(given.get("rms_norm_eps", defaults.rms_eps)),
    )


def detect_clip(checkpoint: Checkpoint) -> ClipTextConfig:
    """Sizes of a CLIP text encoder file, of the text part alone or of the whole model.

    Raises:
        WrongModelError: the file holds something else, or weights with scales that are not read.
        ConfigError: the number of attention heads stays unknown.
    """
    prefix = _prefix(checkpoint, CLIP_ANCHOR)
    if prefix is None or not holds(checkpoint, "clip"):
        raise refusal(checkpoint, EXPECTED_CLIP)
    refuse_scaled_weights(checkpoint)
    embedding = _shape(checkpoint, prefix + CLIP_ANCHOR)
    given, defaults = _given(checkpoint), ClipTextConfig()
    return ClipTextConfig(
        vocab_size=embedding[0],
        hidden_size=embedding[1],
        ffn_size=_shape(checkpoint, f"{prefix}encoder.layers.0.mlp.fc1.weight")[0],
        num_layers=_count(checkpoint, prefix + "encoder.layers.{}.mlp.fc1.weight"),
        num_heads=_num_heads(checkpoint, embedding[1], CLIP_HEAD_SIZE),
        max_positions=_shape(checkpoint, f"{prefix}embeddings.position_embedding.weight")[0],
        activation=str(given.get("hidden_act", defaults.activation)),
        norm_eps=float(given.get("layer_norm_eps", defaults.norm_eps)),
    )


def build_llama_encoder(checkpoint: Checkpoint, config: LlamaConfig, *, dtype: torch.dtype) -> LlamaTextEncoder:
    """The language model with its weights, on the CPU.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    encoder = build_llama(config, dtype=dtype)
    with checkpoint.reading() as read:
        load_llama(encoder, LazyTensors(checkpoint, _prefix(checkpoint, LLAMA_ANCHOR) or "", read))
    return encoder


def build_clip_encoder(checkpoint: Checkpoint, config: ClipTextConfig, *, dtype: torch.dtype) -> ClipTextEncoder:
    """The CLIP text encoder with its weights, on the CPU; see `build_llama_encoder`."""
    encoder = build_clip(config, dtype=dtype)
    with checkpoint.reading() as read:
        load_clip(encoder, LazyTensors(checkpoint, _prefix(checkpoint, CLIP_ANCHOR) or "", read))
    return encoder


def _given(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The file's own configuration; in a LLaVA or CLIP folder the text part's."""
    inner = checkpoint.config.get("text_config")
    return inner if isinstance(inner, dict) else checkpoint.config


def _num_heads(checkpoint: Checkpoint, width: int, usual_head_size: int) -> int:
    """Attention heads from the file's configuration, else as many as the published models' head size gives."""
    num_heads = int(_given(checkpoint).get("num_attention_heads") or width // usual_head_size)
    if num_heads < 1 or width % num_heads:
        raise ConfigError(
            f"{checkpoint.name} is {width} wide, which {num_heads} attention heads do not divide; "
            "correct num_attention_heads in the file's config metadata"
        )
    return num_heads


def _rope_parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where config.json has them since transformers 5."""
    inner = given.get("rope_parameters")
    return inner if isinstance(inner, dict) else {}


def _prefix(checkpoint: Checkpoint, suffix: str) -> str | None:
    """What stands before the text model's own names; a vision tower has such layers too."""
    for name in checkpoint.tensors:
        if name.endswith(suffix) and "vision" not in name:
            return name[: -len(suffix)]
    return None


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    info: TensorInfo | None = checkpoint.tensors.get(name)
    if info is None:
        raise WrongModelError(f"{checkpoint.name} lacks {name}; it is incomplete, download it again")
    return info.shape


def _count(checkpoint: Checkpoint, pattern: str) -> int:
    count = 0
    while pattern.format(count) in checkpoint.tensors:
        count += 1
    return count
