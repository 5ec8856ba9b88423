"""Where shift, scale and gate come from. Blocks take them ready, so that a whole run can share them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from .elementwise import Modulation
from .linear import Linear


class ModulationProjection(nn.Module):
    """The conditioning vector to one or more triples of shift, scale and gate."""

    def __init__(self, hidden_size: int, num_triples: int) -> None:
        super().__init__()
        self.num_triples = num_triples
        self.linear = Linear(hidden_size, 3 * num_triples * hidden_size)

    def forward(self, activated: Tensor) -> list[Modulation]:
        """SiLU of the vector, [B, D], to `num_triples` modulations of [B, 1, D] each."""
        parts = self.linear(activated).unsqueeze(1).chunk(3 * self.num_triples, dim=-1)
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
    """Modulation computed from the conditioning vector [B, D] when a block asks for it."""

    def __init__(self, vec: Tensor) -> None:
        self._activated = F.silu(vec)

    def double(self, index: int, block: ModulatedDouble) -> DoubleModulation:  # noqa: ARG002
        """Both streams' modulation."""
        return DoubleModulation(*block.img_mod(self._activated), *block.txt_mod(self._activated))

    def single(self, index: int, block: ModulatedSingle) -> Modulation:  # noqa: ARG002
        """The joint stream's modulation."""
        return block.modulation(self._activated)[0]
