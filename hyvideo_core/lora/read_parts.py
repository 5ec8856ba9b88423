"""The tensors of one entry of a file to what it does to its layer. Works on meta tensors, so headers are checked too.

Shapes: O out, I in, R rank, K kernel positions of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CorruptFileError
from .factors import Dense, Factor, Hadamard, Kronecker, LowRank, frozen, swap_halves
from .rules import ScaleRules

LOW_RANK, LOHA, LOKR, DORA, DIFF, DIFF_BIAS, REPLACED = (
    "LoRA",
    "LoHa",
    "LoKr",
    "DoRA",
    "full difference",
    "bias difference",
    "replaced weight",
)
_KIND_OF_PART = (
    (LOW_RANK, ("down", "up", "mid")),
    (LOHA, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    (LOKR, ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    (DIFF, ("diff",)),
    (REPLACED, ("set_weight",)),
)


class Change(nn.Module):
    """Everything that one entry does to the rows of its layer, at strength 1.

    Attributes:
        factor: what is added to the weight.
        magnitude: DoRA's lengths of the changed weight, [O, 1] or [1, I], float32.
        bias: what is added to the bias, [O].
        replacement: what takes the weight's place, [O, I].
    """

    def __init__(
        self,
        factor: Factor | None = None,
        magnitude: Tensor | None = None,
        bias: Tensor | None = None,
        replacement: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.magnitude = None if magnitude is None else frozen(magnitude)
        self.bias = None if bias is None else frozen(bias)
        self.replacement = None if replacement is None else frozen(replacement)

    @property
    def shape(self) -> tuple[int, int] | None:
        """(out, in) of the weight that it fits; None where only the bias changes."""
        if self.factor is not None:
            return self.factor.out_features, self.factor.in_features
        if self.replacement is not None:
            return self.replacement.shape[0], self.replacement.shape[1]
        return None

    @property
    def num_outputs(self) -> int:
        """Output channels that it changes."""
        return self.shape[0] if self.shape else 0 if self.bias is None else len(self.bias)

    def cast(self, dtype: torch.dtype, device: torch.device | None) -> Change:
        """The same in another dtype and place; lengths stay float32."""
        return Change(
            None if self.factor is None else self.factor.to(device=device, dtype=dtype),
            None if self.magnitude is None else self.magnitude.to(device),
            None if self.bias is None else self.bias.to(device=device, dtype=dtype),
            None if self.replacement is None else self.replacement.to(device=device, dtype=dtype),
        )


class _Entry(NamedTuple):
    """The tensors of one entry, with what messages call it."""

    name: str
    tensors: Mapping[str, Tensor]

    def __contains__(self, part: object) -> bool:
        return part in self.tensors

    def matrix(self, part: str) -> Tensor:
        """A part as a matrix; kernels are flattened behind their input channel."""
        tensor = self.tensors.get(part)
        if tensor is None:
            raise CorruptFileError(f"{self.name} has {', '.join(self.tensors)} but no {part}; download the file again")
        if tensor.ndim < 2 or 0 in tensor.shape:
            raise self.damaged(part, "a matrix")
        return tensor.flatten(1)

    def whole(self, part: str) -> Tensor:
        """A part that stands for a whole weight: as `matrix`, and a column for a norm."""
        tensor = self.tensors[part]
        return tensor[:, None] if tensor.ndim == 1 and len(tensor) else self.matrix(part)

    def damaged(self, part: str, expected: str) -> CorruptFileError:
        """The error for a part of a wrong shape."""
        shape = list(self.tensors[part].shape)
        return CorruptFileError(
            f"{self.name}: its {part} is {shape}, expected {expected}; the file is damaged, download it again"
        )

    def product(self, up: str, down: str) -> Tensor:
        """The product of two parts."""
        return self.matched(up, down)[0] @ self.matrix(down)

    def matched(self, up: str, down: str) -> tuple[Tensor, Tensor]:
        """Two parts that can be multiplied."""
        left, right = self.matrix(up), self.matrix(down)
        if left.shape[1] != right.shape[0]:
            raise self.damaged(up, f"rank {right.shape[0]}, as its {down} has")
        return left, right

    def number(self, part: str) -> float | None:
        """A part that is one number; 1 on the meta device, None if it is not there."""
        tensor = self.tensors.get(part)
        if tensor is None:
            return None
        if tensor.numel() != 1:
            raise self.damaged(part, "one number")
        value = 1.0 if tensor.is_meta else float(tensor)
        if not math.isfinite(value):
            raise CorruptFileError(f"{self.name}: its {part} is {value}; the file is damaged, download it again")
        return value


def kinds_of(parts: Mapping[str, object]) -> list[str]:
    """What an entry with these parts is, in words."""
    kinds = [kind for kind, marks in _KIND_OF_PART if any(mark in parts for mark in marks)]
    kinds += [DORA] * ("magnitude" in parts)
    return kinds + [DIFF_BIAS] * ("diff_b" in parts)


def read_change(name: str, tensors: Mapping[str, Tensor], rules: ScaleRules, *, is_swapped: bool = False) -> Change:
    """What the tensors of one entry do to their layer, in float32.

    Args:
        name: what messages call the entry.
        tensors: by part, see keys.PARTS; on the meta device, only shapes are checked.
        rules: how alpha is read.
        is_swapped: the halves of the rows stand in the other order in the file.
    Raises:
        CorruptFileError: parts are missing, or contradict each other.
    """
    entry = _Entry(name, {part: tensor.to(torch.float32) for part, tensor in tensors.items()})
    kinds = [kind for kind in kinds_of(tensors) if kind not in (DORA, DIFF_BIAS)]
    if len(kinds) > 1:
        both = " and a ".join(kinds)
        raise CorruptFileError(f"{name} has a {both} at once; expected one of them, save the file anew")
    factor = _FACTORS[kinds[0]](entry, rules) if kinds and kinds[0] in _FACTORS else None
    replacement = entry.whole("set_weight") if "set_weight" in entry else None
    if factor is None and replacement is None and "diff_b" not in entry:
        raise CorruptFileError(f"{name} has {', '.join(tensors)} and nothing to scale by it; download the file again")
    change = Change(factor, _magnitude(entry, factor), _bias(entry, factor), replacement)
    if change.bias is not None and len(change.bias) != change.num_outputs:
        raise entry.damaged("diff_b" if "diff_b" in entry else "up_bias", f"[{change.num_outputs}], one for each row")
    return _swapped(change) if is_swapped else change


def _low_rank(entry: _Entry, rules: ScaleRules) -> Factor:
    up, down = entry.matrix("up"), entry.matrix("down")
    if "mid" in entry:
        middle = entry.tensors["mid"]
        if middle.ndim < 2 or middle.shape[0] != up.shape[1] or middle.shape[1] != down.shape[0]:
            raise entry.damaged("mid", f"[{up.shape[1]}, {down.shape[0]}] and a kernel")
        down = torch.einsum("abk,bi->aik", middle.reshape(*middle.shape[:2], -1), down).flatten(1)
    elif up.shape[1] != down.shape[0]:
        raise entry.damaged("up", f"rank {down.shape[0]}, as its down has")
    return LowRank(down, up, rules.scale(entry.name, entry.number("alpha"), down.shape[0]))


def _loha(entry: _Entry, rules: ScaleRules) -> Factor:
    rank = entry.matrix("hada_w1_b").shape[0]
    scale = rules.scale(entry.name, entry.number("alpha"), rank)
    if "hada_t1" in entry or "hada_t2" in entry:
        first, second = (_tucker(entry, f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b") for n in (1, 2))
        if first.shape != second.shape:
            raise entry.damaged("hada_t2", "the sizes of hada_t1")
        return Dense(first * second * scale)
    up_1, down_1 = entry.matched("hada_w1_a", "hada_w1_b")
    up_2, down_2 = entry.matched("hada_w2_a", "hada_w2_b")
    if len(up_1) != len(up_2) or down_1.shape[1] != down_2.shape[1]:
        raise entry.damaged("hada_w2_a", f"{len(up_1)} rows, as its hada_w1_a has, for {down_1.shape[1]} columns")
    return Hadamard(up_1, down_1, up_2, down_2, scale)


def _lokr(entry: _Entry, rules: ScaleRules) -> Factor:
    left, left_rank = _lokr_half(entry, "lokr_w1")
    right, right_rank = _lokr_half(entry, "lokr_w2")
    rank = left_rank if right_rank is None else right_rank
    alpha = entry.number("alpha")
    # with both halves whole there is no rank that alpha could be divided by
    scale = 1.0 if rank is None else rules.scale(entry.name, alpha, rank)
    return Kronecker(left, right, scale, rank)


def _lokr_half(entry: _Entry, part: str) -> tuple[Tensor, int | None]:
    """A half as a matrix, and its rank where it is a product."""
    if part in entry:
        return entry.matrix(part), None
    up, down = f"{part}_a", f"{part}_b"
    rank = entry.matrix(down).shape[0]
    if part == "lokr_w2" and "lokr_t2" in entry:
        return _tucker(entry, "lokr_t2", up, down), rank
    return entry.product(up, down), rank


def _tucker(entry: _Entry, core: str, up: str, down: str) -> Tensor:
    """A core [R, R, K...] with factors [R, O] and [R, I] on its first two axes, as [O, I * K]."""
    entry.matrix(core)
    tensor = entry.tensors[core]
    left, right = entry.matrix(up).T, entry.matrix(down)
    if tensor.shape[0] != left.shape[1] or tensor.shape[1] != right.shape[0]:
        raise entry.damaged(core, f"[{left.shape[1]}, {right.shape[0]}] and a kernel")
    return torch.einsum("oa,abk,bi->oik", left, tensor.reshape(*tensor.shape[:2], -1), right).flatten(1)


def _diff(entry: _Entry, rules: ScaleRules) -> Factor:  # noqa: ARG001 (a whole difference has no alpha)
    return Dense(entry.whole("diff"))


_FACTORS = {LOW_RANK: _low_rank, LOHA: _loha, LOKR: _lokr, DIFF: _diff}


def _magnitude(entry: _Entry, factor: Factor | None) -> Tensor | None:
    """DoRA's lengths as [O, 1] or [1, I]; one axis alone means one for each output."""
    if "magnitude" not in entry:
        return None
    if factor is None:
        raise CorruptFileError(f"{entry.name} has a DoRA scale and no factors; download the file again")
    tensor = entry.tensors["magnitude"]
    rows, columns = factor.out_features, factor.in_features
    if tensor.numel() == rows and (tensor.ndim < 2 or tensor.shape[0] == rows):
        return tensor.reshape(rows, 1)
    inputs = tensor.shape[1] if tensor.ndim >= 2 else 0
    if tensor.numel() == inputs and inputs and columns % inputs == 0:
        # a convolution has one length for all positions of the kernel
        return tensor.reshape(1, inputs).repeat_interleave(columns // inputs, dim=1)
    raise entry.damaged("magnitude", f"[{rows}, 1] or [1, {columns}]")


def _bias(entry: _Entry, factor: Factor | None) -> Tensor | None:
    """A difference of the bias, with the bias that PEFT's second factor may have."""
    tensors = []
    if "diff_b" in entry:
        tensors.append(entry.tensors["diff_b"])
    if "up_bias" in entry:
        if not isinstance(factor, LowRank):
            raise CorruptFileError(f"{entry.name} has a bias of lora_B and no lora_B; download the file again")
        tensors.append(entry.tensors["up_bias"] * factor.scale)
    sizes = {tuple(tensor.shape) for tensor in tensors}
    if len(sizes) > 1 or any(len(size) != 1 or 0 in size for size in sizes):
        raise entry.damaged("diff_b" if "diff_b" in entry else "up_bias", "one axis")
    return sum(tensors[1:], tensors[0]) if tensors else None


def _swapped(change: Change) -> Change:
    factor, magnitude, bias, replacement = change.factor, change.magnitude, change.bias, change.replacement
    return Change(
        None if factor is None else factor.with_swapped_halves(),
        swap_halves(magnitude) if magnitude is not None and magnitude.shape[1] == 1 else magnitude,
        None if bias is None else swap_halves(bias),
        None if replacement is None else swap_halves(replacement),
    )
