"""A LoRA file against a model: what of it fits, known from its header, and its factors when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import nn

from ..config import HYVIDEO_T2_CFGDISTILL, TransformerConfig
from ..errors import CorruptFileError, WrongModelError
from ..loading.checkpoint import Checkpoint, ReadTensor
from ..loading.coverage import counted
from ..loading.recognise import adapter_kind, are_mostly, refusal
from .blocks import BlockFilter, describe_blocks
from .dialects import dialect_words, style_words
from .entries import Entry, read_entry
from .families import Family, foreign_family
from .keys import GroupedNames, NameTable, Place, group_names, split_name
from .read_parts import Change, kinds_of, read_change
from .rules import ScaleRules, read_rules
from .targets import Layer, spellings

NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a file found its place.

    Attributes:
        matched: layers of the model that the file changes.
        expected: those, and the layers of the file that the model does not have.
        stray: tensors without a place in the model.
        text_encoder: tensors for text encoders, which are not applied.
        unapplied: kinds of change among the strays, such as OFT, that are known and not applied.
    """

    matched: int
    expected: int
    stray: tuple[str, ...] = ()
    text_encoder: tuple[str, ...] = ()
    unapplied: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the file is applied."""
        return not self.stray and not self.text_encoder

    def __str__(self) -> str:
        words = [f"{self.matched} of {self.expected} layers matched", f"{_tensors(self.stray, 'stray ')}"]
        if self.unapplied:
            words.append(f"among them {' and '.join(self.unapplied)}, which is not applied")
        if self.text_encoder:
            words.append(f"{_tensors(self.text_encoder)} for text encoders, not applied")
        return ", ".join(words)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it fits a model of one configuration; only its header was read.

    Attributes:
        dialect: how it names its layers, in words.
        kinds: what it holds: LoRA, LoHa, LoKr, DoRA, full difference ...
        ranks: every rank in it, the commonest first.
        in_channels: latent channels that the model has to take for it; more than it has for a keyframe LoRA.
        family: another model that it may have been made for, as far as names and sizes tell.
    """

    checkpoint: Checkpoint
    config: TransformerConfig
    dialect: str
    entries: tuple[Entry, ...]
    coverage: Coverage
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    in_channels: int
    family: Family | None
    rules: ScaleRules = field(repr=False)

    @property
    def widened(self) -> TransformerConfig:
        """The model's configuration with this file applied."""
        return replace(self.config, in_channels=self.in_channels)

    @property
    def layers(self) -> list[Layer]:
        """The model's layers that it changes, each once."""
        return list({entry.target.layer.name: entry.target.layer for entry in self.entries}.values())

    def chosen(self, blocks: BlockFilter) -> list[Entry]:
        """The entries that a filter lets through."""
        return [entry for entry in self.entries if entry.target.layer in blocks]

    def __str__(self) -> str:
        ranks = f" of rank {', '.join(map(str, self.ranks[:NUM_SHOWN]))}" if self.ranks else ""
        return (
            f"{self.checkpoint.name}: {' + '.join(self.kinds)}{ranks}, {self.dialect}; {self.coverage}; "
            f"blocks: {describe_blocks(self.layers)}"
        )


class LoraWeights(nn.Module):
    """The changes of a file, by the file's own names of the layers."""

    def __init__(self, changes: Mapping[str, Change]) -> None:
        super().__init__()
        self._names = {name: index for index, name in enumerate(changes)}
        self.changes = nn.ModuleList(changes.values())

    def __getitem__(self, entry: Entry) -> Change:
        change = self.changes[self._names[entry.name]]
        assert isinstance(change, Change)  # all of the list are; a ModuleList does not say so
        return change


@lru_cache(maxsize=16)
def name_table(config: TransformerConfig) -> NameTable:
    """Every name that files may give the modules of a model."""
    return NameTable(spellings(config))


def open_lora(checkpoint: Checkpoint, config: TransformerConfig) -> LoraFile:
    """A LoRA file as it fits a model, from its header alone.

    Raises:
        WrongModelError: not a LoRA, or none of it, or not its shapes, fit the model; says whose it is.
        CorruptFileError: tensors are missing or contradict each other.
    """
    groups = group_names(checkpoint.tensors)
    check_is_lora(checkpoint, groups)
    places = name_table(config).find_all(groups.bases)
    family = foreign_family(checkpoint, groups)
    _refuse_foreign(checkpoint, groups, places, family)
    entries = tuple(read_entry(checkpoint, base, groups.bases[base], place[0].target) for base, place in places.items())
    lora = LoraFile(
        checkpoint=checkpoint,
        config=config,
        dialect=dialect_words(places.values()),
        entries=entries,
        coverage=coverage(groups, places),
        kinds=tuple(dict.fromkeys(kind for entry in entries for kind in kinds_of(entry.parts))),
        ranks=tuple(rank for rank, _ in Counter(e.rank for e in entries if e.rank is not None).most_common()),
        in_channels=max([config.in_channels, *(entry.channels(config) for entry in entries)]),
        family=family,
        rules=read_rules(checkpoint.metadata, checkpoint.path),
    )
    _refuse_sizes(lora)
    _check_overlaps(lora)
    return lora


