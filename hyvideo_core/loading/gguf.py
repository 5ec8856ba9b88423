"""GGUF files: weights in blocks, under official names or, for language models, llama.cpp's.

Sources: the GGUF specification; tensor names as llama.cpp's converter writes them.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, CorruptFileError
from ..quantization.gguf_blocks import FORMATS
from .checkpoint import Checkpoint, ReadTensor, TensorInfo, parse_config
from .first_bytes import GGUF, what_it_is
from .gguf_header import GgufHeader, StoredTensor, Value, parse_gguf_header
from .mapping import MappedFile, mapped

GGUF_SUFFIXES = (".gguf",)
ARCHITECTURE = "general.architecture"
CONFIG = "config"
NUM_PARTS = "split.count"
# converters that know four axes at most put the real shape of a tensor of five there
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
PLAIN_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
LLAMA = "llama"
LLAMA_RENAMES = (
    (r"^token_embd\.", "model.embed_tokens."),
    (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^blk\.(\d+)\.ffn_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^blk\.(\d+)\.attn_output\.", r"model.layers.\1.self_attn.o_proj."),
    (r"^blk\.(\d+)\.attn_([qkv])\.", r"model.layers.\1.self_attn.\2_proj."),
    (r"^blk\.(\d+)\.ffn_(gate|up|down)\.", r"model.layers.\1.mlp.\2_proj."),
)
# what transformers' configurations call it
LLAMA_CONFIG = {
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.rope.freq_base": "rope_theta",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufFile(Checkpoint):
    """One .gguf file, memory-mapped.

    Tensors in blocks are read as they lie: [rows, bytes of a row] uint8, rows being those of the first axis.

    Attributes:
        places: by name, where in the file a tensor's bytes are.
        heads: by name, the attention heads whose rows llama.cpp's converter has interleaved.
    """

    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """See Checkpoint.reading."""
        with mapped(self.path) as file:
            yield lambda name: self._tensor(file, name)

    def _tensor(self, file: MappedFile, name: str) -> Tensor:
        info, (start, length) = self.tensors[name], self.places[name]
        shape = info.shape
        if info.block is not None:
            shape = (shape[0], length // shape[0]) if len(shape) > 1 else (length,)
        tensor = file.tensor(start, shape, info.dtype)
        with torch.inference_mode(False):
            return deinterleave_heads(tensor, self.heads[name]) if name in self.heads else tensor


def open_gguf(path: Path) -> GgufFile:
    """Header of a .gguf file.

    Raises:
        CorruptFileError: truncated, damaged or no GGUF file.
        CheckpointError: a storage type that is not read, or the gguf package is not installed.
    """
    size = path.stat().st_size
    if what := what_it_is(path, GGUF):
        raise CorruptFileError(f"{path.name} is not a GGUF file: {what}")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        header = parse_gguf_header(content, path.name)
    if isinstance(parts := header.values.get(NUM_PARTS), int) and parts > 1:
        raise CheckpointError(
            f"{path.name} is one of {parts} parts of a model; join them with llama.cpp's gguf-split --merge, or use "
            "a file that is whole"
        )
    types = _storage_types()
    tensors, places = {}, {}
    for name, stored in header.tensors.items():
        info, length = _tensor_info(path.name, name, stored, header.values, types)
        start = header.data_start + stored.offset
        if start + length > size:
            raise CorruptFileError(
                f"{path.name} is truncated: {size} bytes, its header promises {start + length}; download it again"
            )
        tensors[name], places[name] = info, (start, length)
    _check_overlaps(path.name, places)
    return _named(path, header, tensors, places)


def _check_overlaps(file: str, places: Mapping[str, tuple[int, int]]) -> None:
    """No two tensors share bytes; between them there may be a gap, for alignment."""
    end, before = 0, ""
    for name, (start, length) in sorted(places.items(), key=lambda entry: entry[1]):
        if length and start < end:
            raise CorruptFileError(
                f"{file} is damaged: its tensors {before:.100} and {name:.100} overlap; download it again"
            )
        if length:
            end, before = start + length, name


def deinterleave_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of a query or key projection in the order of LlamaModel, which pairs row i with i + half a head.

    llama.cpp's converter stores paired rows beside each other.
    """
    rows = tensor.reshape(num_heads, len(tensor) // num_heads // 2, 2, -1)
    return rows.transpose(1, 2).reshape(tensor.shape)


def _storage_types() -> dict[int, tuple[str, int, int]]:
    """By number: the name of a storage type, the weights of its blocks and their bytes."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise CheckpointError(
            "GGUF files need the gguf package, which is not installed; run 'pip install gguf' in ComfyUI's Python, "
            "or use a .safetensors file"
        ) from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _tensor_info(
    file: str, name: str, stored: StoredTensor, values: Mapping[str, Value], types: Mapping[int, tuple[str, int, int]]
) -> tuple[TensorInfo, int]:
    """What a header's entry means, and how many bytes it takes."""
    kind, weights, num_bytes = types.get(stored.type_id, (f"type {stored.type_id}", 1, 1))
    if kind not in FORMATS and kind not in PLAIN_TYPES:
        raise CheckpointError(
            f"{file}: tensor {name:.100} is stored as {kind}, which is not read; "
            f"use a file in one of {', '.join(FORMATS)}"
        )
    shape, count = stored.shape, prod(stored.shape)
    if not count and len(shape) > 1:
        raise CorruptFileError(f"{file} is damaged: {name:.100} has the shape {list(shape)}; download it again")
    if kind not in PLAIN_TYPES and (not shape or shape[-1] % weights):
        raise CorruptFileError(
            f"{file} is damaged: {name:.100} has rows of {shape[-1] if shape else 1} weights in blocks of {weights}; "
            "download it again"
        )
    original = _original_shape(values.get(ORIGINAL_SHAPE + name), shape, weights)
    if kind in PLAIN_TYPES:
        return TensorInfo(original, PLAIN_TYPES[kind]), count * num_bytes
    return TensorInfo(original, torch.uint8, block=kind), count // weights * num_bytes


def _original_shape(given: Value | None, shape: tuple[int, ...], num_weights: int) -> tuple[int, ...]:
    """The shape that a converter had to flatten, if it fits what was stored in blocks of so many weights."""
    sizes = tuple(size for size in given if type(size) is int and size > 0) if isinstance(given, tuple) else ()
    fits = len(sizes) > 1 and prod(sizes) == prod(shape) and prod(sizes[1:]) % num_weights == 0
    return sizes if fits else shape


def _named(
    path: Path, header: GgufHeader, tensors: dict[str, TensorInfo], places: dict[str, tuple[int, int]]
) -> GgufFile:
    """The file under the names that its loaders know."""
    values = header.values
    metadata = {key: value for key, value in values.items() if isinstance(value, str) and key != CONFIG}
    config = dict(parse_config(values.get(CONFIG, "{}"), path.name))
    if values.get(ARCHITECTURE) != LLAMA:
        return GgufFile(path=path, tensors=tensors, config=config, metadata=metadata, places=places)
    given: dict[str, Any] = {
        ours: _decimal(values[theirs]) for theirs, ours in LLAMA_CONFIG.items() if theirs in values
    }
    if ROPE_FACTORS in tensors:
        given["rope_scaling"] = {"rope_type": "llama3"}
    names = {name: llama_name(name) for name in tensors}
    if len(set(names.values())) != len(names):
        raise CorruptFileError(f"{path.name} is damaged: it has tensors twice, under two names; download it again")
    config = {**given, **config}
    return GgufFile(
        path=path,
        tensors={names[name]: info for name, info in tensors.items()},
        config=config,
        metadata=metadata,
        places={names[name]: place for name, place in places.items()},
        heads=_interleaved_heads(path.name, {names[name]: info for name, info in tensors.items()}, config),
    )


def _decimal(value: Value) -> Value:
    """A number as it was before it became float32: 1e-5 and not 9.999999747378752e-06."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def llama_name(name: str) -> str:
    """LlamaForCausalLM's name for llama.cpp's; other names stay."""
    for pattern, replacement in LLAMA_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _interleaved_heads(file: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, int]:
    """Attention heads by the name of each projection whose rows have to be put back in order."""
    query_heads = config.get("num_attention_heads")
    key_heads = config.get("num_key_value_heads", query_heads)
    counts = {".self_attn.q_proj.weight": query_heads, ".self_attn.k_proj.weight": key_heads}
    heads = {}
    for name, info in tensors.items():
        count = next((count for suffix, count in counts.items() if name.endswith(suffix)), 0)
        if count == 0 and not name.endswith(tuple(counts)):
            continue
        if type(count) is not int or count < 1 or not info.shape or info.shape[0] % (2 * count):
            raise CheckpointError(
                f"{file} gives {count!r:.40} attention heads for {name:.100} of shape {list(info.shape)}, which does "
                "not divide its rows into pairs; the file is damaged, download it again"
            )
        heads[name] = count
    return heads
