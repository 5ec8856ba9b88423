"""What runs, in which order, what is kept, and how a run ends."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from hyvideo_nodes.nodes.cli import main
from hyvideo_nodes.nodes.cli.graph import parse_nodes
from hyvideo_nodes.nodes.cli.runner import run
from hyvideo_nodes.nodes.cli.validation import validate
from hyvideo_nodes.nodes.host import headless, io

ROOT = Path(__file__).resolve().parents[2]
main_module = sys.modules[main.__module__]
REGISTRY = main_module.registry


def test_writes_the_video_and_prints_where(saving: Any, run_cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(saving) == 0
    captured = capsys.readouterr()
    path = Path(captured.out.strip())
    assert path == Path.cwd() / "output" / "clip_00001_.mp4"
    assert path.is_file()
    assert '[3/3] node 3 "Write it" (SaveVideo)' in captured.err


def test_numbers_go_on(saving: Any, run_cli: Any) -> None:
    assert run_cli(saving) == run_cli(saving) == 0
    assert sorted(p.name for p in Path("output").iterdir()) == ["clip_00001_.mp4", "clip_00002_.mp4"]


def test_settings_take_the_type_of_their_input(saving: Any, run_cli: Any, events: list[Any]) -> None:
    settings = ["1.count=5", "1.loud=false", "1.note=7=1", "1.level=1e-1", "3.filename_prefix=sub/b"]
    assert run_cli(saving, *(part for setting in settings for part in ("--set", setting))) == 0
    assert events == [("frames", "1", 5, False, "7=1", True)]
    assert Path("output/sub/b_00001_.mp4").is_file()


def test_constants_are_converted_as_the_host_does(saving: Any, run_cli: Any, events: list[Any]) -> None:
    saving["1"]["inputs"] |= {"count": "4", "note": 12, "loud": 1}
    assert run_cli(saving) == 0
    assert events == [("frames", "1", 4, True, "12", True)]


def test_output_dir_is_obeyed(saving: Any, run_cli: Any, tmp_path: Path) -> None:
    assert run_cli(saving, "--output-dir", str(tmp_path / "elsewhere")) == 0
    assert (tmp_path / "elsewhere" / "clip_00001_.mp4").is_file()


def test_file_holds_its_workflow(saving: Any, run_cli: Any) -> None:
    assert run_cli(saving, "--set", "1.count=2") == 0
    with av.open("output/clip_00001_.mp4") as container:
        stored = json.loads(container.metadata["prompt"])
    assert stored["1"]["inputs"]["count"] == "2"
    assert stored["3"] == saving["3"]


def test_metadata_can_be_switched_off(saving: Any, run_cli: Any) -> None:
    assert run_cli(saving, "--disable-metadata") == 0
    with av.open("output/clip_00001_.mp4") as container:
        assert "prompt" not in container.metadata


def test_newer_spelling_of_the_codec_runs(saving: Any, run_cli: Any) -> None:
    saving["3"]["inputs"] = {"video": ["2", 0], "filename_prefix": "c", "format": "mp4", "format.codec": "h264"}
    assert run_cli(saving) == 0


def test_failure_is_one_message_with_the_node(saving: Any, run_cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(_through_pass(saving, "shape")) == 1
    error = capsys.readouterr().err
    assert 'node 4 "Careful" (ToyPass): width 500 is not a multiple of 16; use 496 or 512' in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(saving: Any, run_cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(_through_pass(saving, "shape"), "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["memory", "cpu-memory"])
def test_out_of_memory_gives_advice(saving: Any, run_cli: Any, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(_through_pass(saving, kind)) == 1
    assert "not enough memory; choose a smaller size" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_message(saving: Any, run_cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(_through_pass(saving, "disk")) == 1
    assert 'node 4 "Careful" (ToyPass): clip.mp4: No space left on device' in capsys.readouterr().err


def test_no_temporary_folder_is_made_in_vain(saving: Any, run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: pytest.fail("a temporary folder was made"))
    assert run_cli(saving) == 0


@pytest.mark.parametrize("kind", ["interrupt", "ctrl-c"])
def test_interrupt_ends_with_130_and_leaves_no_file(saving: Any, run_cli: Any, kind: str) -> None:
    assert run_cli(_through_pass(saving, kind)) == 130
    assert not Path("output").exists()


def test_request_to_stop_is_met_before_the_next_node(saving: Any, run_cli: Any, events: list[Any]) -> None:
    headless.interrupt()
    assert run_cli(saving) == 130
    assert events == []
    assert run_cli(saving) == 0


def test_mistakes_of_ours_are_not_hidden(saving: Any, run_cli: Any) -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_cli(_through_pass(saving, "bug"))


def test_sources_run_first_then_each_branch_to_its_end(registry: Any) -> None:
    prompt = {
        "a": {"class_type": "ToyFrames", "inputs": {"count": 1, "width": 2, "height": 2}},
        "a1": {"class_type": "ToyPass", "inputs": {"image": ["a", 0], "mode": "pass"}},
        "a2": {"class_type": "PreviewImage", "inputs": {"images": ["a1", 0]}},
        "b": {"class_type": "ToyFrames", "inputs": {"count": 1, "width": 2, "height": 2}},
        "b1": {"class_type": "ToyPass", "inputs": {"image": ["b", 0], "mode": "pass"}},
        "b2": {"class_type": "PreviewImage", "inputs": {"images": ["b1", 0]}},
    }
    graph = validate(parse_nodes(prompt, registry), registry)
    assert [node.node_id for node in graph.nodes] == ["a", "b", "a1", "a2", "b1", "b2"]


def test_results_are_freed_with_their_last_consumer(registry: Any) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Make(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id="Make", inputs=[io.Image.Input("image", optional=True)], outputs=[io.Image.Output()]
            )

        @classmethod
        def execute(cls, image: Any = None) -> io.NodeOutput:
            made = torch.zeros(1, 2, 2, 3)
            alive.append(weakref.ref(made))
            return io.NodeOutput(made)

    class End(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(node_id="End", inputs=[io.Image.Input("image")], is_output_node=True)

        @classmethod
        def execute(cls, image: Any) -> io.NodeOutput:
            gc.collect()
            return io.NodeOutput(ui={"alive": [ref() is not None for ref in alive]})

    types = {"Make": Make, "End": End}
    prompt = {
        "1": {"class_type": "Make", "inputs": {}},
        "2": {"class_type": "Make", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "Make", "inputs": {"image": ["2", 0]}},
        "4": {"class_type": "End", "inputs": {"image": ["3", 0]}},
    }
    graph = validate(parse_nodes(prompt, types), types)
    assert run(graph, None, lambda node: None) == [{"alive": [False, False, True]}]


def test_classes_are_left_as_they_were(saving: Any, run_cli: Any, registry: Any) -> None:
    assert run_cli(saving) == 0
    assert registry["SaveVideo"].hidden is None


@pytest.mark.parametrize("folder", ["/", str(ROOT), str(ROOT / "tests")])
def test_front_door_opens_from_any_folder(folder: str) -> None:
    arguments = [sys.executable, str(ROOT), "run", "--help"]
    finished = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "--set" in finished.stdout


def test_front_door_names_the_package_that_its_python_lacks(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('none', name='torch')")
    arguments = [sys.executable, str(ROOT), "run", "--help"]
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    finished = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert f"{sys.executable} has no package torch. Run this with" in finished.stderr
    assert "Traceback" not in finished.stderr


def _through_pass(graph: dict[str, Any], mode: str) -> dict[str, Any]:
    graph["4"] = {
        "class_type": "ToyPass",
        "inputs": {"image": ["1", 0], "mode": mode},
        "_meta": {"title": "Careful"},
    }
    graph["2"]["inputs"]["images"] = ["4", 0]
    return graph


def test_the_pack_s_own_nodes_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert main(["nodes"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"HYVSampler", "HYVLoadVAE", "SaveVideo"} <= set(listed)
    assert listed == sorted(listed)


def test_a_real_graph_is_checked_with_the_real_nodes(tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "HYVEmptyLatent", "inputs": {"width": 64, "height": 64, "length": 17, "batch_size": 0}},
        "2": {"class_type": "HYVLoadVAE", "inputs": {"vae": "../x.pt", "precision": "auto"}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["2", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    arguments = [sys.executable, str(ROOT), "run", "graph.json"]
    finished = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2
    assert 'node 1 "HunyuanVideo Empty Latent" (HYVEmptyLatent): input "batch_size" is 0' in finished.stderr
    assert 'node 2 "HunyuanVideo Load VAE" (HYVLoadVAE): input "vae": "../x.pt" is not a plain name' in finished.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("5.width=500", "width 500: sizes must be multiples of 16 pixels; use 496 or 512"),
        ("5.height=8", "height 8"),
        ("5.length=32", "length 32"),
        ("5.width=99999984", "at most 16384"),
        ("7.overlap=256", "overlap 256: expected 0 or more and less than tile_size 256"),
        ("7.temporal_overlap=-1", "temporal_overlap -1"),
    ],
)
def test_sizes_and_tiles_are_refused_before_anything_runs(
    setting: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main_module, "registry", REGISTRY)
    assert main(["run", str(ROOT / "workflows" / "api" / "embedded_t2v.json"), "--set", setting]) == 2
    message = capsys.readouterr().err
    assert f"node {setting[0]} " in message
    assert words in message
