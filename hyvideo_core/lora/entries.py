"""One layer as a LoRA file names it, known from the file's header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..config import TransformerConfig
from ..errors import CorruptFileError, WrongModelError
from ..loading.checkpoint import Checkpoint
from .read_parts import read_change
from .rules import ScaleRules
from .targets import Target

PATCH_LAYER = "img_in.proj"
_NORM_PARTS = {"diff", "diff_b", "set_weight"}
_WHOLE_PARTS = {"alpha", "reshape_weight"}  # parts that may be whole numbers
_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Entry:
    """One layer as a file names it.

    Attributes:
        name: the file's name of the layer.
        target: the rows of the model that it changes.
        parts: tensor names by part, see keys.PARTS.
        shape: (out, in) of the weight that it was made for; the target's own where only a bias changes.
        rank: None where it is not of low rank.
    """

    name: str
    target: Target
    parts: Mapping[str, str]
    shape: tuple[int, int]
    rank: int | None

    def channels(self, config: TransformerConfig) -> int:
        """Latent channels that an entry for the patch embedding was made for; 0 for any other entry."""
        volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        if self.target.layer.name != PATCH_LAYER or self.shape[1] % volume:
            return 0
        return self.shape[1] // volume

    def fits(self, config: TransformerConfig) -> bool:
        """Whether it has the sizes of its target; the patch embedding takes any number of channels."""
        rows, columns = self._expected()
        is_widening = self.channels(config) > 0 and "magnitude" not in self.parts
        return self.shape[0] == rows and (self.shape[1] == columns or is_widening)

    def sizes(self) -> str:
        """Its own sizes and those of its target, for messages."""
        rows, columns = self._expected()
        return (
            f"{self.name} changes a weight of {self.shape[0]} x {self.shape[1]}, {self.target.layer.name} of this "
            f"model takes {rows} x {columns}"
        )

    def _expected(self) -> tuple[int, int]:
        return self.target.rows[1] - self.target.rows[0], self.target.layer.shape[1]


def read_entry(checkpoint: Checkpoint, base: str, parts: Mapping[str, str], target: Target) -> Entry:
    """The entry of a file for one layer.

    Args:
        base: the file's name of the layer.
        parts: tensor names by part.
    Raises:
        CorruptFileError: parts are missing, contradict each other, or are none that the layer has.
        WrongModelError: parts are stored as whole numbers.
    """
    layer = target.layer
    if layer.is_norm and not set(parts) <= _NORM_PARTS:
        raise CorruptFileError(f"{checkpoint.name}: {base} has factors for a norm, which has no matrix; save it anew")
    if "diff_b" in parts and not layer.has_bias:
        raise CorruptFileError(f"{checkpoint.name}: {base} changes a bias that {layer.name} lacks; save it anew")
    _check_floats(checkpoint, base, parts)
    tensors = {}
    try:
        for part, name in parts.items():
            info = checkpoint.tensors[name]
            tensors[part] = torch.empty(info.shape, dtype=info.dtype, device=_META)
        tensors.pop("reshape_weight", None)
        change = read_change(base, tensors, ScaleRules())
    except RuntimeError as error:  # sizes whose product no tensor can have
        raise CorruptFileError(f"{checkpoint.name}: {base} has impossible sizes; download it again") from error
    except CorruptFileError as error:
        raise CorruptFileError(f"{checkpoint.name}: {error}") from error
    shape = change.shape or (change.num_outputs, layer.shape[1])
    return Entry(base, target, parts, shape, None if change.factor is None else change.factor.rank)


def _check_floats(checkpoint: Checkpoint, base: str, parts: Mapping[str, str]) -> None:
    """Whole numbers in place of factors are a quantization; read as they are, they would be noise."""
    for part, name in parts.items():
        info = checkpoint.tensors[name]
        if part not in _WHOLE_PARTS and (info.block is not None or not info.dtype.is_floating_point):
            kind = info.block or str(info.dtype).removeprefix("torch.")
            raise WrongModelError(
                f"{checkpoint.name}: the {part} of {base} is stored as {kind}, which is not read; use a bf16 file"
            )