def load_lora(lora: LoraFile, *, dtype: torch.dtype, device: torch.device | None = None) -> LoraWeights:
    """The changes of a file, without gradients.

    Args:
        dtype: what the model computes in.
        device: where they go; None: the CPU.
    Raises:
        CorruptFileError: numbers that no trainer writes.
    """
    changes = {}
    with torch.inference_mode(False), lora.checkpoint.reading() as read:
        for entry in lora.entries:
            changes[entry.name] = _read(lora, entry, read).cast(dtype, device)
    return LoraWeights(changes)


def check_is_lora(checkpoint: Checkpoint, groups: GroupedNames) -> None:
    """Refuses what is no LoRA, by its name, and names that mean one tensor twice.

    Raises:
        WrongModelError, CorruptFileError.
    """
    if not is_lora(groups):
        raise refusal(checkpoint, "a LoRA for HunyuanVideo (in models/loras)")
    if groups.twice:
        raise CorruptFileError(
            f"{checkpoint.name} holds {groups.twice[0]} a second time under another name; save the file anew"
        )


def is_lora(groups: GroupedNames) -> bool:
    """Whether a file's names are a LoRA's: as many as `recognise` asks for are parts of changes."""
    parts = {name for parts in groups.bases.values() for name in parts.values()}
    parts.update(groups.twice, (name for name in groups.text_encoder if split_name(name)))
    others = [name for names in groups.unapplied.values() for name in names]
    return are_mostly({*parts, *groups.text_encoder, *groups.unknown, *others}, parts.__contains__)


def coverage(groups: GroupedNames, places: Mapping[str, list[Place]]) -> Coverage:
    """How much of a file's names found a place."""
    matched = len({found[0].target.layer.name for found in places.values()})
    lost = [base for base in groups.bases if base not in places]
    # a layer may be changed in both ways
    unapplied = [layer for layer in groups.unapplied if layer not in groups.bases]
    stray = [name for base in lost for name in groups.bases[base].values()]
    others = [name for names in groups.unapplied.values() for name in names]
    return Coverage(
        matched=matched,
        expected=matched + len(lost) + len(unapplied),
        stray=(*stray, *others, *groups.unknown),
        text_encoder=tuple(groups.text_encoder),
        unapplied=tuple(dict.fromkeys(kind for name in others if (kind := adapter_kind(name)))),
    )


def _refuse_foreign(
    checkpoint: Checkpoint, groups: GroupedNames, places: Mapping[str, list[Place]], family: Family | None
) -> None:
    if places and (family is None or not family.is_certain):
        return
    if not groups.bases:
        raise WrongModelError(
            f"{checkpoint.name} holds changes for text encoders only ({_such_as(groups.text_encoder, 2)}), which are "
            "not applied; expected a LoRA for HunyuanVideo's transformer"
        )
    names = [name for parts in groups.bases.values() for name in parts.values()]
    raise WrongModelError(
        f"{checkpoint.name} is a LoRA{f' for {family.words}' if family else ''} in {layout_words(groups, places)}: "
        f"{len(places)} of {len(groups.bases)} layers have a place in this model, such as {_such_as(names, 2)}; "
        "expected a LoRA for HunyuanVideo"
    )


def layout_words(groups: GroupedNames, places: Mapping[str, list[Place]]) -> str:
    """How a file that does not fit names its layers; those of the published model may be known all the same."""
    known = places or name_table(HYVIDEO_T2_CFGDISTILL).find_all(groups.bases)
    return dialect_words(known.values()) if known else style_words(groups)


def _read(lora: LoraFile, entry: Entry, read: ReadTensor) -> Change:
    tensors = {part: read(name) for part, name in entry.parts.items() if part != "reshape_weight"}
    try:
        change = read_change(entry.name, tensors, lora.rules, is_swapped=entry.target.is_swapped)
    except CorruptFileError as error:
        raise CorruptFileError(f"{lora.checkpoint.name}: {error}") from error
    if not all(bool(tensor.isfinite().all()) for tensor in change.parameters()):
        raise CorruptFileError(
            f"{lora.checkpoint.name}: {entry.name} holds NaN or infinity; the LoRA is damaged, download it again"
        )
    return change


def _refuse_sizes(lora: LoraFile) -> None:
    misfits = [entry for entry in lora.entries if not entry.fits(lora.config)]
    if misfits:
        whose = f"a LoRA for {lora.family.words}" if lora.family else "for a model of another size"
        raise WrongModelError(
            f"{lora.checkpoint.name} is {whose}: {len(misfits)} of {len(lora.entries)} weights that it changes are of "
            f"other sizes here; {misfits[0].sizes()}; use one made for this model"
        )


def _check_overlaps(lora: LoraFile) -> None:
    """Two entries of a file for the same rows would count twice."""
    taken: dict[str, list[Entry]] = {}
    for entry in lora.entries:
        first, last = entry.target.rows
        for other in taken.setdefault(entry.target.layer.name, []):
            if first < other.target.rows[1] and other.target.rows[0] < last:
                raise CorruptFileError(
                    f"{lora.checkpoint.name} changes {entry.target.layer.name} twice, as {other.name} and as "
                    f"{entry.name}; save it anew in one layout"
                )
        taken[entry.target.layer.name].append(entry)


def _tensors(names: tuple[str, ...], kind: str = "") -> str:
    """How many, and which."""
    return f"{counted(len(names), f'{kind}tensor')}{f' ({_such_as(names)})' if names else ''}"


def _such_as(names: Iterable[str], limit: int = NUM_SHOWN) -> str:
    listed = list(names)
    shown = ", ".join(name[:120] for name in listed[:limit])
    return f"{shown} and {len(listed) - limit} more" if len(listed) > limit else shown
