"""Weights in fp8: cast without scales, with scales beside them, with scales in a second file.

Sources: the layouts that ComfyUI, its quantizing scripts and the official release write.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CorruptFileError, WrongModelError
from ..quantization import FP8_DTYPES, Fp8Linear, StoredLinear
from ..quantization.base import frozen
from .checkpoint import Checkpoint, ReadTensor
from .key_maps import KeyView
from .linear_policy import LinearPolicy
from .pickle_file import PickleFile, load_pickle

logger = logging.getLogger(__name__)

SCALE_NAMES = ("scale_weight", "weight_scale", "fp8_scale")
# scales of activations serve a static quantization of them, which is not done here
UNUSED_NAMES = ("scale_input", "input_scale", "comfy_quant")
MARKER = "scaled_fp8"
OFFICIAL_FP8_NAME = "mp_rank_00_model_states_fp8.pt"
SCALED_PEAK = 64.0
"""Scaled weights reach towards fp8's largest number (448); those of a trained linear layer stay far below this."""
NUM_PEAKS = 3


@dataclass(frozen=True)
class StoredFp8(LinearPolicy):
    """What all of them share: fp8 weights stay fp8, multiplied by a scale where there is one."""

    @abstractmethod
    def has_scale(self, name: str) -> bool:
        """Whether the file's weight `name` has a scale."""

    @abstractmethod
    def scale(self, name: str, read: ReadTensor) -> Tensor:
        """The scale of the file's weight `name`."""

    def is_full_precision(self, name: str) -> bool:  # noqa: ARG002
        """Whether the file asks that products with its weight `name` be made in full precision."""
        return False

    @property
    def marks(self) -> Sequence[str]:
        """The marker of ComfyUI's older layout, at the root or under the model's prefix."""
        return [name for name in self.view.checkpoint.tensors if is_marker(name, self.view.prefix)]

    def layer(
        self, key: str, shape: tuple[int, int], *, has_bias: bool, compute_dtype: torch.dtype
    ) -> StoredLinear | None:
        """An fp8 layer where the weight is fp8 or has a scale."""
        names = self.view.names(key)
        dtypes = {self.view.checkpoint.tensors[name].dtype for name in names}
        scaled = any(self.has_scale(name) for name in names)
        if not scaled and not dtypes.intersection(FP8_DTYPES):
            return None
        is_mixed = len(dtypes) > 1
        layer = Fp8Linear(
            shape[1],
            shape[0],
            has_bias=has_bias,
            weight_dtype=compute_dtype if is_mixed else dtypes.pop(),
            compute_dtype=compute_dtype,
            scaled=scaled and not is_mixed,
        )
        layer.is_full_precision = any(self.is_full_precision(name) for name in names)
        return layer

    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """See LinearPolicy.fill."""
        assert isinstance(layer, Fp8Linear)
        weights = [read(name) for name in self.view.names(key)]
        scales = self._scales(key, read)
        dtype = layer.weight.dtype
        if layer.scale is not None:
            layer.scale = joined_scales(self.view, key, [len(weight) for weight in weights], scales).to(device)
        elif dtype not in FP8_DTYPES:  # parts of several dtypes, widened here
            weights = [
                weight.to(dtype) * scale.to(dtype).reshape(-1, 1) for weight, scale in zip(weights, scales, strict=True)
            ]
        weight = self.view.dialect.join(key, weights, (layer.out_features, layer.in_features))
        layer.weight = frozen(weight.to(device))

    def joined_scale(self, key: str, read: ReadTensor) -> Tensor:
        """The scale of the weight `key` as its layer holds it, read without the weight; one where it has none."""
        rows = [self.view.checkpoint.tensors[name].shape[0] for name in self.view.names(key)]
        return joined_scales(self.view, key, rows, self._scales(key, read))

    def _scales(self, key: str, read: ReadTensor) -> list[Tensor]:
        return [self.scale(name, read) if self.has_scale(name) else torch.ones(1) for name in self.view.names(key)]


