"""Habits that a reader counts on: sizes, docstrings, type hints, no print, no broad except."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
MIN_HINTS = 0.95
BROAD = {"Exception", "BaseException"}
# their library raises plain Exception, so there is nothing narrower to catch; they must raise one of our errors
RAISES_PLAIN_EXCEPTION = {"hyvideo_core/text_encoders/tokenizers.py"}
# kernels and compilers of others, whose errors have no class in common: the one file that tries them and says so
TRIES_KERNELS = {"hyvideo_core/fallback.py"}
VAGUE_NAMES = {"utils", "util", "helpers", "misc", "common"}
# described once, in the class of the host or of torch that they implement
INTERFACE = {"define_schema", "execute", "fingerprint_inputs", "validate_inputs", "check_lazy_status"}


def print_offences(source) -> list[str]:
    """Calls of print; the command line alone talks to a terminal."""
    if source.parts[:2] == ("nodes", "cli"):
        return []
    calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
    return [source.at(node, "print") for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def except_offences(source) -> list[str]:
    """Handlers that would swallow an interrupt of the host, or anything else."""
    offences = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            is_broad = any(kind is None or (isinstance(kind, ast.Name) and kind.id in BROAD) for kind in caught)
            is_known = source.path in RAISES_PLAIN_EXCEPTION and isinstance(node.body[-1], ast.Raise)
            is_known |= source.path in TRIES_KERNELS
            if is_broad and not is_known:
                offences.append(source.at(node, "broad except"))
    return offences


def size_offences(source) -> list[str]:
    """Files and functions that are too long to be read at once, and names that say nothing."""
    offences = []
    if (lines := len(source.text.splitlines())) > MAX_FILE_LINES:
        offences.append(f"{source.path}: {lines} lines")
    if VAGUE_NAMES & set(source.parts):
        offences.append(f"{source.path}: a helper lives where its noun lives")
    tall = [node for node in source.functions() if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES]
    return offences + [source.at(node, f"{node.name} ends in line {node.end_lineno}") for node in tall]


def public_members(node: ast.Module | ast.ClassDef) -> Iterator[ast.stmt]:
    """Public classes and functions of a module, and of its public classes."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public_members(child)


def is_exempt(node: ast.stmt) -> bool:
    """Methods of the host's interface, and overloads and setters, which repeat what is described elsewhere."""
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return node.name in INTERFACE or bool(names & {"overload", "override", "setter"})


def docstring_offences(source) -> list[str]:
    """Public names, and modules, that do not say what they are."""
    if source.parts[-1] == "__init__" and not source.text.strip():
        return []
    nodes = [source.tree, *(node for node in public_members(source.tree) if not is_exempt(node))]
    return [source.at(node, getattr(node, "name", "module")) for node in nodes if not ast.get_docstring(node)]


def hints(source) -> Iterator[bool]:
    """For every argument and every result of a function, whether it has a type."""
    for node in source.functions():
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        yield from (arg.annotation is not None for arg in named if arg and arg.arg not in ("self", "cls"))
        yield node.returns is not None


@pytest.mark.parametrize("rule", [print_offences, except_offences, size_offences, docstring_offences])
def test_habit_holds_in_every_file(sources, rule) -> None:
    assert [line for source in sources for line in rule(source)] == []


def test_nearly_every_argument_and_result_has_a_type(sources) -> None:
    found = [hint for source in sources for hint in hints(source)]
    assert sum(found) >= MIN_HINTS * len(found)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (print_offences, "nodes/loaders.py", "print('loaded')"),
        (except_offences, "nodes/loaders.py", "try:\n    f()\nexcept:\n    pass"),
        (except_offences, "nodes/loaders.py", "try:\n    f()\nexcept (OSError, Exception) as error:\n    raise"),
        (size_offences, "nodes/loaders.py", "x = 1\n" * 501),
        (size_offences, "nodes/loaders.py", "def f():\n" + "    x = 1\n" * 80),
        (size_offences, "nodes/utils.py", ""),
        (docstring_offences, "nodes/loaders.py", "x = 1"),
        (docstring_offences, "nodes/loaders.py", "'''Doc.'''\nclass Loader:\n    def load(self): '''Doc.'''"),
        (docstring_offences, "nodes/loaders.py", "'''Doc.'''\nclass Loader:\n    '''Doc.'''\n    def load(self): ..."),
    ],
)
def test_habit_sees_a_planted_offence(plant, rule, path, text) -> None:
    assert len(rule(plant(path, text))) == 1


def test_hints_counts_arguments_and_results(plant) -> None:
    source = plant("nodes/x.py", "class A:\n    def f(self, a: int, c=1, *b, **d: str) -> int: ...")
    assert list(hints(source)) == [True, False, False, True, True]


def test_command_line_may_print(plant) -> None:
    assert print_offences(plant("nodes/cli/run.py", "print('done')")) == []
