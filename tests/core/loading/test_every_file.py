"""One row per container, dialect and precision: each file, made from the golden weights, loads to the same model."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.loading import (
    build_transformer,
    build_vae,
    detect_transformer,
    detect_vae,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.loading.key_maps import COMFY, COMFY_SCALE, COMFY_VAE, DIFFUSERS, OFFICIAL
from safetensors.torch import load_file

from .writers import CONTAINERS, PRECISIONS, Stored, in_dialect

DIALECTS = {"official": OFFICIAL, "ComfyUI": COMFY, "ComfyUI, norms as scales": COMFY_SCALE, "diffusers": DIFFUSERS}
VAE_DIALECTS = {"official": OFFICIAL, "ComfyUI": COMFY_VAE}
PREFIXES = ("", "model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
OLD_PICKLE = "pickle before PyTorch 1.6"
ONE_FILE_EACH = ("one file", "shards", "pickle, module", "gguf")


def rows(dialects, precisions=tuple(PRECISIONS)):
    """Every combination that can be written."""
    return [
        pytest.param(container, dialect, precision, id=f"{container} x {dialect} x {precision}")
        for container in CONTAINERS
        for precision in precisions
        for dialect in dialects
        if (PRECISIONS[precision].in_gguf if container == "gguf" else PRECISIONS[precision].in_others)
        and not (PRECISIONS[precision].is_recent and container == OLD_PICKLE)
    ]


@pytest.fixture(scope="module")
def transformer_weights(golden_dir):
    return load_file(golden_dir / "dit_weights.safetensors")


@pytest.fixture(scope="module")
def transformer_config(golden_dir):
    return dict(open_checkpoint(golden_dir / "dit_weights.safetensors").config)


@pytest.fixture(scope="module")
def vae_weights(golden_dir):
    return load_file(golden_dir / "vae_weights.safetensors")


@pytest.fixture(scope="module")
def vae_config(golden_dir):
    return dict(open_checkpoint(golden_dir / "vae_weights.safetensors").config)


@pytest.fixture
def write(tmp_path):
    """Weights and their configuration to a file of a container, dialect, precision and prefix."""

    def write(weights, config, container, dialect, precision, prefix="", part="transformer"):
        if "pickle" in container and torch.__version__ < "2.6":
            pytest.skip("pickles are only opened on PyTorch 2.6 or newer")
        encoded = PRECISIONS[precision].encode(in_dialect(weights, dialect, prefix))
        return CONTAINERS[container](Stored(encoded, config, part=part), tmp_path)

    return write


def loaded_weights(model, weights):
    """What the layers of a model compute with, by official name."""
    loaded = {}
    for key in weights:
        path, _, name = key.rpartition(".")
        module = model.get_submodule(path)
        value = module.dequantized() if name == "weight" and hasattr(module, "dequantized") else getattr(module, name)
        loaded[key] = value.detach().reshape(weights[key].shape)
    return loaded


def check(model, weights, precision):
    how = PRECISIONS[precision]
    loaded = loaded_weights(model, weights)
    for key, original in weights.items():
        assert loaded[key].dtype == torch.float32, key
        if how.exact is not None:
            assert torch.equal(loaded[key], how.exact(original)), key
        assert (loaded[key] - original).norm() <= how.tolerance * original.norm(), key


@pytest.mark.parametrize(("container", "dialect", "precision"), rows(DIALECTS))
def test_every_transformer_file_loads_to_the_same_model(
    container, dialect, precision, transformer_weights, transformer_config, write
):
    path = write(transformer_weights, transformer_config, container, DIALECTS[dialect], precision)
    detected = detect_transformer(open_checkpoint(path))
    assert dialect.startswith(detected.view.dialect.name)
    check(build_transformer(detected, dtype=torch.float32), transformer_weights, precision)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("container", ONE_FILE_EACH)
def test_every_prefix_is_seen_through(container, dialect, prefix, transformer_weights, transformer_config, write):
    path = write(transformer_weights, transformer_config, container, DIALECTS[dialect], "fp32", prefix)
    detected = detect_transformer(open_checkpoint(path))
    assert detected.view.prefix == prefix
    check(build_transformer(detected, dtype=torch.float32), transformer_weights, "fp32")


@pytest.mark.parametrize(("container", "dialect", "precision"), rows(VAE_DIALECTS, ("fp32", "fp16", "bf16")))
def test_every_vae_file_loads_to_the_same_model(container, dialect, precision, vae_weights, vae_config, write):
    path = write(vae_weights, vae_config, container, VAE_DIALECTS[dialect], precision, part="vae")
    detected = detect_vae(open_checkpoint(path))
    assert detected.view.dialect.name == dialect
    check(build_vae(detected, dtype=torch.float32), vae_weights, precision)


@pytest.mark.parametrize("prefix", ["vae.", "first_stage_model."])
@pytest.mark.parametrize("dialect", VAE_DIALECTS)
@pytest.mark.parametrize("container", ["one file", "pickle, state_dict"])
def test_every_prefix_of_a_vae_is_seen_through(container, dialect, prefix, vae_weights, vae_config, write):
    path = write(vae_weights, vae_config, container, VAE_DIALECTS[dialect], "fp32", prefix)
    detected = detect_vae(open_checkpoint(path))
    assert detected.view.prefix == prefix
    check(build_vae(detected, dtype=torch.float32), vae_weights, "fp32")


def test_the_rows_write_what_others_write(golden_dir, transformer_weights):
    """The diffusers rows hold the same names and numbers as diffusers' own export of these weights."""
    theirs = load_file(golden_dir / "dit_weights_diffusers.safetensors")
    ours = in_dialect(transformer_weights, DIFFUSERS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
