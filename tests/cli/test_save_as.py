"""`save-as` on the command line: what it writes, what it refuses, and how it ends."""

from __future__ import annotations

import json

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.nodes.cli import main
from safetensors.torch import load_file, save_file


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(Transformer(tiny()).state_dict(), path, metadata={"config": json.dumps({"rope_dim_list": [4, 6, 6]})})
    return path


def save(*words):
    return main(["save-as", *map(str, words)])


def test_writes_the_file_and_prints_its_name(model, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert save(model, target, "--dialect", "comfy", "--precision", "bf16") == 0
    assert capsys.readouterr().out.splitlines() == [str(target)]
    saved = load_file(target)
    weight = load_file(model)["double_blocks.0.img_attn_qkv.weight"]
    assert torch.equal(saved["double_blocks.0.img_attn.qkv.weight"], weight.bfloat16())


def test_replaces_a_file_only_when_told_to(model, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"mine")
    words = (model, target, "--dialect", "diffusers", "--precision", "fp8_scaled")
    assert save(*words) == 1
    assert "out.safetensors exists already; choose another name, or replace it with --overwrite" in (
        capsys.readouterr().err
    )
    assert target.read_bytes() == b"mine"
    assert save(*words, "--overwrite") == 0
    assert "scaled_fp8" in load_file(target)


def test_errors_are_one_line_and_show_their_place_only_on_request(model, tmp_path, capsys):
    words = (tmp_path / "absent.safetensors", tmp_path / "out.safetensors", "--dialect", "comfy", "--precision", "bf16")
    assert save(*words) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("absent.safetensors does not exist")
    assert save(*words, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(model, tmp_path, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.disk_usage", refuse)
    assert save(model, tmp_path / "out.safetensors", "--dialect", "comfy", "--precision", "bf16") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "out.safetensors: Permission denied"


@pytest.mark.parametrize("missing", ["--dialect", "--precision"])
def test_both_choices_must_be_made(missing, model, tmp_path, capsys):
    choices = {"--dialect": "comfy", "--precision": "bf16"}
    del choices[missing]
    with pytest.raises(SystemExit) as ended:
        save(model, tmp_path / "out.safetensors", *next(iter(choices.items())))
    assert ended.value.code == 2
    assert missing in capsys.readouterr().err
