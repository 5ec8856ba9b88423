"""Every module of the pack imports, without ComfyUI, and exists once: as hyvideo_nodes.…"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NEEDS_COMFYUI = "nodes/host/comfyui.py"


def test_every_module_imports_under_one_name(root, sources) -> None:
    for source in sources:
        if source.path != NEEDS_COMFYUI:
            parts = source.parts[:-1] if source.parts[-1] == "__init__" else source.parts
            importlib.import_module(".".join(("hyvideo_nodes", *parts)))
    ours = [root / source.path for source in sources]
    names: dict[Path, set[str]] = {path: set() for path in ours}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file) in names:
            names[Path(file)].add(name)
    assert {str(path): found for path, found in names.items() if len(found) > 1} == {}
    strangers = {name for found in names.values() for name in found if not name.startswith("hyvideo_nodes.")}
    assert strangers == set()


def test_pack_root_is_not_on_the_path(root) -> None:
    assert root not in [Path(entry or ".").resolve() for entry in sys.path]
