"""Modulation of a whole run, computed before its first step.

It depends on the conditioning vector alone (timestep, guidance, pooled text), and a run knows all of its vectors when
it starts. After that, the projections' weights, more than a quarter of a model's, are not needed any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementwise import Modulation
from .modulation import (
    BlockHold,
    DoubleModulation,
    ModulatedDouble,
    ModulatedSingle,
    ModulationProjection,
    ModulationSource,
    VectorModulation,
    triples,
)


class ModulationTable:
    """Every block's modulation for some conditioning vectors; computed from the block for any other vector.

    Lies in host memory, 2 MB for each vector of the 13B model. A model call brings its rows to the device in one copy.

    Args:
        doubles, singles: the blocks of a model, in order.
        vecs: conditioning vectors, [1, D] each, as the model will give them.
        hold: brings the weights of one projection to the compute device, once for all vectors.
    """

    def __init__(
        self,
        doubles: Sequence[ModulatedDouble],
        singles: Sequence[ModulatedSingle],
        vecs: Iterable[Tensor],
        hold: BlockHold = nullcontext,
    ) -> None:
        self._hold, self._num_doubles = hold, len(doubles)
        distinct = {_key(vec): vec for vec in vecs}
        self._row_of = {key: row for row, key in enumerate(distinct)}
        activated = [F.silu(vec) for vec in distinct.values()]
        projections = [projection for block in doubles for projection in (block.img_mod, block.txt_mod)]
        projections += [block.modulation for block in singles]
        columns = [_project(projection, activated, hold) for projection in projections]
        # as bytes, since layers may differ in what comes out of them
        self._dtypes = [column.dtype for column in columns]
        self._ends = list(accumulate(column.shape[1] * column.itemsize for column in columns))
        none = torch.empty(len(activated), 0, dtype=torch.uint8)
        self._rows = torch.cat([none, *(column.view(torch.uint8) for column in columns)], dim=1)

    @property
    def num_bytes(self) -> int:
        """Host memory of the table."""
        return self._rows.numel()

    def __call__(self, vec: Tensor) -> ModulationSource:
        """The source for vectors [B, D], each known by its exact bits: samples, or timesteps of groups of tokens."""
        rows = [self._row_of.get(_key(one)) for one in vec.split(1)]
        known = [row for row in rows if row is not None]
        return VectorModulation(vec, self._hold) if len(known) < len(rows) else self.source(known, vec.device)

    def source(self, rows: Sequence[int], device: torch.device) -> ModulationSource:
        """The source for vectors by their number, in the order in which the distinct ones were given."""
        start = rows[0]
        chosen = self._rows[start : start + 1] if len(rows) == 1 else self._rows[list(rows)]
        chosen = chosen.to(device)
        spans = zip((0, *self._ends), self._ends, self._dtypes, strict=False)
        columns = [chosen[:, start:end].view(dtype) for start, end, dtype in spans]
        return _PreparedModulation(columns[: 2 * self._num_doubles], columns[2 * self._num_doubles :])


class _PreparedModulation:
    """The modulation of one model call.

    Args:
        doubles: [B, 6D] for each double-stream block's image, then for its text.
        singles: [B, 3D] for each single-stream block.
    """

    def __init__(self, doubles: Sequence[Tensor], singles: Sequence[Tensor]) -> None:
        self._doubles, self._singles = doubles, singles

    def double(self, index: int, block: ModulatedDouble) -> DoubleModulation:
        """See ModulationSource.double."""
        img, txt = self._doubles[2 * index : 2 * index + 2]
        return DoubleModulation(*triples(img, block.img_mod.num_triples), *triples(txt, block.txt_mod.num_triples))

    def single(self, index: int, block: ModulatedSingle) -> Modulation:
        """See ModulationSource.single."""
        return triples(self._singles[index], block.modulation.num_triples)[0]


def _project(projection: ModulationProjection, activated: Sequence[Tensor], hold: BlockHold) -> Tensor:
    """[number of vectors, width], on the host."""
    with hold(projection):
        # one by one: a product of many rows may round otherwise than the product of each
        return torch.cat([projection(one) for one in activated]).cpu()


def _key(vec: Tensor) -> bytes:
    """A vector's exact bits."""
    return vec.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
