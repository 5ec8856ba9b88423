"""The forms in which a file holds the change of a weight. Each can be applied to inputs without making it dense.

A factor stands for a matrix [out, in]; kernels of convolutions are flattened behind their input channel. Its tensors
are parameters without gradients, which training may switch on.

Shapes: O out, I in, R rank, K kernel positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rows = tuple[int, int]


def frozen(tensor: Tensor) -> nn.Parameter:
    """The tensor as a parameter without gradients."""
    return nn.Parameter(tensor, requires_grad=False)


class Factor(nn.Module, ABC):
    """The change of a weight at strength 1.

    Attributes:
        in_features, out_features: of the matrix that it stands for.
        rank: as its trainer counts; None where it is not of low rank.
    """

    in_features: int
    out_features: int
    rank: int | None = None

    @abstractmethod
    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """What the change adds to a layer's output: [..., I] to [..., O], or [..., b - a] for rows (a, b)."""

    def add_to(self, y: Tensor, x: Tensor, rows: Rows, strength: float) -> None:
        """Adds `forward` times the strength to y in place, [..., b - a]."""
        y.add_(self(x, rows), alpha=strength)

    @abstractmethod
    def dense(self, rows: Rows | None = None) -> Tensor:
        """The matrix itself, [O, I] or [b - a, I]."""

    @abstractmethod
    def with_swapped_halves(self) -> Factor:
        """The same change with the two halves of its rows exchanged."""


class LowRank(Factor):
    """LoRA: up [O, R] times down [R, I].

    Args:
        scale: alpha / rank, by the trainer's rule.
    Source: Hu et al. 2021, "LoRA", sec. 4.1.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.down, self.up, self.scale = frozen(down), frozen(up), scale
        self.rank, self.in_features = down.shape
        self.out_features = up.shape[0]

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """See Factor.forward."""
        return F.linear(F.linear(x, self.down) * self.scale, cut(self.up, rows))

    def add_to(self, y: Tensor, x: Tensor, rows: Rows, strength: float) -> None:
        """See Factor.add_to; without a temporary of y's size, and rounded once."""
        inner = F.linear(x, self.down).view(-1, len(self.down))
        y.view(-1, y.shape[-1]).addmm_(inner, cut(self.up, rows).T, alpha=self.scale * strength)

    def dense(self, rows: Rows | None = None) -> Tensor:
        """See Factor.dense."""
        return cut(self.up, rows) @ self.down * self.scale

    def with_swapped_halves(self) -> LowRank:
        """See Factor.with_swapped_halves."""
        return LowRank(self.down, swap_halves(self.up), self.scale)


class Hadamard(Factor):
    """LoHa: the element-wise product of two low-rank matrices; made dense for each call, row by row.

    Args:
        up_1, up_2: [O, R].
        down_1, down_2: [R, I].
    Source: Hyeon-Woo et al. 2021, "FedPara", sec. 2.
    """

    def __init__(self, up_1: Tensor, down_1: Tensor, up_2: Tensor, down_2: Tensor, scale: float) -> None:
        super().__init__()
        self.up_1, self.down_1, self.up_2, self.down_2 = map(frozen, (up_1, down_1, up_2, down_2))
        self.scale = scale
        self.rank, self.in_features = down_1.shape
        self.out_features = up_1.shape[0]

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """See Factor.forward."""
        return F.linear(x, self.dense(rows))

    def dense(self, rows: Rows | None = None) -> Tensor:
        """See Factor.dense."""
        first = cut(self.up_1, rows) @ self.down_1 * self.scale
        return first * (cut(self.up_2, rows) @ self.down_2)

    def with_swapped_halves(self) -> Hadamard:
        """See Factor.with_swapped_halves."""
        return Hadamard(swap_halves(self.up_1), self.down_1, swap_halves(self.up_2), self.down_2, self.scale)


class Kronecker(Factor):
    """LoKr: the Kronecker product of two small matrices, applied one after the other.

    Args:
        left: [O1, I1]; right: [O2, I2]; the product is [O1 * O2, I1 * I2].
    Source: Edalati et al. 2022, "KronA", sec. 3.
    """

    def __init__(self, left: Tensor, right: Tensor, scale: float, rank: int | None = None) -> None:
        super().__init__()
        self.left, self.right, self.scale, self.rank = frozen(left), frozen(right), scale, rank
        self.in_features = left.shape[1] * right.shape[1]
        self.out_features = left.shape[0] * right.shape[0]

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """See Factor.forward."""
        inner = F.linear(x.unflatten(-1, (self.left.shape[1], self.right.shape[1])), self.right)
        outer = F.linear(inner.transpose(-1, -2), self.left).transpose(-1, -2).flatten(-2) * self.scale
        return outer if rows is None else outer[..., rows[0] : rows[1]]

    def dense(self, rows: Rows | None = None) -> Tensor:
        """See Factor.dense."""
        return cut(torch.kron(self.left, self.right), rows) * self.scale

    def with_swapped_halves(self) -> Factor:
        """See Factor.with_swapped_halves."""
        if len(self.left) % 2 == 0:
            return Kronecker(swap_halves(self.left), self.right, self.scale, self.rank)
        return Dense(swap_halves(self.dense()))


class Dense(Factor):
    """A difference stored whole, [O, I]."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = frozen(matrix)
        self.out_features, self.in_features = matrix.shape

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """See Factor.forward."""
        return F.linear(x, cut(self.matrix, rows))

    def dense(self, rows: Rows | None = None) -> Tensor:
        """See Factor.dense."""
        return cut(self.matrix, rows)

    def with_swapped_halves(self) -> Dense:
        """See Factor.with_swapped_halves."""
        return Dense(swap_halves(self.matrix))


def cut(tensor: Tensor, rows: Rows | None) -> Tensor:
    """The rows (a, b) of a tensor; all of them for None."""
    return tensor if rows is None else tensor[rows[0] : rows[1]]


def swap_halves(tensor: Tensor) -> Tensor:
    """The second half of the rows before the first."""
    return torch.cat(tensor.chunk(2)[::-1])
