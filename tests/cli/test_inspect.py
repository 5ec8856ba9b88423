"""`inspect` on the command line: several files, one broken, JSON, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import VaeConfig, tiny
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.vae import VideoAutoencoder
from hyvideo_nodes.nodes.cli import main
from safetensors.torch import save_file

inspect_module = sys.modules[f"{main.__module__.rpartition('.')[0]}.inspect"]
VAE = VaeConfig(block_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(Transformer(tiny()).state_dict(), path, metadata={"config": json.dumps({"rope_dim_list": [4, 6, 6]})})
    return path


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    path = tmp_path / "vae.safetensors"
    save_file(VideoAutoencoder(VAE).state_dict(), path, metadata={"config": json.dumps({"norm_num_groups": 4})})
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"<!DOCTYPE html>" + b" " * 50)
    return path


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    names = [f"transformer.single_blocks.{index}.linear2" for index in range(4)]
    factors = {f"{name}.lora_A.weight": torch.zeros(2, 320) for name in names}
    save_file(factors | {f"{name}.lora_B.weight": torch.zeros(64, 2) for name in names}, path)
    return path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        code = main(["inspect", *map(str, arguments)])
        return code, capsys.readouterr().out

    return call


def test_a_file_is_described(call, model):
    code, out = call(model)
    assert code == 0
    assert out.startswith("tiny.safetensors\n  what it is:   a HunyuanVideo transformer: text to video")
    assert "opened by:    HunyuanVideo Load Model, from models/diffusion_models" in out


def test_a_broken_file_fails_the_call_and_stops_no_other(call, model, broken, vae):
    code, out = call(model, broken, vae)
    assert code == 1
    assert [block.splitlines()[0] for block in out.split("\n\n")] == [
        "tiny.safetensors",
        "broken.safetensors",
        "vae.safetensors",
    ]
    assert "it is a web page, saved in place of the file" in out


def test_json_is_one_object_for_each_file(call, model, broken):
    code, out = call("--json", model, broken)
    sound, damaged = map(json.loads, out.splitlines())
    assert code == 1
    assert (sound["file"], sound["is_sound"], sound["problem"]) == ("tiny.safetensors", True, None)
    assert sound["path"] == str(model)
    assert sound["coverage"] == f"{sound['num_tensors']} of {sound['num_tensors']} tensors"
    assert (damaged["is_sound"], damaged["kind"]) == (False, None)


def test_text_shows_no_folders(call, model, broken, tmp_path):
    _, out = call(model, broken, tmp_path / "gone.safetensors")
    assert str(tmp_path) not in out
    assert "gone.safetensors does not exist" in out


def test_a_folder_given_as_a_dot_has_its_name(call, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out = call(".")
    assert code == 0
    assert out.startswith(f"{tmp_path.name}\n  what it is:   a HunyuanVideo transformer")


def test_another_model_is_no_failure(call, tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1)}, tmp_path / "flux.safetensors")
    code, out = call(tmp_path / "flux.safetensors")
    assert code == 0
    assert "a Flux-like transformer" in out
    assert "ComfyUI's Load Diffusion Model" in out


def test_a_lora_is_compared_with_the_model_that_is_named(call, lora, model):
    code, out = call(lora, "--model", model)
    assert code == 0
    assert "3 of 4 layers are in tiny.safetensors" in out
    assert "transformer.single_blocks.3.linear2.lora_A.weight" in out
    assert "in the published 13B model" in call(lora)[1]


def test_a_model_that_is_none_fails_the_call_and_blames_no_lora(lora, vae, capsys):
    code = main(["inspect", str(lora), "--model", str(vae)])
    out, messages = capsys.readouterr()
    assert (code, out) == (1, "")
    assert "--model: vae.safetensors is a HunyuanVideo VAE; expected a HunyuanVideo transformer" in messages


def test_an_interrupt_ends_the_call_quietly(model, vae, monkeypatch, capsys):
    looked = []

    def stop(path, _):
        looked.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_module, "inspect", stop)
    assert main(["inspect", str(model), str(vae)]) == 130
    assert looked == [model]
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_file_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inspect"])
    assert stop.value.code == 2
    assert "FILE" in capsys.readouterr().err