@dataclass(frozen=True)
class CastFp8(StoredFp8):
    """Weights cast to fp8 without scales."""

    @property
    def label(self) -> str:
        """See LinearPolicy.label."""
        return f"{fp8_names(self.view)} without scales"

    @classmethod
    def find(cls, view: KeyView) -> CastFp8 | None:
        """Any fp8 tensor marks it."""
        return cls(view) if fp8_names(view) else None

    def has_scale(self, name: str) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def scale(self, name: str, read: ReadTensor) -> Tensor:  # noqa: ARG002
        """Never called."""
        return torch.ones(1)


@dataclass(frozen=True)
class ScaledFp8(StoredFp8):
    """Weights in fp8 with a scale beside each of them: ComfyUI's `scaled_fp8` files and their relatives."""

    @property
    def label(self) -> str:
        """See LinearPolicy.label."""
        return f"scaled {fp8_names(self.view)}"

    @classmethod
    def find(cls, view: KeyView) -> ScaledFp8 | None:
        """Any scale under the model's prefix marks it.

        Raises:
            WrongModelError: some of its weights lack theirs.
        """
        policy = cls(view)
        if not any(name.rpartition(".")[2] in SCALE_NAMES for name in under_prefix(view)):
            return None
        bare = [name for name in fp8_weights(view) if not policy.has_scale(name)]
        if bare:
            raise WrongModelError(
                f"{view.checkpoint.name} holds scaled fp8 weights and lacks the scales of {len(bare)} of them, such as "
                f"{bare[0]}; it is incomplete: download it again, or use the bf16 file"
            )
        return policy

    def companions(self, key: str) -> Sequence[str]:
        """The scales of weight and activations."""
        tensors = self.view.checkpoint.tensors
        beside = (beside_weight(name, own) for name in self.view.names(key) for own in SCALE_NAMES + UNUSED_NAMES)
        return [name for name in beside if name in tensors]

    def has_scale(self, name: str) -> bool:
        """See StoredFp8.has_scale."""
        return self._scale_name(name) is not None

    def scale(self, name: str, read: ReadTensor) -> Tensor:
        """See StoredFp8.scale."""
        scale = self._scale_name(name)
        assert scale is not None
        return read(scale)

    def is_full_precision(self, name: str) -> bool:  # noqa: ARG002
        """A marker of two elements asks for it, for every layer."""
        tensors = self.view.checkpoint.tensors
        return any(prod(tensors[mark].shape) == 2 for mark in self.marks)

    def _scale_name(self, name: str) -> str | None:
        names = (beside_weight(name, own) for own in SCALE_NAMES)
        return next((scale for scale in names if scale in self.view.checkpoint.tensors), None)


@dataclass(frozen=True)
class OfficialFp8(StoredFp8):
    """The official release's fp8 weights, whose scales lie in a second file, `..._map.pt`.

    The same file name with .safetensors is in circulation with weights that are cast and have no scales. So the
    weights themselves decide whether scales are needed.
    """

    scales: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """See LinearPolicy.label."""
        return f"scaled {fp8_names(self.view)}, scales from {map_path(self.view.checkpoint).name}"

    @classmethod
    def find(cls, view: KeyView) -> OfficialFp8 | None:
        """Fp8 weights that are scaled, or a pickle with a map beside it that fits, mark it.

        Raises:
            WrongModelError: scales are needed and their file is missing or does not fit.
        """
        weights = fp8_weights(view)
        if not weights:
            return None
        checkpoint, path = view.checkpoint, map_path(view.checkpoint)
        needed = checkpoint.path.name == OFFICIAL_FP8_NAME or are_scaled(checkpoint, weights)
        if not path.is_file():
            if not needed:
                return None
            raise WrongModelError(
                f"{checkpoint.name} holds scaled fp8 weights, and their scales are not beside it; put {path.name} "
                "from the same release into its folder, or use the bf16 file"
            )
        if needed or isinstance(checkpoint, PickleFile):
            scales = _read_map(path)
            layers = {name.removeprefix(view.prefix).removesuffix(".weight") for name in weights}
            if layers == scales.keys():
                return cls(view, scales)
            if needed:
                raise WrongModelError(
                    f"{path.name} has scales for {len(scales)} layers, {checkpoint.name} has {len(layers)} in fp8 "
                    f"({len(layers & scales.keys())} of the same name); use both files of one release"
                )
        logger.info("%s is not used: the fp8 weights of %s are not scaled", path.name, checkpoint.name)
        return None

    def has_scale(self, name: str) -> bool:
        """See StoredFp8.has_scale."""
        return self._layer(name) in self.scales

    def scale(self, name: str, read: ReadTensor) -> Tensor:  # noqa: ARG002
        """See StoredFp8.scale."""
        return self.scales[self._layer(name)]

    def _layer(self, name: str) -> str:
        return name.removeprefix(self.view.prefix).removesuffix(".weight")


