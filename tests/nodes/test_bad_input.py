"""Bad input to nodes: a clear error before anything heavy is loaded."""

from __future__ import annotations

import shutil

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import (
    ConditioningError,
    CorruptFileError,
    NonFiniteError,
    OptionError,
    ShapeError,
    TokenizerError,
    WrongModelError,
)
from hyvideo_nodes.nodes.host import headless
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"width": 500}, "width 500: sizes must be multiples of 16 pixels; use 496 or 512"),
        ({"height": 8}, "height 8"),
        ({"length": 32}, "length 32: the model makes 4k.1 frames .* use 29 or 33"),
        ({"length": 0}, "length 0"),
    ],
)
def test_sizes_that_the_model_cannot_make_are_refused(size, words, run_node):
    with pytest.raises(ShapeError, match=words):
        run_node("HYVEmptyLatent", **size)


@pytest.fixture
def broken(model_files, tmp_path):
    """A copy of the models to spoil."""
    root = tmp_path / "models"
    shutil.copytree(model_files, root)
    headless.use_folders(headless.Folders(models=(root,)))
    yield root
    headless.use_folders(headless.Folders())


def test_a_truncated_model_is_refused(broken, run_node):
    path = broken / "diffusion_models" / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"tiny\.safetensors is truncated"):
        run_node("HYVLoadModel", model="tiny.safetensors")


def test_a_text_file_is_refused(broken, run_node):
    (broken / "vae" / "tiny.safetensors").write_text("not a model at all")
    with pytest.raises(CorruptFileError, match="is not a safetensors file"):
        run_node("HYVLoadVAE", vae="tiny.safetensors")


def test_a_vae_offered_as_transformer_is_named(broken, run_node):
    shutil.copy(broken / "vae" / "tiny.safetensors", broken / "diffusion_models" / "vae.safetensors")
    with pytest.raises(WrongModelError, match=r"vae\.safetensors is a HunyuanVideo VAE; expected a HunyuanVideo tr"):
        run_node("HYVLoadModel", model="vae.safetensors")


def test_a_transformer_offered_as_vae_is_named(broken, run_node):
    shutil.copy(broken / "diffusion_models" / "tiny.safetensors", broken / "vae" / "dit.safetensors")
    with pytest.raises(WrongModelError, match=r"is a HunyuanVideo transformer; expected a HunyuanVideo VAE"):
        run_node("HYVLoadVAE", vae="dit.safetensors")


def test_an_sdxl_checkpoint_is_named(broken, run_node):
    weights = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
        "model.diffusion_model.label_emb.0.0.weight": torch.zeros(1),
        "conditioner.embedders.1.model.ln_final.weight": torch.zeros(1),
    }
    save_file(weights, broken / "diffusion_models" / "sd_xl_base.safetensors")
    with pytest.raises(WrongModelError, match=r"is an SDXL-like U-Net checkpoint"):
        run_node("HYVLoadModel", model="sd_xl_base.safetensors")


def test_encoders_in_each_others_place_are_named(models, run_node):
    with pytest.raises(WrongModelError, match=r"tiny_clip\.safetensors is a CLIP text encoder; expected the Llama-3"):
        run_node("HYVLoadTextEncoders", llm="tiny_clip.safetensors", clip="tiny_clip.safetensors")
    with pytest.raises(WrongModelError, match=r"tiny_llama\.safetensors is a Llama language model; expected a CLIP"):
        run_node("HYVLoadTextEncoders", llm="tiny_llama.safetensors", clip="tiny_llama.safetensors")


@pytest.mark.parametrize("which", ["tiny_llama", "tiny_clip"])
def test_a_missing_tokenizer_says_where_it_belongs(which, broken, run_node):
    (broken / "text_encoders" / f"{which}.tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=rf"as {which}\.tokenizer\.json"):
        run_node("HYVLoadTextEncoders", llm="tiny_llama.safetensors", clip="tiny_clip.safetensors")


def test_no_steps_are_refused(model, positive, latent, run_node):
    with pytest.raises(OptionError, match="steps is 0, expected at least 1"):
        run_node("HYVSampler", model=model, positive=positive, latent=latent, steps=0)
    assert model.patcher is None


def test_an_empty_prompt_is_one_token(text_encoders, run_node):
    states, _ = run_node("HYVTextEncode", text_encoders=text_encoders, prompt="  ")[0][0]
    assert states.shape[1] == 1


def test_a_long_prompt_is_cut_with_a_count(text_encoders, run_node, caplog):
    prompt = " ".join(["color"] * 700)
    (conditioning,) = run_node("HYVTextEncode", text_encoders=text_encoders, prompt=prompt)
    assert conditioning[0][0].shape[1] == 256
    assert "tokens were cut (room for 256)" in caplog.text


def test_an_incomplete_model_is_refused_by_its_loader(broken, run_node):
    path = broken / "diffusion_models" / "tiny.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = {
        name: tensor.clone() for name, tensor in load_file(path).items() if name != "single_blocks.1.linear2.bias"
    }
    save_file(weights, path, metadata=metadata)
    with pytest.raises(WrongModelError, match=r"lacks 1 tensor: single_blocks\.1\.linear2\.bias"):
        run_node("HYVLoadModel", model="tiny.safetensors")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda states: states * float("nan"), NonFiniteError, "the positive text states hold NaN"),
        (lambda states: states[:, :0], ConditioningError, "the positive text states are"),
    ],
)
def test_text_states_that_cannot_be_used_are_refused_before_weights(
    spoil, error, words, model, positive, latent, run_node
):
    (states, extra), *_ = positive
    with pytest.raises(error, match=words):
        run_node("HYVSampler", model=model, positive=[[spoil(states), extra]], latent=latent)
    assert model.patcher is None


def test_a_noise_mask_that_is_no_picture_is_refused_before_weights(model, positive, latent, run_node):
    with pytest.raises(ShapeError, match=r"the noise mask is \[3\]"):
        run_node("HYVSampler", model=model, positive=positive, latent=latent | {"noise_mask": torch.ones(3)})
    assert model.patcher is None


@pytest.mark.parametrize("shape", [(1, 16, 0, 4, 4), (1, 32, 1, 4, 4), (16, 3, 4, 4)])
def test_latents_that_cannot_be_decoded_are_refused(shape, vae, run_node):
    with pytest.raises(ShapeError, match="use latents of HunyuanVideo"):
        run_node("HYVVAEDecode", samples={"samples": torch.zeros(shape)}, vae=vae)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((48, 64, 3), "expected .frames, height, width, 3."), ((1, 48, 64, 1), "width, 3"), ((1, 8, 64, 3), "enlarge")],
)
def test_images_that_cannot_be_encoded_are_refused(shape, words, vae, run_node):
    with pytest.raises(ShapeError, match=words):
        run_node("HYVVAEEncode", pixels=torch.rand(shape), vae=vae)


def test_tile_advice_names_each_size_once(vae, run_node):
    with pytest.raises(OptionError, match=r"multiples of 4; use 4$"):
        run_node(
            "HYVVAEDecode",
            samples={"samples": torch.zeros(1, 16, 3, 4, 4)},
            vae=vae,
            temporal_size=3,
            temporal_overlap=0,
        )
