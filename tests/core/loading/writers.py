"""Writes small weight files in every layout, each part of a layout by one function of its own.

A file is made in three steps: official weights become those of a dialect under a prefix, a precision stores them,
a container writes them. To add a precision, write one function from named tensors to Stored and enter it in
PRECISIONS; to add a container, one that writes Stored into a folder and enter it in CONTAINERS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hyvideo_nodes.hyvideo_core.loading.key_maps import Dialect
from safetensors.torch import save_file
from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Blocks:
    """A tensor in one of GGUF's block formats."""

    rows: np.ndarray
    block: str


@dataclass(frozen=True)
class Stored:
    """What a container is to hold: tensors, the file's configuration, its other metadata.

    Attributes:
        part: the subfolder that diffusers has for it.
    """

    tensors: Mapping[str, Tensor | Blocks]
    config: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    part: str = "transformer"


# --- dialects


def in_dialect(weights: Weights, dialect: Dialect, prefix: str = "") -> dict[str, Tensor]:
    """Official weights under the names, splits and orders of a dialect."""
    named = {}
    for key, tensor in weights.items():
        names = dialect.sources(key)
        if dialect.swapped_halves is not None and key.startswith(dialect.swapped_halves):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if len(names) == 1:
            parts = [tensor]
        else:
            width = weights["img_in.proj.weight"].shape[0]
            parts = tensor.split([width] * 3 + [len(tensor) - 3 * width] * (len(names) - 3))
        named.update({prefix + name: part.contiguous() for name, part in zip(names, parts, strict=True)})
    return named


# --- precisions


def cast(dtype: torch.dtype) -> Callable[[Weights], dict[str, Tensor]]:
    """Everything in one dtype."""
    return lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()}


def as_converters_do(dtype: torch.dtype) -> Callable[[Weights], dict[str, Tensor]]:
    """Matrices in one dtype, all else in float32."""
    return lambda weights: {
        name: tensor.to(dtype if tensor.ndim == 2 and tensor.numel() > 1024 else torch.float32)
        for name, tensor in weights.items()
    }


def in_blocks(block: str, num_weights: int = 32) -> Callable[[Weights], dict[str, Tensor | Blocks]]:
    """Matrices of whole blocks in a block format, all else in float32."""

    def encode(weights: Weights) -> dict[str, Tensor | Blocks]:
        stored: dict[str, Tensor | Blocks] = {}
        for name, tensor in weights.items():
            fits = tensor.ndim == 2 and tensor.shape[1] % num_weights == 0 and tensor.numel() > 1024
            rows = quants.quantize(tensor.numpy(), GGMLQuantizationType[block]) if fits else None
            stored[name] = tensor.float() if rows is None else Blocks(rows, block)
        return stored

    return encode


def block_matrices(weights: Weights) -> dict[str, Tensor]:
    """What quantizing scripts take: the matrices of the blocks."""
    return {
        name: tensor
        for name, tensor in weights.items()
        if "blocks." in name and tensor.ndim == 2 and name.endswith(".weight")
    }


def scaled_fp8(
    dtype: torch.dtype, scale_name: str, mark: Callable[[str], Mapping[str, Tensor]]
) -> Callable[[Weights], dict[str, Tensor]]:
    """Matrices of the blocks in fp8 with a scale beside each; `mark` gives what else stands beside a layer."""

    def encode(weights: Weights) -> dict[str, Tensor]:
        stored = dict(weights)
        for name, tensor in block_matrices(weights).items():
            layer, scale = name.removesuffix(".weight"), tensor.abs().max() / torch.finfo(dtype).max
            stored |= {name: (tensor / scale).to(dtype), f"{layer}.{scale_name}": scale, **mark(layer)}
        return stored

    return encode


def comfy_mark(name: str) -> Callable[[str], Mapping[str, Tensor]]:
    """ComfyUI's mark of a layer: JSON as bytes."""
    content = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    return lambda layer: {f"{layer}.comfy_quant": content.clone()}


