"""Who may import whom: each layer only what stands left of it, ComfyUI through one file alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

# units of hyvideo_core: each may import only from the sets before its own
CORE_LAYERS = (
    {"errors"},
    {"config", "fallback", "shapes"},
    {"attention"},
    {"model", "text_encoders", "vae"},
    {"kernels", "quantization"},
    {"loading", "sampling", "step_cache", "memory", "parallel"},
    {"lora"},
    {"doctor"},
    {"pipeline"},
    {"training"},
)
CORE_RANKS = {unit: rank for rank, layer in enumerate(CORE_LAYERS) for unit in layer}

# host <- sockets <- node files, which may share among themselves <- the node list <- the command line
NODE_RANKS = {"host": 0, "sockets": 1, "__init__": 3, "cli": 4}
NODE_FILE = 2

# what comes with every ComfyUI, and what is probed where it is used
PACKAGES = {"PIL", "av", "einops", "numpy", "safetensors", "tokenizers", "torch", "tqdm", "transformers"}
OPTIONAL = {"comfy_kitchen", "flash_attn", "flash_attn_interface", "gguf", "sageattention", "spandrel", "triton"}
HOST = {"comfy", "comfy_api", "comfy_execution", "execution", "folder_paths", "latent_preview", "server"}
HOST_DOOR = "nodes/host/comfyui.py"


def imports(source) -> Iterator[tuple[ast.stmt, tuple[str, ...], bool]]:
    """Each import of a file: its statement, the path that it reaches for, and whether it is relative."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, tuple(alias.name.split(".")), False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = source.parts[: -node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((node, (*base, alias.name), bool(node.level)) for alias in node.names)


def core_offences(source) -> list[str]:
    """Imports that go against the flow inside hyvideo_core, or out of it."""
    if source.parts[0] != "hyvideo_core":
        return []
    unit = source.parts[1]
    if unit not in CORE_RANKS and unit != "__init__":
        return [f"{source.path}: {unit} has no place in the order of layers; give it one in this test"]
    return [
        source.at(node, f"{unit} imports {'.'.join(target)}, which does not stand left of it")
        for node, target, is_relative in imports(source)
        if is_relative
        and target[:2] != ("hyvideo_core", unit)
        and (target[0] != "hyvideo_core" or CORE_RANKS.get(target[1], len(CORE_LAYERS)) >= CORE_RANKS.get(unit, -1))
    ]


def node_offences(source, node_files: set[str]) -> list[str]:
    """Imports that go against the flow inside nodes."""
    if source.parts[0] != "nodes":
        return []

    def rank(name: str) -> int:
        return NODE_RANKS.get(name, NODE_FILE if name in node_files else NODE_RANKS["__init__"])

    own = rank(source.parts[1])
    return [
        source.at(node, f"imports {'.'.join(target)}, which does not stand left of it")
        for node, target, is_relative in imports(source)
        if is_relative
        and target[0] != "hyvideo_core"
        and target[:2] != ("nodes", source.parts[1])
        and (target[0] != "nodes" or not (rank(target[1]) < own or rank(target[1]) == own == NODE_FILE))
    ]


def outside_offences(source) -> list[str]:
    """Absolute imports of anything but the standard library and the packages that the pack stands on."""
    known = set(sys.stdlib_module_names) | PACKAGES | OPTIONAL | (HOST if source.path == HOST_DOOR else set())
    return [
        source.at(node, f"imports {'.'.join(target)}: unknown package, or our own without a leading dot")
        for node, target, is_relative in imports(source)
        if not is_relative and target[0] not in known
    ]


def test_core_imports_only_from_layers_to_its_left(sources) -> None:
    assert [line for source in sources for line in core_offences(source)] == []


def test_nodes_import_only_host_sockets_core_and_siblings(sources) -> None:
    node_files = {source.parts[1] for source in sources if source.parts[0] == "nodes"}
    assert [line for source in sources for line in node_offences(source, node_files)] == []


def test_only_known_packages_and_comfyui_through_one_door(sources) -> None:
    assert [line for source in sources for line in outside_offences(source)] == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("hyvideo_core/shapes.py", "from .model import Transformer"),
        ("hyvideo_core/model/blocks.py", "from ..vae.layers import CausalConv3d"),
        ("hyvideo_core/model/blocks.py", "from .. import pipeline"),
        ("hyvideo_core/sampling/denoise.py", "from ..step_cache import TeaCache"),
        ("hyvideo_core/vae/tiling.py", "from ...nodes.host import progress"),
        ("hyvideo_core/__init__.py", "from .pipeline import text_to_video"),
        ("hyvideo_core/helpers.py", ""),
    ],
)
def test_core_rule_sees_a_planted_offence(plant, path, line) -> None:
    assert len(core_offences(plant(path, line))) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nodes/host/headless.py", "from ..sockets import Model"),
        ("nodes/sockets.py", "from .loaders import HYVLoadVAE"),
        ("nodes/loaders.py", "from .cli import run"),
        ("nodes/loaders.py", "from . import NODES"),
        ("nodes/host/folders.py", "from ...tests import conftest"),
    ],
)
def test_node_rule_sees_a_planted_offence(plant, path, line) -> None:
    assert len(node_offences(plant(path, line), {"loaders"})) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nodes/loaders.py", "import comfy.utils"),
        ("nodes/host/headless.py", "from folder_paths import models_dir"),
        ("hyvideo_core/config.py", "import hyvideo_nodes.hyvideo_core.errors"),
        ("hyvideo_core/config.py", "from hyvideo_core.errors import ConfigError"),
        ("hyvideo_core/config.py", "def late():\n    import diffusers"),
    ],
)
def test_outside_rule_sees_a_planted_offence(plant, path, line) -> None:
    assert len(outside_offences(plant(path, line))) == 1


def test_rules_accept_what_the_layers_allow(plant) -> None:
    block = plant(
        "hyvideo_core/model/blocks.py",
        "import math\nimport torch\nfrom ..errors import ShapeError\nfrom .. import config\nfrom .linear import L",
    )
    assert core_offences(block) + outside_offences(block) == []
    node_file = plant(
        "nodes/latents.py",
        "from ..hyvideo_core import vae\nfrom .host import io\nfrom .sockets import Vae\nfrom .loaders import load",
    )
    assert node_offences(node_file, {"loaders"}) == []
    assert node_offences(plant("nodes/cli/run.py", "from .. import NODES"), {"loaders"}) == []
