"""`save-as` on the command line: what it writes, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.loading.safetensors_writer import _nameless_file
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


PACK = Path(__file__).resolve().parents[2]
SLOW = f"""
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it
sys.path.insert(0, {str(PACK / "alias")!r})
from hyvideo_nodes.hyvideo_core.loading.safetensors_writer import SafetensorsWriter
SafetensorsWriter.write = lambda *_: (print("writing", flush=True), time.sleep(60))
runpy.run_path({str(PACK)!r}, run_name="__main__")
"""


def end(model, folder, number):
    """Exit status and messages of a call that a signal ends while it writes."""
    words = ["save-as", str(model), str(folder / "out.safetensors"), "--dialect", "comfy", "--precision", "bf16"]
    command = [sys.executable, "-c", SLOW, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        _, messages = process.communicate(timeout=30)
    return process.returncode, messages


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_ended_from_outside_it_leaves_nothing_behind(name, model, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    code, messages = end(model, folder, getattr(signal, name))
    assert (code, messages.splitlines()[-1]) == (130, "Interrupted.")
    assert list(folder.iterdir()) == []


def test_killed_it_leaves_nothing_behind_where_files_need_no_name(model, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    descriptor = _nameless_file(folder)
    if descriptor is None:
        pytest.skip("files of this file system always have a name")
    os.close(descriptor)
    assert end(model, folder, signal.SIGKILL)[0] == -signal.SIGKILL
    assert list(folder.iterdir()) == []
