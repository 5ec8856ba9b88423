"""The embedded model in every dialect and precision, in a running ComfyUI: the same graph gives the same video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hyvideo_nodes.hyvideo_core.loading import open_checkpoint
from hyvideo_nodes.hyvideo_core.loading.key_maps import COMFY, COMFY_SCALE, DIFFUSERS, OFFICIAL
from PIL import Image
from safetensors.torch import load_file

from ..core.loading.writers import CONTAINERS, PRECISIONS, Stored, in_dialect

EMBEDDED = Path(__file__).resolve().parents[2] / "embedded" / "diffusion_models" / "hyvideo_embedded_t2v.safetensors"
DIALECTS = {
    "official": (OFFICIAL, ""),
    "ComfyUI": (COMFY, "model.model."),
    "ComfyUI, norms as scales": (COMFY_SCALE, "model.diffusion_model."),
    "diffusers": (DIFFUSERS, ""),
}
# mean difference in levels of 255; nothing is lost of the embedded model's bf16 weights, but sums may be taken in
# another order, which depends on where in the file a tensor lies
EXACT_LEVELS, LEVELS = 0.01, 5.0
EXACT = ("fp32", "fp16", "bf16", "F16 matrices", "BF16 matrices")
# for what is not exact, one layout with fused and one with split weights are enough
ROWS = [
    pytest.param(precision, dialect, id=f"{dialect} x {precision}")
    for precision in PRECISIONS
    for dialect in (DIALECTS if precision in EXACT else ("official", "diffusers"))
]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(model: str) -> dict[str, dict[str, Any]]:
    files = {"llm": "hyvideo_embedded_llama.safetensors", "clip": "hyvideo_embedded_clip.safetensors"}
    numbers = {"seed": 6, "steps": 6, "embedded_guidance_scale": 6.0, "flow_shift": 7.0, "cfg": 1.0, "denoise": 1.0}
    tiles = {"tile_size": 256, "overlap": 64, "temporal_size": 64, "temporal_overlap": 16}
    prompt = "a red circle moves left on a black background"
    return {
        "model": node("HYVLoadModel", model=model, precision="auto"),
        "encoders": node("HYVLoadTextEncoders", precision="auto", **files),
        "vae": node("HYVLoadVAE", vae="hyvideo_embedded_vae.safetensors", precision="auto"),
        "text": node("HYVTextEncode", text_encoders=["encoders", 0], prompt=prompt, template="video"),
        "latent": node("HYVEmptyLatent", width=64, height=64, length=9, batch_size=1),
        "sampler": node("HYVSampler", model=["model", 0], positive=["text", 0], latent=["latent", 0], **numbers),
        "decode": node("HYVVAEDecode", samples=["sampler", 0], vae=["vae", 0], **tiles),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="every"),
    }


@pytest.fixture(scope="module")
def video(server):
    """Runs the graph with a file and gives its frames and what the loader showed."""

    def video(model: str) -> tuple[np.ndarray, str]:
        outcome = server.run(graph(model))
        assert outcome["status"] == "success", outcome
        files = [server.base / "output" / item["filename"] for item in outcome["outputs"]["save"]["images"]]
        (shown,) = outcome["outputs"]["model"]["text"]
        return np.stack([np.asarray(Image.open(file)) for file in files]).astype(float), shown

    return video


@pytest.fixture(scope="module")
def expected(video):
    return video(EMBEDDED.name)[0]


@pytest.mark.parametrize(("precision", "dialect"), ROWS)
def test_the_same_graph_gives_the_same_video(precision, dialect, server, video, expected):
    how, (layout, prefix) = PRECISIONS[precision], DIALECTS[dialect]
    weights = {name: tensor.float() for name, tensor in load_file(EMBEDDED).items()}
    container = "one file" if how.in_others else "gguf"
    folder = server.base / "models" / "diffusion_models" / f"{precision} {dialect}"
    folder.mkdir()
    stored = Stored(how.encode(in_dialect(weights, layout, prefix)), dict(open_checkpoint(EMBEDDED).config))
    path = CONTAINERS[container](stored, folder)
    frames, shown = video(f"{folder.name}/{path.name}")
    assert np.abs(frames - expected).mean() <= (EXACT_LEVELS if precision in EXACT else LEVELS)
    assert layout.name in shown
    assert expected.std() > 10  # there is something to see
