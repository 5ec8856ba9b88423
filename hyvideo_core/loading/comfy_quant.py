"""ComfyUI's newer quantized files, which say for each layer how it is stored.

A mark is JSON, such as {"format": "float8_e4m3fn"}: the bytes of the tensor `layer.comfy_quant`, or an entry of the
file's metadata `_quantization_metadata`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptFileError, WrongModelError
from ..quantization import Fp8Linear, Nvfp4Linear, StoredLinear
from ..quantization.base import frozen
from ..quantization.nvfp4 import BLOCK, packed_order, tiled_shape
from .checkpoint import Checkpoint, ReadTensor
from .coverage import counted
from .fp8_policies import UNUSED_NAMES, StoredFp8, are_scaled, beside_weight, fp8_weights, joined_scales, under_prefix
from .key_maps import KeyView

MARK = "comfy_quant"
METADATA = "_quantization_metadata"
FP8_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
NVFP4 = "nvfp4"
KNOWN = (*FP8_FORMATS, NVFP4)
MAX_MARK_BYTES = 65536

Marks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ComfyQuant(StoredFp8):
    """A format for each layer. Layers without a mark are as they are."""

    formats: Marks = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """See LinearPolicy.label."""
        counts = Counter(str(mark["format"]) for mark in self.formats.values())
        return "ComfyUI quantized: " + ", ".join(
            f"{counted(count, 'layer')} {name}" for name, count in counts.most_common()
        )

    @classmethod
    def find(cls, view: KeyView) -> ComfyQuant | None:
        """Marks of the model's layers, in tensors or in the metadata.

        Raises:
            CorruptFileError: a mark that is not JSON, or a layer without its scales.
            WrongModelError: a format that is not read, or scaled weights without a mark.
        """
        formats = _from_tensors(view) or _from_metadata(view)
        if not formats:
            return None
        unknown = Counter(str(mark.get("format")) for mark in formats.values() if mark.get("format") not in KNOWN)
        if unknown:
            name, count = unknown.most_common(1)[0]
            raise WrongModelError(
                f"{view.checkpoint.name} has {counted(count, 'layer')} stored as {name}, which is not read; "
                f"use a file of {', '.join(KNOWN)}, or the bf16 one"
            )
        cls(view, formats)._check_companions()
        bare = [name for name in fp8_weights(view) if name.removesuffix(".weight") not in formats]
        unmarked = [name for name in bare if beside_weight(name, "weight_scale") in view.checkpoint.tensors]
        if unmarked or are_scaled(view.checkpoint, bare):
            bare = unmarked or bare
            raise WrongModelError(
                f"{view.checkpoint.name} does not say how {len(bare)} of its fp8 weights are scaled, such as "
                f"{bare[0]}; it is incomplete: download it again, or use the bf16 file"
            )
        return cls(_with_real_shapes(view, formats), formats)

    def packs(self, name: str) -> bool:
        """Two nvfp4 numbers lie in a byte."""
        return self._format(name) == NVFP4

    def companions(self, key: str) -> Sequence[str]:
        """Scales and marks."""
        wanted = ("weight_scale", "weight_scale_2", *UNUSED_NAMES)
        beside = (beside_weight(name, own) for name in self.view.names(key) for own in wanted)
        return [name for name in beside if name in self.view.checkpoint.tensors]

    def has_scale(self, name: str) -> bool:
        """See StoredFp8.has_scale."""
        return self._format(name) in FP8_FORMATS

    def scale(self, name: str, read: ReadTensor) -> Tensor:
        """See StoredFp8.scale."""
        return read(beside_weight(name, "weight_scale"))

    def is_full_precision(self, name: str) -> bool:
        """A layer's mark may ask for it."""
        return bool(self.formats.get(name.removesuffix(".weight"), {}).get("full_precision_matrix_mult"))

    def layer(
        self, key: str, shape: tuple[int, int], *, has_bias: bool, compute_dtype: torch.dtype
    ) -> StoredLinear | None:
        """An nvfp4 layer where every part is nvfp4, else as StoredFp8 does it."""
        formats = {self._format(name) for name in self.view.names(key)}
        if formats == {NVFP4}:
            return Nvfp4Linear(shape[1], shape[0], has_bias=has_bias, compute_dtype=compute_dtype)
        if NVFP4 in formats:
            raise WrongModelError(
                f"{self.view.checkpoint.name}: the parts of {key} are stored in several formats, which is not read; "
                "use a file that stores them alike, or the bf16 one"
            )
        return super().layer(key, shape, has_bias=has_bias, compute_dtype=compute_dtype)

    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """See LinearPolicy.fill."""
        if isinstance(layer, Fp8Linear):
            super().fill(layer, key, read, device)
            return
        assert isinstance(layer, Nvfp4Linear)
        names, join = self.view.names(key), self.view.dialect.join
        weights = [read(name) for name in names]
        blocks = [_block_scales(self, name, read) for name in names]
        scales = [read(beside_weight(name, "weight_scale_2")) for name in names]
        rows, columns = layer.out_features, layer.in_features
        layer.weight = frozen(join(key, weights, (rows, columns // 2)).to(device))
        layer.block_scale = join(key, blocks, (rows, columns // BLOCK)).to(device)
        layer.scale = joined_scales(self.view, key, [len(weight) for weight in weights], scales).to(device)

    def _format(self, name: str) -> str | None:
        mark = self.formats.get(name.removesuffix(".weight"))
        return None if mark is None else str(mark["format"])

    @property
    def has_tiled_scales(self) -> bool:
        """Whether block scales lie as tensor cores read them; files of a tool that leaves them in order exist too.

        Where a layer's shape fits both, the other layers of the file decide, and without any, ComfyUI's own way.
        """
        tensors = self.view.checkpoint.tensors
        for layer, mark in self.formats.items():
            if mark["format"] == NVFP4:
                rows, columns = _block_grid(self.view.checkpoint, f"{layer}.weight")
                found = tensors[f"{layer}.weight_scale"].shape
                if found == (rows, columns) != tiled_shape(rows, columns):
                    return False
        return True

    def _check_companions(self) -> None:
        tensors = self.view.checkpoint.tensors
        for layer, mark in self.formats.items():
            kind = str(mark["format"])
            wanted = ["weight", "weight_scale", *(["weight_scale_2"] if kind == NVFP4 else [])]
            missing = [own for own in wanted if f"{layer}.{own}" not in tensors]
            if missing:
                raise CorruptFileError(
                    f"{self.view.checkpoint.name} marks {layer} as {kind} and lacks its {missing[0]}; "
                    "it is incomplete, download it again"
                )
            info, expected = tensors[f"{layer}.weight"], torch.uint8 if kind == NVFP4 else FP8_FORMATS[kind]
            is_whole = kind != NVFP4 or (len(info.shape) == 2 and not 2 * info.shape[1] % BLOCK)
            if info.dtype != expected or not is_whole:
                raise CorruptFileError(
                    f"{self.view.checkpoint.name} marks {layer} as {kind}, but its weight is {list(info.shape)} of "
                    f"{str(info.dtype).removeprefix('torch.')}; download it again"
                )


def _with_real_shapes(view: KeyView, formats: Marks) -> KeyView:
    """The view with the shapes of what packed weights stand for."""
    tensors = dict(view.checkpoint.tensors)
    for layer, mark in formats.items():
        if mark["format"] == NVFP4:
            info = tensors[f"{layer}.weight"]
            tensors[f"{layer}.weight"] = replace(info, shape=(info.shape[0], 2 * info.shape[-1]))
    return replace(view, checkpoint=replace(view.checkpoint, tensors=tensors))


def _block_grid(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    """Rows and columns of the block scales of an nvfp4 weight."""
    rows, columns = checkpoint.tensors[name].shape
    return rows, columns // BLOCK


def _block_scales(policy: ComfyQuant, name: str, read: ReadTensor) -> Tensor:
    grid = _block_grid(policy.view.checkpoint, name)
    scales = read(beside_weight(name, "weight_scale"))
    if scales.dtype == torch.uint8:
        scales = scales.view(torch.float8_e4m3fn)
    expected = tiled_shape(*grid) if policy.has_tiled_scales else grid
    if scales.numel() != prod(expected) or scales.dtype != torch.float8_e4m3fn:
        raise CorruptFileError(
            f"{policy.view.checkpoint.name}: the block scales of {name} are {list(scales.shape)} of "
            f"{str(scales.dtype).removeprefix('torch.')}, expected {list(expected)} of float8_e4m3fn; download it again"
        )
    return packed_order(scales, *grid) if policy.has_tiled_scales else scales.reshape(grid)


def _from_tensors(view: KeyView) -> Marks:
    tensors = view.checkpoint.tensors
    names = [name for name in under_prefix(view) if name.endswith(f".{MARK}")]
    for name in names:
        if tensors[name].dtype != torch.uint8 or prod(tensors[name].shape) > MAX_MARK_BYTES:
            raise CorruptFileError(
                f"{view.checkpoint.name}: {name} is not JSON: {list(tensors[name].shape)} of "
                f"{str(tensors[name].dtype).removeprefix('torch.')}; download it again"
            )
    if not names:
        return {}
    with view.checkpoint.reading() as read:
        return {
            name.removesuffix(f".{MARK}"): _parsed(bytes(read(name).flatten().tolist()), view.checkpoint, name)
            for name in names
        }


def _from_metadata(view: KeyView) -> Marks:
    """Layers are written with the prefix or without it; those of other models in the file are left out."""
    text = view.checkpoint.metadata.get(METADATA)
    if text is None:
        return {}
    layers = _parsed(text, view.checkpoint, METADATA).get("layers", {})
    if not isinstance(layers, dict) or not all(isinstance(mark, dict) for mark in layers.values()):
        raise CorruptFileError(f"{view.checkpoint.name}: {METADATA} lists no layers; download it again")
    tensors = view.checkpoint.tensors
    full = {name if f"{name}.weight" in tensors else view.prefix + name: mark for name, mark in layers.items()}
    return {name: mark for name, mark in full.items() if f"{name}.weight" in tensors and name.startswith(view.prefix)}


def _parsed(text: str | bytes, checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{checkpoint.name}: {name} is not JSON; download it again") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{checkpoint.name}: {name} is not a JSON object; download it again")
    return value
