"""Names from a graph never leave their folders, and model lists show what can be used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, UntrustedFileError
from hyvideo_nodes.nodes.host.folders import contained, find_model, list_models, tokenizer_folders


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "text_encoders"
    for name in (
        "clip_l.safetensors",
        "notes.txt",
        "sub/llama.gguf",
        "llava/config.json",
        "llava/model.safetensors.index.json",
        "llava/model-00001-of-00002.safetensors",
        "llava/model-00002-of-00002.safetensors",
        "clip/config.json",
        "clip/model.safetensors",
        ".hidden/x.safetensors",
    ):
        _touch(folder / name)
    return folder


def test_lists_files_and_model_folders_but_no_shards(models: Path) -> None:
    assert list_models([models]) == ["clip", "clip/model.safetensors", "clip_l.safetensors", "llava", "sub/llama.gguf"]


def test_earlier_folders_come_first_and_win(models: Path, tmp_path: Path) -> None:
    _touch(tmp_path / "embedded" / "clip_l.safetensors")
    _touch(tmp_path / "embedded" / "a_tiny.safetensors")
    folders = [models, tmp_path / "embedded"]
    assert list_models(folders)[-1] == "a_tiny.safetensors"
    assert list_models(folders).count("clip_l.safetensors") == 1
    assert find_model("text_encoders", "clip_l.safetensors", folders) == models / "clip_l.safetensors"
    assert find_model("text_encoders", "a_tiny.safetensors", folders) == tmp_path / "embedded" / "a_tiny.safetensors"


def test_every_listed_name_is_found(models: Path) -> None:
    for name in list_models([models]):
        assert find_model("text_encoders", name, [models]).exists()
        assert find_model("text_encoders", name.replace("/", "\\"), [models]).exists()


@pytest.mark.parametrize("name", ["none.safetensors", "notes.txt", "sub", "clip_l.safetensors/x"])
def test_what_is_no_model_is_refused_with_the_list(models: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r'no model ".*" in the folder "text_encoders".*clip_l\.safetensors'):
        find_model("text_encoders", name, [models])


def test_missing_folder_says_that_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is: nothing"):
        find_model("vae", "x.safetensors", [tmp_path / "none"])


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "C:\\x.pt",
        "C:x.pt",
        "\\\\host\\share\\x.pt",
        "..",
        "../x.pt",
        "a/../../x.pt",
        "..\\x.pt",
        "",
        "\0",
    ],
)
def test_names_that_leave_are_refused(models: Path, name: str) -> None:
    with pytest.raises(UntrustedFileError):
        contained(models, name)
    with pytest.raises(UntrustedFileError):
        find_model("text_encoders", name, [models])


def test_linked_file_outside_is_neither_listed_nor_opened(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _touch(tmp_path / "secret.safetensors")
    _link(models / "away.safetensors", tmp_path / "secret.safetensors")
    with caplog.at_level(logging.WARNING):
        assert "away.safetensors" not in list_models([models])
        list_models([models])
    assert [record.message for record in caplog.records if "away.safetensors" in record.message] != []
    assert len(caplog.records) == 1
    with pytest.raises(UntrustedFileError, match="extra_model_paths"):
        find_model("text_encoders", "away.safetensors", [models])


def test_linked_folder_outside_is_refused(models: Path, tmp_path: Path) -> None:
    _touch(tmp_path / "big" / "x.safetensors")
    _link(models / "away", tmp_path / "big")
    assert not any(name.startswith("away") for name in list_models([models]))
    with pytest.raises(UntrustedFileError, match="leads through a link"):
        find_model("text_encoders", "away/x.safetensors", [models])


def test_link_within_the_folder_is_fine(models: Path) -> None:
    _link(models / "alias.safetensors", models / "clip_l.safetensors")
    assert "alias.safetensors" in list_models([models])
    assert find_model("text_encoders", "alias.safetensors", [models]).exists()


def test_model_folder_that_is_a_link_itself_is_fine(models: Path, tmp_path: Path) -> None:
    _link(tmp_path / "linked", models)
    assert list_models([tmp_path / "linked"]) == list_models([models])
    assert find_model("text_encoders", "clip_l.safetensors", [tmp_path / "linked"]).exists()


def test_tokenizers_are_known_by_their_files(tmp_path: Path) -> None:
    for name in ("a/llama/tokenizer.json", "b/clip/vocab.json", "b/clip/merges.txt", "b/half/vocab.json"):
        _touch(tmp_path / name)
    roots = [tmp_path / "b", tmp_path / "a", tmp_path / "none"]
    assert tokenizer_folders("llama", roots) == [tmp_path / "a" / "llama"]
    assert tokenizer_folders("clip", roots) == [tmp_path / "b" / "clip", tmp_path / "a" / "llama"]


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def _link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as error:
        pytest.skip(f"this system lets us make no links: {error}")
