"""Which blocks a LoRA may change, as a line of text.

    double 0-9, single all        some double-stream blocks and all single-stream ones
    all, not single 30-39         everything but some
    not double                    the same as: all, not double

Grammar: terms between commas, taken from left to right; `not` in front takes blocks away. A term is `all`, or
`double`, `single` or `other` (what is no block: embedders, refiner, final layer), the first two followed by nothing,
by `all`, or by numbers and ranges between spaces. A term of numbers alone goes on with the part before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..config import TransformerConfig
from ..errors import OptionError
from .targets import BLOCKS, Layer

ALL = "all"
_HELP = "write for example: all / double 0-9, single all / all, not single 30-39"
_PARTS = {"double": BLOCKS[0], "single": BLOCKS[1]}
_OTHER = "other"
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")

Block = tuple[str, int]


@dataclass(frozen=True, slots=True)
class BlockFilter:
    """The blocks that were chosen.

    Attributes:
        blocks: (part, number) of each.
        has_other: layers outside the blocks are chosen too.
    """

    blocks: frozenset[Block]
    has_other: bool

    def __contains__(self, layer: Layer) -> bool:
        return self.has_other if layer.block is None else layer.block in self.blocks


def parse_blocks(text: str, config: TransformerConfig) -> BlockFilter:
    """The blocks of a model that a text chooses; the module's text has the grammar.

    Raises:
        OptionError: text outside the grammar, or blocks that the model lacks.
    """
    counts = {BLOCKS[0]: config.num_double_blocks, BLOCKS[1]: config.num_single_blocks}
    everything = {(part, index) for part, count in counts.items() for index in range(count)}
    chosen: set[Block | str] = set()
    part: str | None = None
    for position, term in enumerate(text.lower().split(",")):
        words = term.split()
        is_excluded = words[:1] == ["not"]
        words = words[1:] if is_excluded else words
        if is_excluded and position == 0:
            chosen = {*everything, _OTHER}
        if not words:
            raise OptionError(f'blocks "{text[:80]}" has an empty term; {_HELP}')
        if words == [ALL]:
            found: set[Block | str] = {*everything, _OTHER}
        elif words == [_OTHER]:
            found = {_OTHER}
        else:
            if words[0] in _PARTS:
                part, words = _PARTS[words[0]], words[1:]
            found = set(_numbered(words, part, counts, text))
        chosen = chosen - found if is_excluded else chosen | found
    return BlockFilter(frozenset(block for block in chosen if isinstance(block, tuple)), _OTHER in chosen)


def _numbered(words: list[str], part: str | None, counts: dict[str, int], text: str) -> list[Block]:
    """The blocks of one term behind its part: all of them where no numbers follow."""
    unknown = [word for word in words if word != ALL and not _RANGE.fullmatch(word)]
    if part is None or unknown or (ALL in words and len(words) > 1):
        what = (unknown or words)[0]
        raise OptionError(f'blocks "{text[:80]}" cannot be read at "{what[:20]}"; {_HELP}')
    if not words or words == [ALL]:
        return [(part, index) for index in range(counts[part])]
    blocks = []
    for word in words:
        first, last = _RANGE.fullmatch(word).groups()  # type: ignore[union-attr]  # seen to match above
        first, last = int(first), int(first if last is None else last)
        if first > last or last >= counts[part]:
            raise OptionError(
                f'blocks "{text[:80]}" asks for {word} of {counts[part]} {part.replace("_", " ")}; '
                f"give numbers from 0 to {counts[part] - 1}, the smaller first"
            )
        blocks += [(part, index) for index in range(first, last + 1)]
    return blocks


def describe_blocks(layers: list[Layer]) -> str:
    """The blocks of some layers in the same grammar, for reports: `double 0-19, single 0-39, other`."""
    words = []
    for word, part in _PARTS.items():
        numbers = sorted({layer.block[1] for layer in layers if layer.block is not None and layer.block[0] == part})
        if numbers:
            words.append(f"{word} {_ranges(numbers)}")
    if any(layer.block is None for layer in layers):
        words.append(_OTHER)
    return ", ".join(words) or "nothing"


def _ranges(numbers: list[int]) -> str:
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
