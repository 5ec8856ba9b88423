"""Where shift, scale and gate come from. Blocks take them ready, so that a whole run can share them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from .elementwise import Modulation
from .linear import Linear

BlockHold = Callable[[nn.Module], AbstractContextManager[Any]]
"""Inside its `with`, a module's weights are where it computes; those of a resident model always are.

Asked for a block, or for one ModulationProjection of a block: those are held apart from their block, since a run may
have all modulation ready beforehand.
"""


class ModulationProjection(nn.Module):
    """The conditioning vector to one or more triples of shift, scale and gate."""

    def __init__(self, hidden_size: int, num_triples: int) -> None:
        super().__init__()
        self.num_triples = num_triples
        self.linear = Linear(hidden_size, 3 * num_triples * hidden_size)

    def forward(self, activated: Tensor) -> Tensor:
        """SiLU of the vector, [B, D], to `num_triples` times shift, scale and gate, [B, 3 * num_triples * D]."""
        return self.linear(activated)


def triples(projected: Tensor, number: int) -> list[Modulation]:
    """What a ModulationProjection gives, as `number` modulations of [B, 1, D] each."""
    parts = projected.unsqueeze(1).chunk(3 * number, dim=-1)
    return [Modulation(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


class DoubleModulation(NamedTuple):
    """What one double-stream block needs."""

    img_attn: Modulation
    img_mlp: Modulation
    txt_attn: Modulation
    txt_mlp: Modulation


class ModulatedDouble(Protocol):
    """The part of a double-stream block that makes its modulation."""

    img_mod: ModulationProjection
    txt_mod: ModulationProjection


class ModulatedSingle(Protocol):
    """The part of a single-stream block that makes its modulation."""

    modulation: ModulationProjection


class ModulationSource(Protocol):
    """Gives each block its modulation. A source may have computed them for all steps beforehand."""

    def double(self, index: int, block: ModulatedDouble) -> DoubleModulation:
        """Modulation of double-stream block `index`."""

    def single(self, index: int, block: ModulatedSingle) -> Modulation:
        """Modulation of single-stream block `index`."""


class VectorModulation:
    """Modulation computed from the conditioning vector [B, D] when a block asks for it.

    Args:
        hold: brings the weights of one projection to the compute device.
    """

    def __init__(self, vec: Tensor, hold: BlockHold = nullcontext) -> None:
        self._activated, self._hold = F.silu(vec), hold

    def double(self, index: int, block: ModulatedDouble) -> DoubleModulation:  # noqa: ARG002
        """Both streams' modulation."""
        return DoubleModulation(*self._triples(block.img_mod), *self._triples(block.txt_mod))

    def single(self, index: int, block: ModulatedSingle) -> Modulation:  # noqa: ARG002
        """The joint stream's modulation."""
        return self._triples(block.modulation)[0]

    def _triples(self, projection: ModulationProjection) -> list[Modulation]:
        with self._hold(projection):
            return triples(projection(self._activated), projection.num_triples)


ModulationFactory = Callable[[Tensor], ModulationSource]
"""The conditioning vector [B, D] of a model call to the source that its blocks ask."""
