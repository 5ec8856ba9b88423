"""Refuses a graph before anything of it runs, with everything that is wrong in one message."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePath
from typing import Any

from ...hyvideo_core.errors import GraphError
from ..host import io
from ..host.folders import MODEL_EXTENSIONS
from ..host.headless import why_refused
from ..host.headless_io import InputSocket
from .graph import Link, Node, Registry

# the host's own conversions, so that a graph means the same here and there
_COERCIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_SHOWN_CHOICES = 12


@dataclass(frozen=True)
class Graph:
    """A graph that may run: the nodes that some output needs, in the order in which they run."""

    nodes: tuple[Node, ...]
    schemas: Mapping[str, io.Schema]
    types: Registry

    def schema(self, node: Node) -> io.Schema:
        """The schema of a node's type."""
        return self.schemas[node.class_type]


def validate(nodes: Mapping[str, Node], registry: Registry, known_problems: Sequence[str] = ()) -> Graph:
    """The part of a graph that runs, its constants converted to the types of their inputs.

    Args:
        known_problems: what was found wrong before, to be reported with the rest.
    Raises:
        GraphError: everything that is wrong, one line per problem.
    """
    schemas = {
        node.class_type: registry[node.class_type].GET_SCHEMA() for node in nodes.values() if _known(node, registry)
    }
    problems = list(known_problems)
    problems += [_unknown_type(node, registry) for node in nodes.values() if not _known(node, registry)]
    needed = _needed(nodes, schemas)
    if not needed and not problems:
        problems.append("the workflow has no output node, so nothing would run; add one that saves, such as SaveVideo")
    checked = {}
    for node in needed.values():
        if node.class_type in schemas:
            check = _NodeCheck(node, registry[node.class_type], schemas, nodes)
            checked[node.node_id] = check.node()
            problems.extend(f"{node.label}: {problem}" for problem in check.problems)
    problems.extend(_cycles(needed))
    if problems:
        raise GraphError("\n".join(problems))
    return Graph(tuple(checked[node_id] for node_id in execution_order(checked)), schemas, registry)


def execution_order(nodes: Mapping[str, Node]) -> list[str]:
    """Node ids, each after those that feed it.

    Nodes that nothing feeds come first: loaders are among them, and a bad file is then found before hours of work.
    After them a node's consumers follow it at once, so that few results wait at a time.
    """
    sorter = TopologicalSorter(_dependencies(nodes))
    sorter.prepare()
    order = list(sorter.get_ready())
    sorter.done(*order)
    ready = list(reversed(sorter.get_ready()))
    while ready:
        order.append(ready.pop())
        sorter.done(order[-1])
        ready.extend(reversed(sorter.get_ready()))
    return order


class _NodeCheck:
    """Goes through the inputs of one node and collects what is wrong."""

    def __init__(
        self, node: Node, node_type: type[io.ComfyNode], schemas: Mapping[str, io.Schema], nodes: Mapping[str, Node]
    ) -> None:
        self.problems: list[str] = []
        self._node = node
        self._schemas = schemas
        self._nodes = nodes
        self._sockets = {socket.id: socket for socket in schemas[node.class_type].inputs}
        self._own_check: Callable[..., bool | str] | None = getattr(node_type, "validate_inputs", None)

    def node(self) -> Node:
        """The node with converted constants; `problems` is complete afterwards."""
        inputs = {}
        for name, value in self._node.inputs.items():
            if name not in self._sockets:
                self.problems.append(f'there is no input "{name}"; there is: {", ".join(self._sockets) or "none"}')
            elif isinstance(value, Link):
                self._check_link(self._sockets[name], value)
                inputs[name] = value
            else:
                inputs[name] = self._constant(self._sockets[name], value)
        for name, socket in self._sockets.items():
            if name not in self._node.inputs and not socket.optional:
                self.problems.append(f'the required input "{name}" ({socket.io_type}) is missing; link or set it')
        if not self.problems:
            self._ask_node(inputs)
        return replace(self._node, inputs=inputs)

    def _check_link(self, socket: InputSocket, link: Link) -> None:
        source = self._nodes.get(link.node_id)
        if source is None:
            self.problems.append(f'input "{socket.id}" is linked to node {link.node_id}, which does not exist')
        elif source.class_type in self._schemas:
            outputs = self._schemas[source.class_type].outputs
            if not 0 <= link.output < len(outputs):
                self.problems.append(
                    f'input "{socket.id}" is linked to output {link.output} of {source.label}, which has {len(outputs)}'
                )
            elif not _types_fit(outputs[link.output].io_type, socket.io_type):
                self.problems.append(
                    f'input "{socket.id}" takes {socket.io_type}, but {source.label} gives '
                    f"{outputs[link.output].io_type} there; link an output of type {socket.io_type}"
                )

    def _constant(self, socket: InputSocket, value: Any) -> Any:
        if isinstance(value, str) and not _is_text(value):
            self.problems.append(f'input "{socket.id}" is not valid text (half a character); write it as UTF-8')
            return value
        if socket.io_type == "COMBO":
            if not self._is_checked_by_node(socket.id):
                self.problems.extend(_choice_problems(socket, value))
            return value
        if socket.io_type not in _COERCIONS:
            self.problems.append(f'input "{socket.id}" needs a link of type {socket.io_type}, got {value!r:.60}')
            return value
        try:
            value = _COERCIONS[socket.io_type](value)
        except (TypeError, ValueError, OverflowError):
            self.problems.append(f'input "{socket.id}" needs {socket.io_type}, got {value!r:.60}')
            return value
        if not self._is_checked_by_node(socket.id):
            self.problems.extend(_range_problems(socket, value))
        return value

    def _checked_names(self) -> set[str]:
        return set(inspect.signature(self._own_check).parameters) if self._own_check else set()

    def _is_checked_by_node(self, name: str) -> bool:
        """As in the host, an input that the node checks itself is not checked against its list or range."""
        return name in self._checked_names()

    def _ask_node(self, inputs: Mapping[str, Any]) -> None:
        if self._own_check is None:
            return
        names = self._checked_names()
        constants = {k: v for k, v in inputs.items() if k in names and not isinstance(v, Link)}
        answer = self._own_check(**constants)
        if answer is not True:
            self.problems.append(str(answer))


