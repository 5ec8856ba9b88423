"""Everything that is refused before a node runs: exit code 2, and a message with the node's id and title."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hyvideo_nodes.nodes.cli import main


@pytest.fixture
def refused(run_cli: Any, capsys: pytest.CaptureFixture[str], events: list[Any]) -> Any:
    """Runs what must be refused and gives the message."""

    def check(prompt: Any, *arguments: str) -> str:
        code = run_cli(prompt, *arguments)
        message = capsys.readouterr().err
        assert code == 2, message
        assert events == [], "a node ran"
        assert "Traceback" not in message
        return message

    return check


def test_unknown_type_names_what_runs_here(saving: Any, refused: Any) -> None:
    saving["2"]["class_type"] = "VHS_VideoCombine"
    message = refused(saving)
    assert "node 2 (VHS_VideoCombine)" in message
    assert "not a second ComfyUI" in message
    assert "SaveVideo" in message


def test_missing_required_input(saving: Any, refused: Any) -> None:
    del saving["1"]["inputs"]["width"]
    assert 'node 1 "Toy Frames" (ToyFrames): the required input "width" (INT) is missing' in refused(saving)


def test_unknown_input_lists_the_known(saving: Any, refused: Any) -> None:
    saving["1"]["inputs"]["widht"] = 3
    message = refused(saving)
    assert 'no input "widht"' in message
    assert "width" in message


def test_link_to_a_node_that_does_not_exist(saving: Any, refused: Any) -> None:
    saving["2"]["inputs"]["images"] = ["77", 0]
    assert 'input "images" is linked to node 77, which does not exist' in refused(saving)


@pytest.mark.parametrize("output", [2, -1])
def test_link_to_an_output_that_does_not_exist(saving: Any, refused: Any, output: int) -> None:
    saving["2"]["inputs"]["images"] = ["1", output]
    assert f"output {output} of node 1" in refused(saving)


def test_link_of_another_type(saving: Any, refused: Any) -> None:
    saving["2"]["inputs"]["images"] = ["1", 1]
    assert 'input "images" takes IMAGE, but node 1 "Toy Frames" (ToyFrames) gives INT' in refused(saving)


def test_constant_where_a_link_belongs(saving: Any, refused: Any) -> None:
    saving["2"]["inputs"]["images"] = "cat.png"
    assert 'input "images" needs a link of type IMAGE' in refused(saving)


def test_circle_names_its_nodes(saving: Any, refused: Any) -> None:
    saving["4"] = {"class_type": "ToyPass", "inputs": {"image": ["5", 0], "mode": "pass"}}
    saving["5"] = {"class_type": "ToyPass", "inputs": {"image": ["4", 0], "mode": "pass"}}
    saving["2"]["inputs"]["images"] = ["5", 0]
    message = refused(saving)
    assert "circle" in message
    assert "node 4" in message
    assert "node 5" in message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 0, "at least 1"),
        ("count", 101, "at most 100"),
        ("count", "many", "needs INT"),
        ("count", None, "needs INT"),
        ("count", float("inf"), "needs INT"),
        ("level", 1.5, "at most 1.0"),
        ("level", float("nan"), "finite"),
        ("level", {"a": 1}, "needs FLOAT"),
        ("colour", "rde", "did you mean red?"),
        ("colour", ["red"], "not in the list"),
        ("colour", "../../etc/passwd", 'without ".."'),
        ("colour", "/etc/passwd", "absolute"),
        ("colour", "C:\\secret.safetensors", "absolute"),
        ("colour", "a" * 5000, "too long"),
        ("colour", "a/" * 5000 + "b", "too long"),
        ("colour", "big.safetensors", "put the file into its folder"),
        ("colour", "\ud800", "not valid text"),
        ("note", "half \ud800", "not valid text"),
    ],
)
def test_bad_value(saving: Any, refused: Any, name: str, value: Any, expected: str) -> None:
    saving["1"]["inputs"][name] = value
    message = refused(saving)
    assert expected in message
    assert f'"{name}"' in message


def test_circle_of_many_is_told_in_short(saving: Any, refused: Any) -> None:
    for i in range(100, 600):
        before = i - 1 if i > 100 else 599
        saving[str(i)] = {"class_type": "ToyPass", "inputs": {"image": [str(before), 0], "mode": "pass"}}
    saving["2"]["inputs"]["images"] = ["599", 0]
    message = refused(saving)
    assert "circle" in message
    assert "489 more" in message
    assert len(message) < 1000


def test_all_problems_come_together(saving: Any, refused: Any) -> None:
    saving["1"]["inputs"] |= {"count": 0, "colour": "blue"}
    saving["2"]["inputs"]["fps"] = 1000
    saving["9"] = {"class_type": "KSampler", "inputs": {}}
    message = refused(saving, "--set", "8.x=1")
    for part in ("at least 1", "'blue'", "at most 120", "KSampler", "no node 8"):
        assert part in message


def test_graph_without_output_node(saving: Any, refused: Any) -> None:
    del saving["3"]
    assert "no output node" in refused(saving)


def test_editor_format_is_recognised(refused: Any) -> None:
    assert "Export (API)" in refused({"nodes": [], "links": [], "version": 0.4})


@pytest.mark.parametrize(
    "prompt", [[], {}, 3, {"1": []}, {"1": {"class_type": 3, "inputs": {}}}, {"1": {"inputs": {}}}]
)
def test_other_json_is_refused(refused: Any, prompt: Any) -> None:
    refused(prompt)


@pytest.mark.parametrize("text", ["{", "\xff", "[" * 100_000, "9" * 10_000])
def test_broken_json_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    assert main(["run", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("once", "twice", "name"),
    [('"note": "x"', '"note": "x", "note": "y"', "note"), ('"1": {', '"1": {"inputs": {}}, "1": {', "1")],
)
def test_what_stands_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], once: str, twice: str, name: str
) -> None:
    text = '{"1": {"class_type": "ToyFrames", "inputs": {"note": "x"}}}'
    path = tmp_path / "twice.json"
    path.write_text(text.replace(once, twice))
    assert main(["run", str(path)]) == 2
    assert f'"{name}" stands twice' in capsys.readouterr().err


def test_missing_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.json")]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/../../x", "C:\\x", "..\\x", "", "a\0b", "\ud800", "a" * 240])
def test_output_prefix_stays_in_its_folder(saving: Any, refused: Any, prefix: str) -> None:
    saving["3"]["inputs"]["filename_prefix"] = prefix
    assert 'node 3 "Write it" (SaveVideo)' in refused(saving)


def test_output_that_is_no_folder(saving: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in ("file", "file/sub"):
        message = refused(saving, "--output-dir", folder)
        assert f'node 3 "Write it" (SaveVideo): nothing can be written into {tmp_path / "file"}' in message


def test_output_that_may_not_be_written(
    saving: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    # root may write everywhere, so the folder's mode alone would test nothing there
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).exists() and not (path == locked and mode & os.W_OK)
    )
    assert f"nothing can be written into {locked}" in refused(saving, "--output-dir", str(locked / "sub"))


def test_output_prefix_through_a_link(saving: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    _link(tmp_path / "output" / "away", tmp_path / "input")
    saving["3"]["inputs"]["filename_prefix"] = "away/x"
    assert "leads through a link" in refused(saving)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "none.png", "", "a" * 300])
def test_input_image_stays_in_its_folder(saving: Any, refused: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    saving["1"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    assert "node 1" in refused(saving)


def test_input_image_through_a_link(saving: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    _link(tmp_path / "input" / "cat.png", tmp_path / "secret.png")
    saving["1"] = {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}
    assert "leads through a link" in refused(saving)


def test_links_in_a_circle_lead_nowhere(saving: Any, refused: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "upscale_models"
    folder.mkdir(parents=True)
    _link(folder / "round.pth", folder / "round.pth")
    saving["4"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "round.pth"}}
    saving["5"] = {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["4", 0], "image": ["1", 0]}}
    saving["2"]["inputs"]["images"] = ["5", 0]
    assert "node 4" in refused(saving, "--models-dir", str(tmp_path / "models"))


def test_model_through_a_link(saving: Any, refused: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "upscale_models"
    folder.mkdir(parents=True)
    (tmp_path / "secret.pth").write_bytes(b"")
    _link(folder / "big.pth", tmp_path / "secret.pth")
    saving["4"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "big.pth"}}
    saving["5"] = {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["4", 0], "image": ["1", 0]}}
    saving["2"]["inputs"]["images"] = ["5", 0]
    assert "leads through a link" in refused(saving, "--models-dir", str(tmp_path / "models"))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("1.count", "NODE_ID.INPUT=VALUE"),
        ("count=3", "NODE_ID.INPUT=VALUE"),
        ("9.count=3", "no node 9"),
        ("1.steps=3", 'no input "steps"'),
        ("1.count=0", "at least 1"),
        ("1.count=x", "needs INT"),
        ("1.loud=perhaps", "true or false"),
        ("2.images=x", "needs a link"),
    ],
)
def test_bad_setting(saving: Any, refused: Any, setting: str, expected: str) -> None:
    assert expected in refused(saving, "--set", setting)


@pytest.mark.parametrize("option", ["--models-dir", "--input-dir"])
def test_folder_that_does_not_exist(saving: Any, run_cli: Any, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_cli(saving, option, "none")
    assert stopped.value.code == 2
    assert "there is no folder none" in capsys.readouterr().err


def test_messages_hold_no_control_characters(saving: Any, refused: Any) -> None:
    saving["1"]["_meta"] = {"title": "\x1b[31mred\nnode 3"}
    saving["1"]["inputs"]["count"] = 0
    message = refused(saving)
    assert "\x1b" not in message
    assert "red?node 3" in message
    saving["1"]["inputs"] |= {"count": 1, "colour": "../\x1b[31m"}
    assert "\x1b" not in refused(saving)


def test_nodes_that_nothing_needs_are_not_checked(saving: Any, run_cli: Any) -> None:
    saving["4"] = {"class_type": "ToyPass", "inputs": {}}
    assert run_cli(saving) == 0


def test_wrapped_list_is_a_constant(saving: Any, refused: Any) -> None:
    saving["1"]["inputs"]["colour"] = {"__value__": ["1", 0]}
    assert "not in the list" in refused(saving)


def test_debug_shows_where(saving: Any, run_cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    saving["1"]["inputs"]["count"] = 0
    assert run_cli(saving, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_two_thousand_nodes_in_a_row_are_no_problem(saving: Any, run_cli: Any) -> None:
    chain = {
        str(i): {"class_type": "ToyPass", "inputs": {"image": [str(i - 1), 0], "mode": "pass"}} for i in range(11, 2000)
    }
    chain["10"] = {"class_type": "ToyPass", "inputs": {"image": ["1", 0], "mode": "pass"}}
    saving["2"]["inputs"]["images"] = ["1999", 0]
    assert run_cli(saving | chain) == 0


def _link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as error:
        pytest.skip(f"this system lets us make no links: {error}")
