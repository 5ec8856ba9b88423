"""The node that describes files, and what loaders show of theirs."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, UntrustedFileError
from hyvideo_nodes.nodes import host
from hyvideo_nodes.nodes.host import headless
from hyvideo_nodes.nodes.inspect_file import HYVInspectFile
from hyvideo_nodes.nodes.loaders import HYVLoadModel, HYVLoadTextEncoders, HYVLoadVAE
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(model_files, tmp_path):
    """A copy of the models to add to."""
    root = tmp_path / "models"
    shutil.copytree(model_files, root)
    (root / "loras").mkdir()
    headless.use_folders(headless.Folders(models=(root,)))
    yield root
    headless.use_folders(headless.Folders())


@pytest.fixture
def lora(folder):
    weights = {"transformer.single_blocks.0.linear2.lora_A.weight": torch.zeros(2, 320)}
    weights["transformer.single_blocks.0.linear2.lora_B.weight"] = torch.zeros(64, 2)
    weights |= {name.replace(".0.", ".9."): tensor.clone() for name, tensor in weights.items()}
    save_file(weights, folder / "loras" / "style.safetensors")
    return "loras/style.safetensors"


def test_every_folder_is_offered_with_its_name(folder, lora):
    (socket,) = [socket for socket in HYVInspectFile.define_schema().inputs if socket.id == "file"]
    assert {
        "diffusion_models/tiny.safetensors",
        "vae/tiny.safetensors",
        "text_encoders/tiny_llama.safetensors",
        lora,
    } <= set(socket.options["options"])
    assert socket.options["default"] in socket.options["options"]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("diffusion_models/tiny.safetensors", "a HunyuanVideo transformer: text to video, guidance-distilled"),
        ("vae/tiny.safetensors", "a HunyuanVideo VAE"),
        ("text_encoders/tiny_llama.safetensors", "a Llama language model"),
        ("text_encoders/tiny_clip.safetensors", "a CLIP text encoder"),
        ("vae/hyvideo_embedded_vae.safetensors", "a HunyuanVideo VAE"),
    ],
)
def test_the_description_is_given_and_shown(file, words, folder, monkeypatch):
    shown = []
    monkeypatch.setattr(host, "show_text", shown.append)
    output = HYVInspectFile.execute(file)
    (text,) = output.args
    assert words in text
    assert shown == [text] == output.ui["text"]


def test_damage_is_described_and_does_not_fail(folder):
    (folder / "vae" / "half.safetensors").write_bytes(b"<html>" + b" " * 60)
    (text,) = HYVInspectFile.execute("vae/half.safetensors").args
    assert "it is a web page" in text


def test_a_lora_is_compared_with_the_connected_model(lora, run_node):
    model = run_node("HYVLoadModel", model="tiny.safetensors")[0]
    assert "1 of 2 layers are in tiny.safetensors" in HYVInspectFile.execute(lora, model).args[0]
    assert "in the published 13B model" in HYVInspectFile.execute(lora).args[0]
    assert model.patcher is None


@pytest.mark.parametrize("file", ["loras/../../secret.safetensors", "/etc/passwd", "vae//etc/passwd", "../x"])
def test_names_that_leave_their_folder_are_refused(file, folder):
    with pytest.raises((UntrustedFileError, CheckpointError)):
        HYVInspectFile.execute(file)
    with pytest.raises((UntrustedFileError, CheckpointError)):
        HYVInspectFile.fingerprint_inputs(file)


def test_a_changed_file_is_looked_at_again(folder):
    before = HYVInspectFile.fingerprint_inputs("vae/tiny.safetensors")
    (folder / "vae" / "tiny.safetensors").write_bytes(b"")
    assert HYVInspectFile.fingerprint_inputs("vae/tiny.safetensors") != before


def test_loaders_show_what_they_found(models, monkeypatch, caplog):
    shown = []
    monkeypatch.setattr(host, "show_text", shown.append)
    with caplog.at_level(logging.INFO):
        outputs = [
            HYVLoadModel.execute("tiny.safetensors", "auto"),
            HYVLoadVAE.execute("tiny.safetensors", "auto"),
            HYVLoadTextEncoders.execute("tiny_llama.safetensors", "tiny_clip.safetensors", "auto"),
        ]
    assert [output.ui["text"] for output in outputs] == [[text] for text in shown]
    model, vae, encoders = shown
    count = len(load_file(models / "diffusion_models" / "tiny.safetensors"))
    for words in (
        "text to video, guidance-distilled",
        "official names, no prefix",
        "fp32",
        f"in {count} tensors",
        f"{count} of {count} tensors",
    ):
        assert words in model
    assert "16 latent channels" in vae
    assert "a Llama language model" in encoders
    assert "a CLIP text encoder" in encoders
    assert "tiny.safetensors: a HunyuanVideo transformer: text to video" in caplog.text


def test_tensors_of_something_else_are_a_warning(folder, caplog):
    path = folder / "text_encoders" / "tiny_clip.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | {"first_stage_model.x": torch.zeros(1)}, path, metadata=metadata)
    output = HYVLoadTextEncoders.execute("tiny_llama.safetensors", "tiny_clip.safetensors", "auto")
    assert "1 tensor of something else: first_stage_model.x" in output.ui["text"][0]
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("first_stage_model.x" in message for message in warnings)