def _choice_problems(socket: InputSocket, value: Any) -> Iterator[str]:
    choices = socket.options.get("options") or []
    if value in choices:
        return
    if isinstance(value, str) and (reason := why_refused(value)):
        yield f'input "{socket.id}": {reason}'
        return
    if PurePath(str(value)).suffix.lower() in MODEL_EXTENSIONS:
        advice = "; put the file into its folder, or name the models folder that has it there with --models-dir"
    else:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
    listed = ", ".join(str(choice) for choice in choices[:_SHOWN_CHOICES]) or "nothing"
    more = f" and {len(choices) - _SHOWN_CHOICES} more" if len(choices) > _SHOWN_CHOICES else ""
    yield f'input "{socket.id}": {value!r:.80} is not in the list; there is: {listed}{more}{advice}'


def _range_problems(socket: InputSocket, value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f'input "{socket.id}" needs a finite number, got {value}'
        return
    low, high = socket.options.get("min"), socket.options.get("max")
    if low is not None and value < low:
        yield f'input "{socket.id}" is {value}, but must be at least {low}'
    if high is not None and value > high:
        yield f'input "{socket.id}" is {value}, but must be at most {high}'


def _is_text(value: str) -> bool:
    """Whether all characters are whole: JSON escapes and broken terminals can bring halves, which no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _types_fit(given: str, taken: str) -> bool:
    """Socket types are compared as the host does: as names, `A,B` being either and `*` anything."""
    kinds = set(given.split(",")), set(taken.split(","))
    return "*" in kinds[0] | kinds[1] or bool(kinds[0] & kinds[1])


def _known(node: Node, registry: Registry) -> bool:
    return node.class_type in registry


def _unknown_type(node: Node, registry: Registry) -> str:
    core = ", ".join(sorted(name for name in registry if not name.startswith("HYV")))
    return (
        f"{node.label}: this type of node is not known here. The command line is not a second ComfyUI: it runs the "
        f"nodes of this pack and a few of ComfyUI's own ({core}). Run this graph in ComfyUI, or replace the node"
    )


def _needed(nodes: Mapping[str, Node], schemas: Mapping[str, io.Schema]) -> dict[str, Node]:
    """The nodes on a path to an output node, in the order of the file."""
    waiting = [n.node_id for n in nodes.values() if n.class_type in schemas and schemas[n.class_type].is_output_node]
    found: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id in nodes and node_id not in found:
            found.add(node_id)
            waiting.extend(link.node_id for link in nodes[node_id].links.values())
    return {node_id: node for node_id, node in nodes.items() if node_id in found}


def _dependencies(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    return {
        node_id: [link.node_id for link in node.links.values() if link.node_id in nodes]
        for node_id, node in nodes.items()
    }


def _cycles(nodes: Mapping[str, Node]) -> Iterator[str]:
    try:
        TopologicalSorter(_dependencies(nodes)).prepare()
    except CycleError as error:
        labels = [nodes[node_id].label for node_id in reversed(error.args[1])]
        if len(labels) > _SHOWN_CHOICES:
            labels[_SHOWN_CHOICES - 1 : -1] = [f"{len(labels) - _SHOWN_CHOICES} more"]
        around = " -> ".join(labels)
        yield f"these nodes feed each other in a circle: {around}; remove one of the links"
