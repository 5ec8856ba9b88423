"""What the doctor says of a file, as values and as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..loading.coverage import counted, listed

SIZE_UNIT = 10**9
Row = tuple[str, str | int | tuple[str, ...] | None]
LABEL_WIDTH = 14


@dataclass(frozen=True, kw_only=True)
class LoraFindings:
    """What a LoRA file holds, and what of it fits a model.

    Attributes:
        dialect: how its tensors are named.
        kinds: its forms (LoRA, LoHa, LoKr, full differences...).
        ranks: the ranks that occur, the commonest first.
        targets: the blocks of the model that it changes, in the grammar of the block filter.
        model: what it was compared with.
        matched, expected: layers that the model has, of those in the file.
        strays: tensors in the file that fit nothing in the model.
        unapplied: kinds of change among the strays that are known and not applied, such as OFT.
        text_encoder: how many tensors are meant for text encoders, which are not applied.
        refusal: why the model cannot take it; None if it can.
    """

    dialect: str
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    targets: str
    model: str
    matched: int
    expected: int
    strays: tuple[str, ...] = ()
    unapplied: tuple[str, ...] = ()
    text_encoder: int = 0
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of a file from its header alone. Empty fields are unknown, or have no meaning for such a file.

    Attributes:
        file: its name, without its folder.
        problem: why it cannot be used; None for a sound file, of whatever model.
        kind: what it holds, with its article.
        opened_by: the node that opens it, as its title says.
        folder: the folder of models in which that node looks for it.
        container: how the file is built.
        variant: which member of the family.
        lookalikes: published models that names and shapes do not tell apart from each other.
        hints: what metadata and the file's name suggest; proves nothing.
        dialect: whose tensor names it uses.
        prefix: what stands before each of them.
        precision: how weights are stored, in words.
        stored: parameters by storage type.
        num_tensors, num_parameters: in the file; scales and marks are no parameters.
        memory: bytes of the weights that a loader keeps, by precision.
        coverage: how many tensors of the model the file gives.
        missing, stray: names that the file lacks, and names that the model does not know.
        beside: names of tensors that belong to something else.
        needs: what else it takes to make a video with it.
        lora: for a LoRA only.
        notes: what else is worth knowing.
    """

    file: str
    problem: str | None = None
    kind: str | None = None
    opened_by: str | None = None
    folder: str | None = None
    container: str | None = None
    variant: str | None = None
    lookalikes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    dialect: str | None = None
    prefix: str | None = None
    precision: str | None = None
    stored: Mapping[str, int] = field(default_factory=dict)
    num_tensors: int = 0
    num_parameters: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    coverage: str | None = None
    missing: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    lora: LoraFindings | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the file could be read and, if it is one of ours, is whole."""
        return self.problem is None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"file": self.file, "is_sound": self.is_sound, **asdict(self)}

    @property
    def short(self) -> str:
        """What was found, in one line."""
        told = (self._kind_words(), self._layout(), self.precision, self.coverage)
        return _printable(f"{self.file}: {'; '.join(filter(None, told))}")

    def beside_words(self) -> str:
        """What else lies in the file; empty if nothing."""
        count = counted(len(self.beside), "tensor")
        return f"{count} of something else: {listed(self.beside)}" if self.beside else ""

    def summary(self) -> str:
        """What was found, without what it means for the rest of a workflow."""
        shown = {"what it is", "looks like", "layout", "precision", "parameters", "complete", "besides", "note"}
        return self._text(row for row in self._rows() if row[0] in shown)

    def __str__(self) -> str:
        """A block of lines for people; what is unknown is left out."""
        return self._text(self._rows())

    def _text(self, all_rows: Iterable[Row]) -> str:
        rows = [row for row in all_rows if row[1]]
        # with colons, since the host's nodes show several spaces as one
        lines = [f"  {f'{label}:':{LABEL_WIDTH}}{text}" for label, text in rows]
        return _printable("\n".join([self.file, *lines]))

    def _rows(self) -> list[Row]:
        home = self.opened_by and f"{self.opened_by}, from {self.folder}"
        return [
            ("what it is", self._kind_words()),
            ("problem", self.problem),
            ("looks like", self.lookalikes and f"{', '.join(self.lookalikes)}: all have these names and shapes"),
            *(("hint", hint) for hint in self.hints),
            ("layout", self._layout()),
            ("precision", self.precision),
            (
                "parameters",
                self.num_tensors and f"{count_words(self.num_parameters)} in {counted(self.num_tensors, 'tensor')}",
            ),
            ("in memory", ", ".join(f"{size_words(size)} {words}" for words, size in self.memory.items())),
            ("complete", self.coverage),
            ("besides", self.beside_words()),
            *self._lora_rows(),
            ("opened by", home or (self.folder and f"no node of this pack; such files belong in {self.folder}")),
            *(("needs", need) for need in self.needs),
            *(("note", note) for note in self.notes),
        ]

    def _kind_words(self) -> str | None:
        return f"{self.kind}: {self.variant}" if self.variant else self.kind

    def _layout(self) -> str:
        prefix = None if self.prefix is None else f"prefix {self.prefix}" if self.prefix else "no prefix"
        return ", ".join(filter(None, [self.dialect, prefix, self.container]))

    def _lora_rows(self) -> Sequence[Row]:
        lora = self.lora
        if lora is None:
            return ()
        ranks = f", rank {', '.join(map(str, lora.ranks))}" if lora.ranks else ""
        return [
            ("changes", lora.kinds and f"{', '.join(lora.kinds)}{ranks}: {lora.targets}"),
            ("fits", f"{lora.matched} of {lora.expected} layers are in {lora.model}"),
            ("strays", lora.strays and f"{counted(len(lora.strays), 'tensor')} without a place: {listed(lora.strays)}"),
            ("not applied", lora.unapplied and f"changes by {' and '.join(lora.unapplied)}, which are among them"),
            ("not applied", lora.text_encoder and f"{counted(lora.text_encoder, 'tensor')} for text encoders"),
            ("refused", None if lora.refusal == self.problem else lora.refusal),
        ]


def count_words(count: int) -> str:
    """A number of parameters for people: 12.82 billion."""
    for unit, word in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.2f} {word}"
    return str(count)


def size_words(num_bytes: int) -> str:
    """Bytes for people, in the units of download pages: 25.6 GB."""
    if num_bytes >= SIZE_UNIT:
        return f"{num_bytes / SIZE_UNIT:.1f} GB"
    return f"{num_bytes / 10**6:.1f} MB" if num_bytes >= 10**5 else f"{num_bytes / 1000:.1f} kB"


def _printable(text: str) -> str:
    """Text that a terminal can take: names come from the file, and may hold anything."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
