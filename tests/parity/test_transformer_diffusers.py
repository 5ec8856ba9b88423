"""The transformer against diffusers' own class on random weights, through both key dialects."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from hyvideo_nodes.hyvideo_core.loading import build_transformer, detect_transformer, open_checkpoint
from hyvideo_nodes.hyvideo_core.loading.key_maps import DIFFUSERS, to_official
from hyvideo_nodes.hyvideo_core.model import Transformer
from safetensors.torch import save_file

SIZES = {
    "small": {"num_attention_heads": 2, "attention_head_dim": 32, "rope_axes_dim": (8, 12, 12), "num_layers": 1},
    "deeper": {"num_attention_heads": 3, "attention_head_dim": 16, "rope_axes_dim": (4, 6, 6), "num_layers": 2},
}


def build_theirs(name: str, guidance: bool) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(1)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_single_layers=2,
        num_refiner_layers=2,
        text_embed_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=guidance,
        **SIZES[name],
    ).eval()
    for parameter in model.parameters():
        # norms and biases start at ones and zeros, which would hide a swap
        parameter.data.normal_(std=0.2)
    return model


def load_through_file(theirs: HunyuanVideoTransformer3DModel, dialect: str, name: str, tmp_path) -> Transformer:
    """The same weights as a file of this dialect, opened by the product's loader."""
    weights = {key: value.contiguous() for key, value in theirs.state_dict().items()}
    config = {"rope_dim_list": list(SIZES[name]["rope_axes_dim"])}
    path = tmp_path / "model.safetensors"
    save_file(weights, path, metadata={"config": json.dumps(config)})
    model = build_transformer(detect_transformer(open_checkpoint(path)), dtype=torch.float32)
    if dialect == "official":
        official = to_official(weights, DIFFUSERS, model.state_dict())
        second = tmp_path / "official.safetensors"
        save_file({key: value.contiguous() for key, value in official.items()}, second, {"config": json.dumps(config)})
        model = build_transformer(detect_transformer(open_checkpoint(second)), dtype=torch.float32)
    return model


@pytest.mark.parametrize("dialect", ["diffusers", "official"])
@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("grid", [(3, 6, 4), (1, 4, 10)])
@torch.no_grad()
def test_velocity_equals_diffusers(grid, name, guidance, dialect, tmp_path):
    theirs = build_theirs(name, guidance)
    ours = load_through_file(theirs, dialect, name, tmp_path)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 4, *grid, generator=generator)
    states = torch.randn(1, 9, 24, generator=generator)
    pooled = torch.randn(1, 20, generator=generator)
    timestep, scale = torch.tensor([437.0]), torch.tensor([3500.0]) if guidance else None
    # theirs gets three padded tokens behind a mask, ours only what is real
    mask = torch.tensor([[1] * 6 + [0] * 3])
    expected = theirs(latents, timestep, states, mask, pooled, scale, return_dict=False)[0]
    result = ours(latents, timestep, [states[:, :6]], pooled, scale)
    assert expected.abs().max() > 0.1
    assert (result - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
