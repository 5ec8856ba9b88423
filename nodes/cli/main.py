"""The front door's sub-commands, their messages and exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from ...hyvideo_core.errors import GraphError, HyVideoError
from ..host import OUT_OF_MEMORY, Interrupted, io, output_folder
from ..host.headless import Folders, remove_temp_folder, use_folders
from . import inspect, save_as
from .graph import Node, Registry, apply_settings, parse_nodes, read_prompt
from .runner import run
from .validation import Graph, validate

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
_NO_MEMORY = "not enough memory; choose a smaller size, fewer frames or smaller tiles"
_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch has no type of its own for the CPU's memory, only this word


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Returns:
        0 done, 1 a node failed, 2 the graph or the call was refused before anything ran, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        code: int = options.command(options)
    except (KeyboardInterrupt, Interrupted):
        return _fail("Interrupted.", INTERRUPTED, debug=False)
    finally:
        remove_temp_folder()
    return code


def registry() -> Registry:
    """Every node that runs here: the pack's own, and the few of ComfyUI's that templates use."""
    from .. import NODES
    from .core_nodes import CORE_NODES

    nodes: list[type[io.ComfyNode]] = [*CORE_NODES, *NODES]
    return {node.GET_SCHEMA().node_id: node for node in nodes}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python PACK", description="HunyuanVideo without ComfyUI.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run_parser = commands.add_parser(
        "run",
        help="run a workflow in the API format",
        description="Runs a workflow that ComfyUI exported with Workflow > Export (API). Prints the saved files.",
    )
    run_parser.set_defaults(command=_run)
    run_parser.add_argument("graph", type=Path, metavar="GRAPH.json")
    run_parser.add_argument(
        "--set", action="append", default=[], metavar="NODE_ID.INPUT=VALUE", help="replace a value; may be repeated"
    )
    run_parser.add_argument("--output-dir", type=Path, metavar="DIR", help="where results go (default: ./output)")
    run_parser.add_argument("--input-dir", type=_folder, metavar="DIR", help="where LoadImage looks (default: ./input)")
    run_parser.add_argument(
        "--models-dir",
        type=_folder,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder like ComfyUI's models; looked at before its own; may be repeated",
    )
    run_parser.add_argument("--disable-metadata", action="store_true", help="write no workflow into the saved files")
    run_parser.add_argument("--debug", action="store_true", help="show where in the code an error came up")
    nodes_parser = commands.add_parser("nodes", help="list the nodes that run here")
    nodes_parser.set_defaults(command=_list_nodes)
    inspect.add_command(commands)
    save_as.add_command(commands)
    return parser


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text).resolve()


def _list_nodes(_: argparse.Namespace) -> int:
    for node_id, node in sorted(registry().items()):
        print(f"{node_id:24} {node.GET_SCHEMA().display_name}")
    return 0


def _run(options: argparse.Namespace) -> int:
    use_folders(_folders(options))
    try:
        types = registry()
        prompt, problems = apply_settings(read_prompt(options.graph), options.set, types)
        graph = validate(parse_nodes(prompt, types), types, problems)
    except GraphError as error:
        return _fail(f"The workflow was refused, nothing has run:\n{error}", REFUSED, options.debug)
    return _execute(graph, None if options.disable_metadata else prompt, options.debug)


def _execute(graph: Graph, prompt: dict[str, Any] | None, debug: bool) -> int:
    started: list[Node] = []

    def announce(node: Node) -> None:
        started.append(node)
        print(f"[{len(started)}/{len(graph.nodes)}] {node.label}", file=sys.stderr)

    try:
        with logging_redirect_tqdm():
            shown = run(graph, prompt, announce)
    except HyVideoError as error:
        return _fail(f"{started[-1].label}: {error}", FAILED, debug)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{started[-1].label}: {place}{error.strerror or error}", FAILED, debug)
    except OUT_OF_MEMORY as error:
        return _fail(f"{started[-1].label}: {_NO_MEMORY} ({error})", FAILED, debug)
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        return _fail(f"{started[-1].label}: {_NO_MEMORY} ({error})", FAILED, debug)
    for path in _saved_files(shown):
        print(path)
    if num_previews := sum(entry["type"] == "temp" for entry in _files(shown)):
        print(f"Previews ({num_previews}) are not kept; Save Image keeps pictures.", file=sys.stderr)
    return 0


def _folders(options: argparse.Namespace) -> Folders:
    defaults = Folders()
    return Folders(
        output=options.output_dir or defaults.output,
        input=options.input_dir or defaults.input,
        models=(*options.models_dir, *defaults.models),
    )


def _saved_files(shown: Sequence[dict[str, Any]]) -> list[Path]:
    """The files that nodes have put into the output folder."""
    return [
        output_folder() / entry["subfolder"] / entry["filename"] for entry in _files(shown) if entry["type"] == "output"
    ]


def _files(shown: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What nodes have reported to the front end of the files that they wrote."""
    return [entry for ui in shown for entry in ui.get("images", ())]


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # names from the graph are in it, and a terminal obeys control characters
    print("".join(char if char.isprintable() or char == "\n" else "?" for char in message), file=sys.stderr)
    return code
