"""The stand-in promises what ComfyUI does: compared by syntax tree always, and with a real one where there is one."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
from hyvideo_nodes.nodes import host
from hyvideo_nodes.nodes.host import headless, headless_io, io

HOST = Path(host.__file__).parent
# node descriptions carry these only from later hosts on
LATER_FIELDS = {"search_aliases", "essentials_category", "has_intermediate_output"}


def test_both_doors_export_the_same_names() -> None:
    assert _exported("comfyui.py") == _exported("headless.py")
    assert set(_exported("headless.py")) <= vars(host).keys()


def test_every_exported_function_takes_the_same_arguments() -> None:
    ours, theirs = _signatures("headless.py"), _signatures("comfyui.py")
    exported = set(_exported("headless.py"))
    common = exported & ours.keys()
    assert common == exported & theirs.keys()
    assert len(common) > 15
    for name in common - {"extension"}:  # there the node types differ by nature
        assert ours[name] == theirs[name], name


def test_outside_comfyui_the_name_chooses_the_stand_in() -> None:
    assert host.io is headless_io
    assert not any(name == "comfy" or name.startswith(("comfy.", "comfy_api")) for name in sys.modules)


@pytest.mark.parametrize("argument", ["advanced", "gradient_stops", "colour"])
def test_arguments_that_the_oldest_host_lacks_are_refused(argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        io.Float.Input("x", **{argument: True})


def test_equal_ids_are_refused() -> None:
    class Twice(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(node_id="Twice", inputs=[io.Int.Input("a"), io.Int.Input("a")])

    with pytest.raises(ValueError, match="ids must be unique"):
        Twice.GET_SCHEMA()


def test_output_nodes_learn_the_prompt_and_hidden_lists_are_not_shared() -> None:
    wanted: list[Any] = [io.Hidden.unique_id]

    class End(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(node_id="End", hidden=wanted, is_output_node=True)

    assert [name.name for name in End.GET_SCHEMA().hidden] == ["unique_id", "prompt", "extra_pnginfo"]
    assert wanted == [io.Hidden.unique_id]


def test_node_output_gives_its_values() -> None:
    output = io.NodeOutput(1, 2, ui={"text": ["x"]})
    assert output.result == (1, 2)
    assert output[1] == 2
    assert io.NodeOutput().result is None


def test_every_node_is_described_as_comfyui_describes_it(comfyui_report: dict[str, Any]) -> None:
    assert {"ProbeWidgets", "ProbeSockets", "SaveVideo"} <= comfyui_report["nodes"].keys()
    for node_id, (theirs, ours) in comfyui_report["nodes"].items():
        assert ours["inputs"] == theirs["inputs"], node_id
        assert ours["info"].keys() - theirs["info"].keys() <= LATER_FIELDS, node_id
        for key in ours["info"].keys() & theirs["info"].keys():
            assert ours["info"][key] == theirs["info"][key], (node_id, key)


def test_in_comfyui_the_name_chooses_comfyui(comfyui_report: dict[str, Any]) -> None:
    assert comfyui_report["doors"] == ["SimpleNamespace", "module"]
    assert comfyui_report["sys_path_unchanged"]


def test_graphs_for_comfyui_s_own_nodes_fit_ours(comfyui_report: dict[str, Any]) -> None:
    for node_id, ((theirs, their_outputs), (ours, our_outputs)) in comfyui_report["core"].items():
        known = ours["required"] | ours.get("optional", {})
        assert theirs["required"].keys() <= known.keys(), node_id
        assert ours["required"].keys() <= theirs["required"].keys(), node_id
        for name, socket in theirs["required"].items():
            assert _type_name(socket[0]) == known[name][0], (node_id, name)
            wanted = socket[1] if len(socket) > 1 else {}
            for limit in ("min", "max"):
                assert wanted.get(limit) == known[name][1].get(limit), (node_id, name)
            if isinstance(socket[0], list) and socket[0]:
                assert socket[0] == known[name][1]["options"], (node_id, name)
        # older hosts have fewer outputs, none of another type
        assert their_outputs == our_outputs[: len(their_outputs)], node_id


def test_comfyui_lists_embedded_files_in_our_loaders_only(comfyui_report: dict[str, Any]) -> None:
    found = comfyui_report["behaviour"]
    mine = [name for name in found["our_files"] if "mine" in name]
    assert sorted(mine) == ["mine.gguf", "mine.safetensors"]
    assert found["our_files"][: len(mine)] == mine
    assert [name for name in found["our_files"] if "sharded" in name] == ["sharded"]
    assert "hyvideo_embedded_probe.safetensors" in found["our_files"]
    assert not any("embedded" in name for name in found["host_files"])
    assert found["no_files"] == []
    assert all(Path(path).is_file() for path in found["resolved"])
    assert len(found["resolved"]) == 3


def test_comfyui_folders_devices_and_tokenizers(comfyui_report: dict[str, Any]) -> None:
    found = comfyui_report["behaviour"]
    assert [Path(path).name for path in found["folders"]] == ["output", "input", "temp", "user"]
    assert all(path.startswith(comfyui_report["scratch"]) for path in found["folders"])
    assert found["devices"] == ["cpu"]
    assert [Path(path).name for path in found["tokenizers"]] == ["sd1_tokenizer"]


def test_comfyui_places_a_module_that_can_still_be_trained(comfyui_report: dict[str, Any]) -> None:
    assert comfyui_report["behaviour"]["placed"] == ["cpu", True, "ModelPatcher", True]


def test_comfyui_interrupts_previews_and_registration(comfyui_report: dict[str, Any]) -> None:
    found = comfyui_report["behaviour"]
    assert found["interrupt"] == [True, True]
    assert found["wanted"] == [False, True]
    assert found["factors"] == [16, 3, 3]
    assert found["is_vae"] == [False, True]
    assert found["listed"] == [1, 2]
    assert found["is_extension"]
    assert found["oom"]


def _type_name(io_type: Any) -> str:
    return "COMBO" if isinstance(io_type, list) or "COMBO" in io_type else io_type


def _tree(file: str) -> ast.Module:
    return ast.parse((HOST / file).read_text(encoding="utf-8"))


def _exported(file: str) -> list[str]:
    for statement in _tree(file).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return ast.literal_eval(statement.value)
    raise AssertionError(f"{file} has no __all__")


def _signatures(file: str) -> dict[str, str]:
    functions = [item for item in _tree(file).body if isinstance(item, ast.FunctionDef)]
    return {item.name: ast.unparse(item.args) for item in functions}


def test_headless_offers_every_exported_name() -> None:
    assert all(hasattr(headless, name) for name in headless.__all__)
