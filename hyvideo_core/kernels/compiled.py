"""Blocks by torch.compile: one compiled form for each kind of block, shared by all blocks of the kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..fallback import attempt, in_one_line

logger = logging.getLogger(__name__)

EAGER = "blocks compute as they are written"


class CompiledBlocks:
    """What a block runner asks for the code that computes a block.

    Whether anything can be compiled here (compiler, Python, torch, device) is tried once, on a line of code. If that
    fails, or later a block cannot be compiled, one line in the log says so and blocks compute as they are written.

    Weights are inputs of the compiled code, so that blocks share it and streaming may bring them from anywhere. A
    change of length compiles once more, for all lengths.

    Args:
        device: where blocks compute.
        backend: of torch.compile.
    """

    def __init__(self, device: torch.device, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend
        self._forwards: dict[type[nn.Module], Callable[..., Any]] = {}
        self._works = attempt(partial(_compile_a_line, device, backend), "torch.compile", EAGER) is not None

    def __call__(self, block: nn.Module) -> Callable[..., Any]:
        """What computes a block."""
        return partial(self._compute, block) if self._works else block

    def _compute(self, block: nn.Module, *inputs: Any) -> Any:
        kind = type(block)
        if kind not in self._forwards:
            self._forwards[kind] = torch.compile(kind.forward, backend=self._backend)
        before = _first_tokens(inputs)
        try:
            return self._forwards[kind](block, *inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            # blocks write into the tokens, from the first one on: what was begun cannot be done again
            if not all(map(torch.equal, before, _first_tokens(inputs))):
                raise
            logger.warning("%s cannot be compiled (%s); %s", kind.__name__, in_one_line(error), EAGER)
            self._works = False
            return block(*inputs)


def _first_tokens(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [x[:, :1].clone() for x in inputs if isinstance(x, Tensor)]


def _compile_a_line(device: torch.device, backend: str | Callable[..., Any]) -> Tensor:
    """Compiles something small; raises whatever the compiler raises."""
    with torch.no_grad():
        compiled: Tensor = torch.compile(lambda x: torch.sin(x) * 2, backend=backend)(torch.ones(64, device=device))
    return compiled
