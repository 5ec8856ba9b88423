"""What modules offer: `__all__` is true and complete, and importing the pack costs nothing."""

from __future__ import annotations

import ast

import pytest


def bound_names(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level; of `import *`, only the star."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def declared_names(tree: ast.Module) -> list[str] | None:
    """The value of `__all__`, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def export_offences(source) -> list[str]:
    """Names in `__all__` that do not exist, and names that a package takes in to offer but does not declare."""
    bound, declared = bound_names(source.tree), declared_names(source.tree)
    if "*" in bound:
        return []
    offences = [f"{source.path}: {name} is in __all__ and nowhere else" for name in sorted({*(declared or [])} - bound)]
    if source.parts[-1] == "__init__":
        siblings = [node for node in source.tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
        offered = {alias.asname or alias.name for node in siblings if node.module for alias in node.names}
        used = {node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)}
        missing = {name for name in offered if not name.startswith("_")} - {*(declared or [])} - used
        offences += [f"{source.path}: {name} is neither used nor in __all__" for name in sorted(missing)]
    return offences


def test_all_names_exist_and_packages_declare_what_they_take_in(sources) -> None:
    assert [line for source in sources for line in export_offences(source)] == []


@pytest.mark.parametrize(
    "text", ["__all__ = ['lost']", "from .tiling import plan", "from .tiling import plan, blend\n__all__ = ['plan']"]
)
def test_rule_sees_a_planted_offence(plant, text) -> None:
    assert len(export_offences(plant("hyvideo_core/vae/__init__.py", text))) == 1


def test_entry_point_imports_nothing_but_typing(root) -> None:
    tree = ast.parse((root / "__init__.py").read_text(encoding="utf-8"))
    top_level = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {getattr(node, "module", None) for node in top_level} <= {"__future__", "typing"}
    assert {"WEB_DIRECTORY", "comfy_entrypoint"} <= set(declared_names(tree) or [])
