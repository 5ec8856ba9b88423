"""What every node promises: ids, tooltips, defaults inside their ranges, names that saved graphs rely on."""

from __future__ import annotations

import inspect

import pytest
from hyvideo_nodes.nodes import NODES

CATEGORIES = {"loaders", "conditioning", "sampling", "latents", "step cache", "memory"}
WIDGETS = {
    "HYVLoadModel": ["model", "precision"],
    "HYVLoadLora": ["lora", "strength", "blocks", "mode"],
    "HYVMemory": ["budget", "mode", "prefetch"],
    "HYVSpeed": ["attention", "fused_kernels", "torch_compile"],
    "HYVLoadTextEncoders": ["llm", "clip", "precision"],
    "HYVLoadVAE": ["vae", "precision"],
    "HYVInspectFile": ["file"],
    "HYVTextEncode": ["prompt", "template"],
    "HYVEmptyLatent": ["width", "height", "length", "batch_size"],
    "HYVResolution": ["resolution", "aspect"],
    "HYVSampler": ["seed", "steps", "embedded_guidance_scale", "flow_shift", "cfg", "denoise"],
    "HYVTeaCache": ["rel_l1_thresh", "start_percent", "end_percent"],
    "HYVVAEDecode": [
        "tile_size",
        "overlap",
        "temporal_size",
        "temporal_overlap",
        "mode",
        "fit_memory",
        "channels_last",
    ],
    "HYVVAEEncode": ["tile_size", "overlap", "temporal_size", "temporal_overlap"],
}
"""Widgets in the order in which saved graphs store them: append, never insert."""

ids = [node.define_schema().node_id for node in NODES]


@pytest.fixture(params=NODES, ids=ids)
def node(request):
    return request.param


def test_every_node_is_listed_once():
    assert len(set(ids)) == len(ids)
    assert set(ids) == set(WIDGETS)


def test_ids_names_and_categories_follow_the_rules(node):
    schema = node.define_schema()
    assert schema.node_id.startswith("HYV")
    assert schema.node_id == node.__name__
    assert schema.display_name.startswith("HunyuanVideo ")
    group, _, category = schema.category.partition("/")
    assert group == "HunyuanVideo"
    assert category in CATEGORIES
    assert schema.description


def test_every_socket_has_a_tooltip(node):
    schema = node.define_schema()
    assert all(len(socket.options.get("tooltip", "")) > 5 for socket in schema.inputs)
    assert all(len(socket.tooltip or "") > 5 for socket in schema.outputs)


def test_defaults_lie_inside_their_ranges(node):
    for socket in node.define_schema().inputs:
        options = socket.options
        if socket.io_type in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], socket.id
        if socket.io_type == "COMBO":
            assert options.get("default") in options["options"] or not options["options"], socket.id


def test_saved_widgets_keep_their_order(node):
    schema = node.define_schema()
    widgets = [
        socket.id for socket in schema.inputs if socket.io_type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    ]
    assert widgets == WIDGETS[schema.node_id]


def test_execute_takes_exactly_the_inputs(node):
    schema = node.define_schema()
    parameters = inspect.signature(node.execute).parameters
    assert list(parameters) == [socket.id for socket in schema.inputs]
    for socket in schema.inputs:
        has_default = parameters[socket.id].default is not inspect.Parameter.empty
        assert has_default == socket.optional, socket.id


def test_the_samplers_sockets_are_those_that_were_promised():
    schema = next(node for node in NODES if node.__name__ == "HYVSampler").define_schema()
    required = [socket.id for socket in schema.inputs if not socket.optional]
    assert required[:3] == ["model", "positive", "latent"]
    assert {"negative", "step_cache", "sigmas"} <= {socket.id for socket in schema.inputs if socket.optional}
    assert [output.io_type for output in schema.outputs] == ["LATENT", "STRING"]
    seed = next(socket for socket in schema.inputs if socket.id == "seed")
    assert seed.options["control_after_generate"] is True
