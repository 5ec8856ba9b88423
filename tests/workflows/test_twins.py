"""Each template for ComfyUI's editor is the same graph as its twin for the command line."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from hyvideo_nodes.nodes import NODES
from hyvideo_nodes.nodes.cli.core_nodes import CORE_NODES
from PIL import Image

SCHEMAS = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in [*CORE_NODES, *NODES]}
NOTES = ("MarkdownNote", "Note")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
TITLE_HEIGHT = 30
FOLDERS = {
    "HYVLoadModel": {"model": "diffusion_models"},
    "HYVLoadTextEncoders": {"llm": "text_encoders", "clip": "text_encoders"},
    "HYVLoadVAE": {"vae": "vae"},
    "HYVLoadLora": {"lora": "loras"},
    "UpscaleModelLoader": {"model_name": "upscale_models"},
}


def nodes_of(ui_graph: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in ui_graph["nodes"] if node["type"] not in NOTES]


def widget_inputs(node: dict[str, Any]) -> dict[str, Any]:
    """Widget values by name. The editor stores them by position; a seed is followed by what happens to it next."""
    values = list(node.get("widgets_values", []))
    inputs = {}
    for socket in SCHEMAS[node["type"]].inputs:
        # optional widgets at the end may be younger than the editor that saved the file
        if socket.io_type not in WIDGET_TYPES or not values:
            continue
        inputs[socket.id] = values.pop(0)
        if socket.options.get("control_after_generate"):
            assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
    assert values == []
    return inputs


def to_api(ui_graph: dict[str, Any]) -> dict[str, Any]:
    """What the editor sends when Run is pressed."""
    sources = {link[0]: [str(link[1]), link[2]] for link in ui_graph["links"]}
    prompt = {}
    for node in nodes_of(ui_graph):
        links = {socket["name"]: sources[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": widget_inputs(node) | links,
            "_meta": {"title": node.get("title") or SCHEMAS[node["type"]].display_name},
        }
    return prompt


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node with its title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def test_every_template_has_its_twin_and_its_thumbnail_and_nothing_else_lies_there(workflows: Path) -> None:
    names = {path.stem for path in workflows.glob("*.json")}
    assert "embedded_t2v" in names
    expected = {f"{name}{end}" for name in names for end in (".json", ".jpg")} | {f"api/{name}.json" for name in names}
    assert {path.relative_to(workflows).as_posix() for path in workflows.rglob("*") if path.is_file()} == expected


def test_only_core_nodes_and_ours_each_with_a_title(api_graph: dict[str, Any]) -> None:
    assert {node["class_type"] for node in api_graph.values()} <= set(SCHEMAS)
    assert [node_id for node_id, node in api_graph.items() if not node["_meta"]["title"]] == []


def test_twins_are_the_same_graph(ui_graph: dict[str, Any], api_graph: dict[str, Any]) -> None:
    assert to_api(ui_graph) == api_graph


def test_links_name_the_sockets_they_join(ui_graph: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in ui_graph["nodes"]}
    for link_id, source, output, target, socket, kind in ui_graph["links"]:
        assert nodes[target]["inputs"][socket]["link"] == link_id
        assert link_id in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
    assert max(nodes) <= ui_graph["last_node_id"]
    assert max(link[0] for link in ui_graph["links"]) <= ui_graph["last_link_id"]


def test_nodes_do_not_overlap_and_stand_in_titled_groups(ui_graph: dict[str, Any]) -> None:
    boxes = {node["id"]: box(node) for node in ui_graph["nodes"]}
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"nodes {one} and {other} overlap"
    groups = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in ui_graph["groups"])]
    assert all(group["title"] for group in ui_graph["groups"])
    for node in nodes_of(ui_graph):
        x0, y0, x1, y1 = boxes[node["id"]]
        assert any(a <= x0 and b <= y0 and x1 <= c and y1 <= d for a, b, c, d in groups), node["type"]


def test_missing_files_can_be_found(name: str, ui_graph: dict[str, Any]) -> None:
    """The editor's own dialogue and a note name every file that must be fetched, with its folder."""
    notes = "\n".join(node["widgets_values"][0] for node in ui_graph["nodes"] if node["type"] in NOTES)
    for node in nodes_of(ui_graph):
        listed = {(model["name"], model["directory"]) for model in node["properties"].get("models", [])}
        chosen = widget_inputs(node)
        wanted = {(chosen[socket], folder) for socket, folder in FOLDERS.get(node["type"], {}).items()}
        assert listed == (set() if name.startswith("embedded") else wanted)
        assert [f"{file} | {folder}" for file, folder in listed if f"| {file} | {folder} |" not in notes] == []


def test_ids_are_unique(workflows: Path) -> None:
    ids = [json.loads(path.read_text(encoding="utf-8"))["id"] for path in workflows.glob("*.json")]
    assert len(set(ids)) == len(ids)


def test_every_template_has_a_thumbnail_of_its_own(workflows: Path) -> None:
    pictures = [path.read_bytes() for path in workflows.glob("*.jpg")]
    assert len(set(pictures)) == len(pictures) > 1


def test_thumbnail_is_small(name: str, workflows: Path) -> None:
    path = workflows / f"{name}.jpg"
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert image.width <= 400
        assert image.height <= 300
    assert path.stat().st_size < 40_000
