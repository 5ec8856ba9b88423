"""What a LoRA file is, for people who ask before they load it. Reads the header alone and never refuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..config import HYVIDEO_T2_CFGDISTILL, TransformerConfig
from ..errors import CheckpointError
from ..loading.checkpoint import Checkpoint
from .blocks import describe_blocks
from .entries import read_entry
from .families import foreign_family
from .keys import GroupedNames, Place, group_names
from .lora_file import Coverage, coverage, is_lora, layout_words, name_table, open_lora
from .read_parts import kinds_of

_RANK_PARTS = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")


@dataclass(frozen=True, slots=True)
class LoraKind:
    """A LoRA file against a model.

    Attributes:
        dialect: how it names its layers, in words.
        kinds: LoRA, LoHa, LoKr, DoRA, full difference ...
        ranks: every rank in it, the commonest first.
        dtypes: what its factors are stored in, the commonest first, as torch names them.
        num_parameters: numbers in all its tensors.
        family: the other model that it was made for, as far as names, sizes and metadata tell; None: HunyuanVideo.
        coverage: how many of its layers the model has, of the same sizes.
        targets: the blocks that it changes, in the grammar of the block filter.
        refusal: why it cannot be used with the model; None if it can.
        in_channels: latent channels that the model has to take for it.
    """

    dialect: str
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    num_parameters: int
    family: str | None
    coverage: Coverage
    targets: str
    refusal: str | None
    in_channels: int

    @property
    def fits(self) -> bool:
        """Whether it can be used with the model."""
        return self.refusal is None


def recognise_lora(checkpoint: Checkpoint, config: TransformerConfig = HYVIDEO_T2_CFGDISTILL) -> LoraKind | None:
    """What a LoRA file is and how it fits a model; None for a file that is no LoRA.

    Args:
        config: the model's configuration; the published 13B model's if none is loaded.
    """
    groups = group_names(checkpoint.tensors)
    if not is_lora(groups):
        return None
    places = name_table(config).find_all(groups.bases)
    fitting = {base: found for base, found in places.items() if _fits(checkpoint, groups, base, found[0], config)}
    family = foreign_family(checkpoint, groups)
    parts = groups.bases.values()
    in_channels, refusal = _opened(checkpoint, config)
    return LoraKind(
        dialect=layout_words(groups, places),
        kinds=tuple(dict.fromkeys(kind for names in parts for kind in kinds_of(names))),
        ranks=_ranks(checkpoint, groups),
        dtypes=_common(str(info.dtype).removeprefix("torch.") for info in checkpoint.tensors.values() if info.shape),
        num_parameters=sum(math.prod(info.shape) for info in checkpoint.tensors.values()),
        family=None if family is None else family.words,
        coverage=coverage(groups, fitting),
        targets=describe_blocks([found[0].target.layer for found in places.values()]),
        refusal=refusal,
        in_channels=in_channels,
    )


def _fits(checkpoint: Checkpoint, groups: GroupedNames, base: str, place: Place, config: TransformerConfig) -> bool:
    try:
        return read_entry(checkpoint, base, groups.bases[base], place.target).fits(config)
    except CheckpointError:
        return False


def _opened(checkpoint: Checkpoint, config: TransformerConfig) -> tuple[int, str | None]:
    """Latent channels that the model has to take, and why it cannot be used."""
    try:
        return open_lora(checkpoint, config).in_channels, None
    except CheckpointError as error:
        return config.in_channels, str(error)


def _ranks(checkpoint: Checkpoint, groups: GroupedNames) -> tuple[int, ...]:
    found: Counter[int] = Counter()
    for parts in groups.bases.values():
        part = next((part for part in _RANK_PARTS if part in parts), None)
        shape = checkpoint.tensors[parts[part]].shape if part else ()
        found.update(shape[:1])
    return tuple(rank for rank, _ in found.most_common())


def _common(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word, _ in Counter(words).most_common())
