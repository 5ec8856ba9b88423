"""The names of a LoRA file's tensors: which layer, and which part of its change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..loading.recognise import adapter_kind
from ..loading.signatures import ADAPTERS
from .targets import Target

_ADAPTER = r"(?:\.(?!(?:weight|bias)$)[A-Za-z_]\w*)?"
_PAIR = r"[._]lora(?:_linear_layer)?[._]{side}" + _ADAPTER
PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("down", re.compile(_PAIR.format(side="(?:down|A)") + r"(?:\.weight)?$")),
    ("up_bias", re.compile(_PAIR.format(side="(?:up|B)") + r"\.bias$")),
    ("up", re.compile(_PAIR.format(side="(?:up|B)") + r"(?:\.weight)?$")),
    ("mid", re.compile(r"\.lora_mid(?:\.weight)?$")),
    ("magnitude", re.compile(r"\.(?:dora_scale|lora_magnitude_vector" + _ADAPTER + r"(?:\.weight)?)$")),
    ("diff", re.compile(r"\.(?:diff|w_norm)$")),
    ("diff_b", re.compile(r"\.(?:diff_b|b_norm)$")),
    *(
        (part, re.compile(rf"\.{part}$"))
        for part in (
            *("alpha", "set_weight", "reshape_weight"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        )
    ),
)
"""What a tensor is to its layer, by the end of its name, as trainers write it."""
_COMPANIONS = {"alpha", "magnitude"}  # changes of other kinds have them too

_TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.)?"
    r"(?:lora_te\d*[._]|text_encoders?(?:_\d)?[._]|te\d?\.|clip_[lg]\.|llama\.|t5xxl\.|bundle_emb\.|cond_stage_model\.)"
)
_DOTTED_PREFIX = re.compile(
    r"(?:base_model|model|diffusion_model|transformer|unet|dit|module|lora_unet|lora_transformer)\."
)
_KOHYA_PREFIX = re.compile(r"(?:\w*?_)?(?:lora|lycoris)_(unet_|transformer_|dit_)?")


class SplitName(NamedTuple):
    """A tensor's name, taken apart: the file's name of the layer, and one of PARTS."""

    base: str
    part: str


class Place(NamedTuple):
    """Where an entry belongs: the table of names that has it, the prefix before its name there, and what it changes."""

    table: str
    prefix: str
    is_kohya: bool
    target: Target


@dataclass(frozen=True, slots=True)
class GroupedNames:
    """All tensor names of a file, sorted.

    Attributes:
        bases: for each layer that the file names, its tensors by part.
        text_encoder: tensors meant for a text encoder.
        unapplied: for each layer that the file changes in a way that is not applied, such as OFT, its tensors.
        unknown: tensors that are no part of a LoRA.
        twice: tensors whose layer and part another tensor has already.
    """

    bases: dict[str, dict[str, str]] = field(default_factory=dict)
    text_encoder: list[str] = field(default_factory=list)
    unapplied: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


def split_name(name: str) -> SplitName | None:
    """The parts of a LoRA tensor's name; None for any other tensor."""
    for part, pattern in PARTS:
        match = pattern.search(name)
        if match is not None and match.start() > 0:
            return SplitName(name[: match.start()], part)
    return None


def group_names(names: Iterable[str]) -> GroupedNames:
    """Tensor names by the layer that they change."""
    groups, names = GroupedNames(), list(names)
    unapplied = {_layer(name) for name in names if adapter_kind(name)}
    for name in names:
        split = split_name(name)
        layer = split.base if split else _layer(name)
        if _TEXT_ENCODER.match(name):
            groups.text_encoder.append(name)
        elif split is None and layer in unapplied:
            groups.unapplied.setdefault(layer, []).append(name)
        elif split is None:
            groups.unknown.append(name)
        elif split.part in groups.bases.setdefault(split.base, {}):
            groups.twice.append(name)
        else:
            groups.bases[split.base][split.part] = name
    for layer in unapplied:
        # an alpha alone is none of a LoRA's
        if layer in groups.unapplied and groups.bases.get(layer, {}).keys() <= _COMPANIONS:
            groups.unapplied[layer] += groups.bases.pop(layer, {}).values()
    return groups


def _layer(name: str) -> str:
    """What stands before the end of the name of a tensor that is no part of a LoRA."""
    kind = adapter_kind(name)
    endings = ADAPTERS[kind] if kind else (".rescale", ".weight")
    return next((name.removesuffix(end) for end in endings if name.endswith(end)), name)


class NameTable:
    """Finds the target of a file's entry under any spelling of the model's modules."""

    def __init__(self, spellings: Mapping[str, Mapping[str, Target]]) -> None:
        self._dotted = spellings
        self._kohya = {
            table: {name.replace(".", "_"): target for name, target in names.items()}
            for table, names in spellings.items()
        }

    def find(self, base: str) -> list[Place]:
        """Where an entry belongs, once for each table that knows its name; all of them mean the same rows."""
        for prefix, name, is_kohya in _candidates(base):
            tables = self._kohya if is_kohya else self._dotted
            found = [Place(table, prefix, is_kohya, names[name]) for table, names in tables.items() if name in names]
            if found:
                return found
        return []

    def find_all(self, bases: Iterable[str]) -> dict[str, list[Place]]:
        """`find` for each entry that has a place."""
        return {base: found for base in bases if (found := self.find(base))}


def _candidates(base: str) -> Iterator[tuple[str, str, bool]]:
    """Prefix, name and whether underscores stand for dots: every way to read an entry's name, the likeliest first."""
    name = base.replace(".processor.", ".")
    yield "", name, False
    start = 0
    while match := _DOTTED_PREFIX.match(name, start):
        start = match.end()
        yield name[:start], name[start:], False
    match = _KOHYA_PREFIX.match(base)
    if match is not None:
        yield match[0], base[match.end() :], True
        if match[1]:
            yield base[: match.start(1)], base[match.start(1) :], True
    yield "", base, True
