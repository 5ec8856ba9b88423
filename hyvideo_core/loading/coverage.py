"""How much of a model a file holds, told from its header, and the refusal of a file that is not whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import WrongModelError
from .key_maps import squeezed
from .linear_policy import LinearPolicy

NUM_SHOWN = 3
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The tensors of a model against those of a file.

    Attributes:
        expected: how many tensors the model has.
        missing: names that the file lacks.
        misshapen: sentences about tensors of another shape.
        stray: names in the file, among the model's own, that the model does not have.
        beside: names in the file that stand outside the model, and belong to something else.
        aside: names in the file that are known and not needed.
    """

    expected: int
    missing: tuple[str, ...] = field(default=())
    misshapen: tuple[str, ...] = field(default=())
    stray: tuple[str, ...] = field(default=())
    beside: tuple[str, ...] = field(default=())
    aside: tuple[str, ...] = field(default=())

    @property
    def matched(self) -> int:
        """How many of the model's tensors the file gives."""
        return self.expected - len(self.missing) - len(self.misshapen)

    @property
    def is_whole(self) -> bool:
        """Whether the file gives all of the model and nothing that is not understood."""
        return self.matched == self.expected and not self.stray

    def __str__(self) -> str:
        stray = f", {len(self.stray)} unexpected" if self.stray else ""
        return f"{self.matched} of {self.expected} tensors{stray}"

    def problem(self) -> str | None:
        """What is wrong, counted and with examples; None for a whole file."""
        if self.is_whole:
            return None
        problems = []
        if self.missing:
            problems.append(f"lacks {enumerated(self.missing, 'tensor')}")
        if self.stray:
            problems.append(f"has {enumerated(self.stray, 'unexpected tensor')}")
        if self.misshapen:
            problems.append(f"has {counted(len(self.misshapen), 'tensor')} of another shape: {listed(self.misshapen)}")
        return (
            f"{', and it '.join(problems)} ({self.matched} of {self.expected} fit); "
            "it is incomplete, damaged or of a model that this pack does not know"
        )

    def check(self, name: str) -> None:
        """Refuses a file, called `name`, that is not whole.

        Raises:
            WrongModelError: says how many tensors are missing, unknown or of other shapes, and names some.
        """
        problem = self.problem()
        if problem is not None:
            raise WrongModelError(f"{name} {problem}")


def view_coverage(wanted: Shapes, policy: LinearPolicy) -> Coverage:
    """How a file, seen through official names, fits the shapes of a model.

    Args:
        wanted: shapes by official name.
        policy: how the file stores weights: its companions and marks are no strays.
    """
    view = policy.view
    used = {name for key in wanted for name in (*view.names(key), *policy.companions(key))}
    used.update(policy.marks)
    names = view.checkpoint.tensors
    present = [key for key in wanted if key in view]
    return Coverage(
        expected=len(wanted),
        missing=tuple(key for key in wanted if key not in view),
        misshapen=misshapen({key: wanted[key] for key in present}, {key: view.info(key).shape for key in present}),
        stray=tuple(name for name in names if name.startswith(view.prefix) and name not in used),
        beside=tuple(name for name in names if not name.startswith(view.prefix) and name not in used),
    )


def misshapen(wanted: Shapes, found: Shapes) -> tuple[str, ...]:
    """Sentences about tensors whose shapes differ by more than axes of length 1."""
    # 1x1x1 convolutions stand where others have linear layers
    return tuple(
        f"{key} is {list(found[key])}, expected {list(shape)}"
        for key, shape in wanted.items()
        if squeezed(found[key]) != squeezed(shape)
    )


def counted(number: int, noun: str) -> str:
    """So many of something: 1 tensor, 2 tensors."""
    return f"{number} {noun}{'s' * (number != 1)}"


def enumerated(names: Collection[str], noun: str) -> str:
    """How many of something, and which: all of a few, else the first few."""
    such_as = ", such as" if len(names) > NUM_SHOWN else ":"
    return f"{counted(len(names), noun)}{such_as} {listed(names)}"


def listed(names: Collection[str] | Iterable[str]) -> str:
    """The first few names; each cut where it is endless."""
    shown = [name if len(name) <= 120 else name[:117] + "..." for name, _ in zip(names, range(NUM_SHOWN), strict=False)]
    return ", ".join(shown)