def old_mark(layer: str) -> Mapping[str, Tensor]:
    """ComfyUI's older mark, one for the whole file."""
    return {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def nvfp4(weights: Weights) -> dict[str, Tensor]:
    """Matrices of the blocks in four bits, block scales in the order of tensor cores."""
    steps = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    stored, mark = dict(weights), comfy_mark("nvfp4")
    for name, tensor in block_matrices(weights).items():
        layer, scale = name.removesuffix(".weight"), tensor.abs().max() / (448 * 6)
        blocks = tensor.unflatten(1, (-1, 16))
        scales = (blocks.abs().amax(-1) / 6 / scale).clamp(max=448).to(torch.float8_e4m3fn)
        wanted = blocks / (scales.float() * scale).clamp(min=1e-30).unsqueeze(-1)
        codes = (wanted.abs().unsqueeze(-1) - steps).abs().argmin(-1) + 8 * (wanted < 0)
        codes = codes.flatten(1).to(torch.uint8)
        rows, columns = scales.shape
        padded = torch.nn.functional.pad(scales.float(), (0, -columns % 4, 0, -rows % 128))
        tiles = padded.reshape(len(padded) // 128, 4, 32, -1, 4).permute(0, 3, 2, 1, 4)
        stored |= {
            name: codes[:, ::2] * 16 + codes[:, 1::2],
            f"{layer}.weight_scale": tiles.reshape(padded.shape).to(torch.float8_e4m3fn),
            f"{layer}.weight_scale_2": scale,
            **mark(layer),
        }
    return stored


@dataclass(frozen=True)
class Precision:
    """How weights are stored, and how near the loaded model has to be.

    Attributes:
        encode: from named float32 tensors to what the file holds.
        in_gguf: whether a GGUF file can hold it; in_others: whether the other containers can.
        is_recent: whether pickles from before PyTorch 1.6 do not know its dtypes.
        exact: what a number becomes, where loading may not change one more bit of it.
        tolerance: relative difference of each loaded tensor to the original.
    """

    encode: Callable[[Weights], Mapping[str, Tensor | Blocks]]
    in_gguf: bool = False
    in_others: bool = True
    is_recent: bool = False
    exact: Callable[[Tensor], Tensor] | None = None
    tolerance: float = 0.0


def through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What is left of float32 numbers after a cast."""
    return lambda tensor: tensor.to(dtype).float()


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(cast(torch.float32), in_gguf=True, exact=through(torch.float32)),
    "fp16": Precision(cast(torch.float16), in_gguf=True, exact=through(torch.float16), tolerance=1e-3),
    "bf16": Precision(cast(torch.bfloat16), in_gguf=True, exact=through(torch.bfloat16), tolerance=4e-3),
    "F16 matrices": Precision(as_converters_do(torch.float16), in_gguf=True, in_others=False, tolerance=1e-3),
    "BF16 matrices": Precision(as_converters_do(torch.bfloat16), in_gguf=True, in_others=False, tolerance=4e-3),
    "fp8 e4m3fn, all of it": Precision(
        cast(torch.float8_e4m3fn), exact=through(torch.float8_e4m3fn), is_recent=True, tolerance=2e-1
    ),
    "fp8 e5m2, all of it": Precision(
        cast(torch.float8_e5m2), exact=through(torch.float8_e5m2), is_recent=True, tolerance=2e-1
    ),
    "scaled_fp8": Precision(scaled_fp8(torch.float8_e4m3fn, "scale_weight", old_mark), is_recent=True, tolerance=4e-2),
    "fp8_scale": Precision(
        scaled_fp8(torch.float8_e4m3fn, "fp8_scale", lambda layer: {}), is_recent=True, tolerance=4e-2
    ),
    "comfy_quant e4m3fn": Precision(
        scaled_fp8(torch.float8_e4m3fn, "weight_scale", comfy_mark("float8_e4m3fn")), is_recent=True, tolerance=4e-2
    ),
    "comfy_quant e5m2": Precision(
        scaled_fp8(torch.float8_e5m2, "weight_scale", comfy_mark("float8_e5m2")), is_recent=True, tolerance=8e-2
    ),
    "comfy_quant nvfp4": Precision(nvfp4, is_recent=True, tolerance=1.5e-1),
    "Q8_0": Precision(in_blocks("Q8_0"), in_gguf=True, in_others=False, tolerance=1e-2),
    "Q5_1": Precision(in_blocks("Q5_1"), in_gguf=True, in_others=False, tolerance=4e-2),
    "Q4_0": Precision(in_blocks("Q4_0"), in_gguf=True, in_others=False, tolerance=1.2e-1),
}


# --- containers


def single(stored: Stored, folder: Path) -> Path:
    path = folder / "model.safetensors"
    _save(stored.tensors, path, {"config": json.dumps(stored.config), **stored.metadata})
    return path


def shards_without_index(stored: Stored, folder: Path) -> Path:
    _shards(stored, folder, "model-{:05}-of-00003.safetensors")
    return folder


def sharded_folder(stored: Stored, folder: Path) -> Path:
    _index(_shards(stored, folder, "model-{:05}-of-00003.safetensors"), folder / "model.safetensors.index.json")
    return folder


def index_file(stored: Stored, folder: Path) -> Path:
    return sharded_folder(stored, folder) / "model.safetensors.index.json"


def old_shards(stored: Stored, folder: Path) -> Path:
    """Pickles with an index, as folders had before safetensors."""
    names = sorted(stored.tensors)
    homes = {}
    for index in range(2):
        file = f"pytorch_model-{index + 1:05}-of-00002.bin"
        part = {name: stored.tensors[name] for name in names[index::2]}
        torch.save(part, folder / file)
        homes.update(dict.fromkeys(part, file))
    (folder / "config.json").write_text(json.dumps(stored.config))
    _index(homes, folder / "pytorch_model.bin.index.json")
    return folder


def diffusers_folder(stored: Stored, folder: Path) -> Path:
    """The whole model's folder, with the weights of this part in a subfolder."""
    (folder / "model_index.json").write_text("{}")
    subfolder = folder / stored.part
    subfolder.mkdir()
    homes = _shards(stored, subfolder, "diffusion_pytorch_model-{:05}-of-00003.safetensors")
    _index(homes, subfolder / "diffusion_pytorch_model.safetensors.index.json")
    return folder


def pickled(*wrappers: str, suffix: str = ".pt", is_zip: bool = True) -> Callable[[Stored, Path], Path]:
    """A torch.save file, the table of weights inside wrappers, the outermost last."""

    def write(stored: Stored, folder: Path) -> Path:
        content: object = {**stored.tensors, "config": dict(stored.config)}
        for wrapper in wrappers:
            content = {wrapper: content, "global_step": 7}
        path = folder / f"model{suffix}"
        torch.save(content, path, _use_new_zipfile_serialization=is_zip)
        return path

    return write


def gguf(stored: Stored, folder: Path, architecture: str | None = "hyvid") -> Path:
    path = folder / "model.gguf"
    writer = GGUFWriter(path, architecture or "none")
    if architecture is None:
        writer.kv_data[0].clear()
    writer.add_string("config", json.dumps(stored.config))
    for key, value in stored.metadata.items():
        writer.add_string(key, value)
    for name, tensor in stored.tensors.items():
        if isinstance(tensor, Blocks):
            writer.add_tensor(name, tensor.rows, raw_dtype=GGMLQuantizationType[tensor.block])
        elif tensor.dtype == torch.bfloat16:
            halves = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, halves, raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CONTAINERS: dict[str, Callable[[Stored, Path], Path]] = {
    "one file": single,
    "shards without an index": shards_without_index,
    "shards": sharded_folder,
    "index file": index_file,
    "diffusers folder": diffusers_folder,
    "pickles with an index": old_shards,
    "pickle": pickled(),
    "pickle before PyTorch 1.6": pickled(suffix=".pth", is_zip=False),
    "pickle, module": pickled("module"),
    "pickle, model": pickled("model", suffix=".pth"),
    "pickle, state_dict": pickled("state_dict", suffix=".ckpt"),
    "pickle, ema": pickled("ema", suffix=".bin"),
    "pickle, module in state_dict in model": pickled("module", "state_dict", "model"),
    "gguf": gguf,
}


def _save(tensors: Mapping[str, Tensor | Blocks], path: Path, metadata: dict[str, str]) -> None:
    save_file({name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}, path, metadata=metadata)


def _shards(stored: Stored, folder: Path, pattern: str) -> dict[str, str]:
    """Three files of all tensors in turn; gives the file of each."""
    homes: dict[str, str] = {}
    for index in range(3):
        names = sorted(stored.tensors)[index::3]
        file = pattern.format(index + 1)
        _save({name: stored.tensors[name] for name in names}, folder / file, {"format": "pt", **stored.metadata})
        homes.update(dict.fromkeys(names, file))
    (folder / "config.json").write_text(json.dumps(stored.config))
    return homes


def _index(homes: Mapping[str, str], path: Path) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
