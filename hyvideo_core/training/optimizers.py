"""Muon for the transformer's hidden layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.99)
MOMENTUM = 0.95
UPDATE_SIZE = 0.2
"""Root mean square of a Muon update per unit of learning rate: about that of AdamW, so that both share one rate."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon suits it: a matrix inside a block; what conditions blocks stays with AdamW."""
    return parameter.ndim == 2 and "blocks" in name and "mod" not in name


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal, with AdamW for parameters that are no hidden matrices.

    A fused layer counts as the square matrices that it is stacked from.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the size of its updates after Liu et al. 2025,
    "Muon is scalable for LLM training", sec. 2.2.
    """

    def __init__(self, module: nn.Module, lr: float, weight_decay: float) -> None:
        named = list(module.named_parameters())
        hidden = [parameter for name, parameter in named if is_hidden_matrix(name, parameter)]
        other = [parameter for name, parameter in named if not is_hidden_matrix(name, parameter)]
        groups = [{"params": hidden, "is_hidden": True}, {"params": other, "is_hidden": False}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every parameter that has a gradient; gives back what `closure`, called first, gives."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            moving = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
            for parameter, _ in moving:
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            move = self._move_hidden if group["is_hidden"] else self._move_other
            move(moving, group["lr"])
        return loss

    def _move_hidden(self, moving: Iterable[tuple[Tensor, Tensor]], rate: float) -> None:
        """Matrices of one shape are made orthogonal together: small products alone leave a machine idle."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, gradient in moving:
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(gradient, 1.0 - MOMENTUM)
            looking_ahead = gradient.lerp(momentum, MOMENTUM)
            for piece, change in zip(_unfused(parameter), _unfused(looking_ahead), strict=True):
                by_shape[piece.shape].append((piece, change))
        for shape, pairs in by_shape.items():
            changes = orthogonalized(torch.stack([change for _, change in pairs]))
            for (piece, _), change in zip(pairs, changes, strict=True):
                piece.add_(change, alpha=-rate * UPDATE_SIZE * max(shape) ** 0.5)

    def _move_other(self, moving: Iterable[tuple[Tensor, Tensor]], rate: float) -> None:
        first_decay, second_decay = BETAS
        for parameter, gradient in moving:
            state = self.state[parameter]
            if not state:
                state |= {"step": 0, "first": torch.zeros_like(parameter), "second": torch.zeros_like(parameter)}
            state["step"] += 1
            state["first"].lerp_(gradient, 1.0 - first_decay)
            state["second"].lerp_(gradient.square(), 1.0 - second_decay)
            mean = state["first"] / (1.0 - first_decay ** state["step"])
            spread = (state["second"] / (1.0 - second_decay ** state["step"])).sqrt_().add_(1e-8)
            parameter.addcdiv_(mean, spread, value=-rate)


def _unfused(matrix: Tensor) -> tuple[Tensor, ...]:
    """Views of the square matrices that a tall one is stacked from, or the matrix itself."""
    rows, columns = matrix.shape
    return matrix.split(columns) if rows % columns == 0 else (matrix,)


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between 0.7 and 1.2.

    Args:
        matrices: (N, rows, columns).
    Source: Jordan et al. 2024 (Newton-Schulz iteration of fifth order).
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)
