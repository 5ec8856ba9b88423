"""Runs a validated graph: each node once, each result no longer than somebody needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from ..host import check_interrupt, io
from .graph import Link, Node
from .validation import Graph


def run(graph: Graph, prompt: dict[str, Any] | None, on_start: Callable[[Node], None]) -> list[dict[str, Any]]:
    """What the nodes have to show, in the order in which they ran.

    Args:
        prompt: what nodes that save write into their files; None writes nothing.
        on_start: called before each node.
    Raises:
        Whatever a node raises, unchanged: the node is the one of the last `on_start`.
    """
    results: dict[str, tuple[Any, ...]] = {}
    waiting = Counter(link.node_id for node in graph.nodes for link in node.links.values())
    shown = []
    for node in graph.nodes:
        check_interrupt()
        on_start(node)
        output = _execute(graph, node, _arguments(node, results), prompt)
        if output.ui:
            shown.append(output.ui)
        if waiting[node.node_id]:
            results[node.node_id] = output.args
        del output
        for link in node.links.values():
            waiting[link.node_id] -= 1
            if not waiting[link.node_id]:
                results.pop(link.node_id, None)
    return shown


def _arguments(node: Node, results: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {
        name: results[value.node_id][value.output] if isinstance(value, Link) else value
        for name, value in node.inputs.items()
    }


def _execute(graph: Graph, node: Node, arguments: dict[str, Any], prompt: dict[str, Any] | None) -> io.NodeOutput:
    """Runs a node as the host does: on a copy of its class that knows the hidden inputs, in inference mode."""
    node_type = graph.types[node.class_type]
    known = {"unique_id": node.node_id, "prompt": prompt, "extra_pnginfo": None, "dynprompt": None}
    hidden = SimpleNamespace(**{name.name: known[name.name] for name in graph.schema(node).hidden})
    bound: type[io.ComfyNode] = type(node_type.__name__, (node_type,), {"hidden": hidden})
    with torch.inference_mode():
        return bound.execute(**arguments)
