"""Every node explains itself: an id of ours, a description, tooltips, a help page."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def schemas():
    from hyvideo_nodes.nodes import NODES

    return [node.define_schema() for node in NODES]


def test_ids_and_names_tell_whose_they_are(schemas) -> None:
    ids = [schema.node_id for schema in schemas]
    assert ids
    assert len(set(ids)) == len(ids)
    assert [node_id for node_id in ids if not node_id.startswith("HYV")] == []
    foreign = [s.node_id for s in schemas if not (s.display_name or "").startswith("HunyuanVideo")]
    assert foreign + [s.node_id for s in schemas if not s.category.startswith("HunyuanVideo/")] == []


def test_every_node_and_socket_has_a_tooltip(schemas) -> None:
    silent = [schema.node_id for schema in schemas if not schema.description]
    for schema in schemas:
        silent += [f"{schema.node_id}.{socket.id}" for socket in schema.inputs if not socket.options.get("tooltip")]
        silent += [f"{schema.node_id} -> {socket.io_type}" for socket in schema.outputs if not socket.tooltip]
    assert silent == []


def test_every_node_has_a_help_page_and_every_page_a_node(root, schemas) -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (root / "web" / "docs").glob("*.md")}
    assert set(pages) == {schema.node_id for schema in schemas}


def test_help_page_names_every_input(root, schemas) -> None:
    missing = []
    for schema in schemas:
        page = (root / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
        assert page.startswith("# ")
        missing += [f"{schema.node_id}.{socket.id}" for socket in schema.inputs if f"`{socket.id}`" not in page]
    assert missing == []