def map_path(checkpoint: Checkpoint) -> Path:
    """Where the official release keeps the scales of a file."""
    return checkpoint.path.with_name(f"{checkpoint.path.stem}_map.pt")


def _read_map(path: Path) -> Mapping[str, Tensor]:
    content = load_pickle(path, "cpu")
    if not isinstance(content, dict) or not all(isinstance(scale, Tensor | float) for scale in content.values()):
        raise CorruptFileError(f"{path.name} is not a table of scales; download it again")
    return {str(name): torch.as_tensor(scale).float() for name, scale in content.items()}


def joined_scales(view: KeyView, key: str, rows: Sequence[int], scales: Sequence[Tensor]) -> Tensor:
    """The scales of a weight's parts as float32 [1], or [out, 1] where the rows of the whole may differ.

    Args:
        rows: of each part.
    Raises:
        WrongModelError: a scale that is neither one number nor one for each row.
        CorruptFileError: a scale that is NaN or infinite.
    """
    for num_rows, scale in zip(rows, scales, strict=True):
        if scale.numel() not in (1, num_rows):
            raise WrongModelError(
                f"{view.checkpoint.name}: the scale of {key} has the shape {list(scale.shape)}, expected one number or "
                f"{num_rows}; the file is damaged or of a format that this pack does not know"
            )
        if not scale.is_meta and not scale.float().isfinite().all():
            raise CorruptFileError(
                f"{view.checkpoint.name}: the scale of {key} holds NaN or infinity; it, or the file that holds its "
                "scales, is damaged: download it again"
            )
    if len(scales) == 1 and scales[0].numel() == 1:
        return scales[0].float().reshape(1)
    columns = [scale.float().reshape(-1, 1).expand(num_rows, 1) for num_rows, scale in zip(rows, scales, strict=True)]
    return view.dialect.join(key, columns, (sum(rows), 1))


def beside_weight(name: str, own: str) -> str:
    """The name of a companion: `layer.weight` has `layer.scale_weight`."""
    return name.removesuffix("weight") + own


def under_prefix(view: KeyView) -> list[str]:
    """The file's names under the model's prefix."""
    return [name for name in view.checkpoint.tensors if name.startswith(view.prefix)]


def is_marker(name: str, prefix: str) -> bool:
    """Whether a tensor says that the model under `prefix` has scaled fp8 weights."""
    place, _, last = name.rpartition(".")
    return last == MARKER and (not place or prefix.startswith(place + "."))


def fp8_weights(view: KeyView) -> list[str]:
    """The file's names of fp8 matrices."""
    tensors = view.checkpoint.tensors
    return [
        name
        for name in under_prefix(view)
        if name.endswith(".weight")
        and tensors[name].dtype in FP8_DTYPES
        and len(tensors[name].shape) == 2
        and 0 not in tensors[name].shape
    ]


def fp8_names(view: KeyView) -> str:
    """The fp8 dtypes of a file in words: "fp8 (e4m3fn)"; empty without any."""
    kinds = {view.checkpoint.tensors[name].dtype for name in under_prefix(view)}.intersection(FP8_DTYPES)
    return f"fp8 ({', '.join(sorted(str(kind).partition('float8_')[2] for kind in kinds))})" if kinds else ""


def are_scaled(checkpoint: Checkpoint, names: Iterable[str]) -> bool:
    """Whether fp8 matrices were divided by scales, told from the largest numbers of the smallest few of them."""
    smallest = sorted(names, key=lambda name: checkpoint.tensors[name].shape)[:NUM_PEAKS]
    if not smallest:
        return False
    with checkpoint.reading() as read:
        samples = [read(name) for name in smallest]
        # on the meta device there are names and shapes only
        return all(not sample.is_meta and sample.float().abs().max() >= SCALED_PEAK for sample in samples)
