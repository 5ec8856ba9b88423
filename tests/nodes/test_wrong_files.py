"""Every kind of file in every loader: the error says what it is, as the doctor does, and where it belongs."""

from __future__ import annotations

import shutil

import pytest
import torch
from hyvideo_nodes.hyvideo_core.doctor import inspect
from hyvideo_nodes.hyvideo_core.errors import WrongModelError
from hyvideo_nodes.nodes.host import headless
from hyvideo_nodes.nodes.loaders import HYVLoadModel, HYVLoadTextEncoders, HYVLoadVAE
from safetensors.torch import save_file

FOREIGN = {
    "flux": {"double_blocks.0.img_attn.qkv.weight": (3, 1)},
    "wan": {"blocks.0.self_attn.norm_q.weight": (4,)},
    "sdxl": {"model.diffusion_model.label_emb.0.0.weight": (4, 4)},
    "hunyuan 1.5": {
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight": (6, 2),
        "vision_in.proj.0.weight": (1152,),
        "double_blocks.0.img_attn_qkv.weight": (6, 2),
    },
    "hunyuan 1.5 vae": {
        "decoder.conv_in.conv.weight": (4, 32, 1, 1, 1),
        "decoder.mid.attn_1.q.weight": (4, 4, 1, 1, 1),
    },
    "framepack": {
        "clean_x_embedder.proj.weight": (4, 16, 1, 2, 2),
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight": (4, 4),
    },
    "lora": {"lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight": (4, 8)},
    "t5": {"encoder.block.0.layer.0.SelfAttention.k.weight": (4, 4)},
    "vision": {
        "vision_model.embeddings.position_embedding.weight": (577, 4),
        "multi_modal_projector.linear_1.weight": (4, 4),
    },
    "unknown": {"weight": (1,)},
}
OURS = {
    "transformer": "diffusion_models/tiny.safetensors",
    "vae": "vae/tiny.safetensors",
    "llm": "text_encoders/tiny_llama.safetensors",
    "clip": "text_encoders/tiny_clip.safetensors",
}
EXPECTED = {
    "transformer": "a HunyuanVideo transformer",
    "vae": "a HunyuanVideo VAE",
    "llm": "the Llama-3 language model",
    "clip": "a CLIP text encoder",
}


@pytest.fixture(scope="module")
def crowded(model_files, tmp_path_factory):
    """Every kind of file in every folder."""
    root = tmp_path_factory.mktemp("crowded") / "models"
    shutil.copytree(model_files, root)
    for folder in ("diffusion_models", "vae", "text_encoders"):
        for name, table in FOREIGN.items():
            weights = {key: torch.zeros(shape) for key, shape in table.items()}
            save_file(weights, root / folder / f"wrong {name}.safetensors")
        for part, path in OURS.items():
            shutil.copy(model_files / path, root / folder / f"wrong {part}.safetensors")
    headless.use_folders(headless.Folders(models=(root,)))
    yield root
    headless.use_folders(headless.Folders())


def load(part: str, name: str) -> None:
    if part == "transformer":
        HYVLoadModel.execute(name, "auto")
    elif part == "vae":
        HYVLoadVAE.execute(name, "auto")
    elif part == "llm":
        HYVLoadTextEncoders.execute(name, "tiny_clip.safetensors", "auto")
    else:
        HYVLoadTextEncoders.execute("tiny_llama.safetensors", name, "auto")


@pytest.mark.parametrize("loader", EXPECTED)
@pytest.mark.parametrize("kind", [*FOREIGN, *OURS])
def test_the_error_says_what_it_is_and_where_it_belongs(kind, loader, crowded):
    name = f"wrong {kind}.safetensors"
    if kind == loader:
        pytest.skip("the right kind")
    findings = inspect(crowded / "vae" / name)
    with pytest.raises(WrongModelError) as refused:
        load(loader, name)
    message = str(refused.value)
    assert f"{name} is {findings.kind}; expected {EXPECTED[loader]}" in message
    assert (f"This file belongs in {findings.folder}" in message) == (findings.folder is not None)
    assert findings.opened_by is None or findings.opened_by in message
    assert str(crowded) not in message
