"""Reads a workflow in the API format: what stands in the file, before anything about it is believed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...hyvideo_core.errors import GraphError
from ..host import io

Registry = Mapping[str, type[io.ComfyNode]]

_UI_ADVICE = (
    "is a workflow as ComfyUI's editor saves it; this command needs the API format: open it in ComfyUI and choose "
    "Workflow > Export (API)"
)
_TRUTHS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True)
class Link:
    """An input that is fed by another node's output."""

    node_id: str
    output: int


@dataclass(frozen=True)
class Node:
    """One node as the file has it; `inputs` holds constants and Links."""

    node_id: str
    class_type: str
    title: str
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages call this node: id, title and type, in printable characters."""
        name = f' "{_printable(self.title)}"' if self.title and self.title != self.class_type else ""
        return f"node {_printable(self.node_id)}{name} ({_printable(self.class_type)})"

    @property
    def links(self) -> dict[str, Link]:
        """The inputs that other nodes feed."""
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}


def read_prompt(path: Path) -> dict[str, Any]:
    """The JSON object in a file: node id -> node.

    Raises:
        GraphError: no such file, not JSON, something in it twice, or a workflow in the editor's format.
    """
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except OSError as error:
        raise GraphError(f"cannot read the workflow {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise GraphError(f"{path} is not a JSON file: {error}; give a workflow in the API format") from error
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise GraphError(f"{path} {_UI_ADVICE}")
    if not isinstance(prompt, dict) or not prompt:
        raise GraphError(f"{path} holds no nodes; give a workflow in the API format, an object of node id: node")
    if strange := [_printable(node_id) for node_id, entry in prompt.items() if not _is_node(entry)]:
        raise GraphError(f'{path}: node {", ".join(strange)}: expected an object with "class_type" and "inputs"')
    return prompt


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python would keep the last of equal keys in silence, and run another graph than was meant."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise GraphError(f'"{_printable(twice)}" stands twice in one object of the workflow; remove or rename one')
    return entries


def parse_nodes(prompt: Mapping[str, Any], registry: Registry) -> dict[str, Node]:
    """The nodes of a prompt that read_prompt gave, titled by the file, else by their display name."""
    nodes = {}
    for node_id, entry in prompt.items():
        inputs = {name: _parse_value(value) for name, value in entry["inputs"].items()}
        class_type = entry["class_type"]
        nodes[node_id] = Node(node_id, class_type, _title(entry, registry.get(class_type)), inputs)
    return nodes


def apply_settings(
    prompt: Mapping[str, Any], settings: Sequence[str], registry: Registry
) -> tuple[dict[str, Any], list[str]]:
    """A prompt with constants replaced, each given as NODE_ID.INPUT=VALUE.

    Returns:
        The changed prompt, and what is wrong with the settings that could not be applied.
    """
    changed, problems = dict(prompt), []
    for setting in settings:
        try:
            node_id, name, value = _parse_setting(setting, changed, registry)
        except GraphError as error:
            problems.append(f"--set {_printable(setting)}: {error}")
            continue
        entry = changed[node_id]
        changed[node_id] = entry | {"inputs": entry["inputs"] | {name: value}}
    return changed, problems


def _parse_setting(setting: str, prompt: Mapping[str, Any], registry: Registry) -> tuple[str, str, Any]:
    target, equals, text = setting.partition("=")
    # both ids and input names may hold dots, so the split is where a node of that id exists
    splits = [(target[:i], target[i + 1 :]) for i, char in enumerate(target) if char == "."]
    if not equals or not splits:
        raise GraphError("expected NODE_ID.INPUT=VALUE")
    node_id, name = next((split for split in reversed(splits) if split[0] in prompt), splits[0])
    if node_id not in prompt:
        raise GraphError(f"there is no node {node_id}; there is: {', '.join(map(_printable, prompt))}")
    node_type = registry.get(prompt[node_id]["class_type"])
    if node_type is None:
        raise GraphError(f"node {node_id} is of a type that is not known here")
    sockets = {socket.id: socket for socket in node_type.GET_SCHEMA().inputs}
    if name not in sockets:
        raise GraphError(f'node {node_id} has no input "{name}"; it has: {", ".join(sockets)}')
    return node_id, name, _from_text(sockets[name].io_type, sockets[name].options, text)


def _from_text(io_type: str, options: Mapping[str, Any], text: str) -> Any:
    """What a text on the command line means for an input; what it cannot mean is left for the validation."""
    if io_type == "BOOLEAN":
        if text.lower() not in _TRUTHS:
            raise GraphError(f'expected true or false, got "{_printable(text)}"')
        return _TRUTHS[text.lower()]
    if io_type == "COMBO":
        return next((choice for choice in options.get("options", ()) if str(choice) == text), text)
    return text


def _is_node(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and isinstance(entry.get("class_type"), str) and isinstance(entry.get("inputs"), dict)
    )


def _parse_value(value: Any) -> Any:
    """A constant or a Link. A bare pair is a link; a list as a constant comes wrapped."""
    if isinstance(value, dict) and set(value) == {"__value__"}:
        return value["__value__"]
    is_pair = isinstance(value, list) and len(value) == 2
    if is_pair and isinstance(value[0], str | int) and type(value[1]) is int:
        return Link(str(value[0]), value[1])
    return value


def _title(entry: Mapping[str, Any], node_type: type[io.ComfyNode] | None) -> str:
    meta = entry.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    if isinstance(title, str) and title:
        return title
    return (node_type.GET_SCHEMA().display_name or "") if node_type else ""


def _printable(text: str, limit: int = 80) -> str:
    """A text from a file, made safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])
