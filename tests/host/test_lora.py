"""LoRAs in a running ComfyUI: applied, changed without a reload, gone without a trace, and part of its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hyvideo_nodes.hyvideo_core.loading import open_checkpoint
from PIL import Image
from safetensors.torch import save_file


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(*loras: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """From files to saved frames, with LoRAs in a row."""
    files = {"llm": "tiny_llama.safetensors", "clip": "tiny_clip.safetensors"}
    numbers = {"seed": 1, "steps": 3, "embedded_guidance_scale": 6.0, "flow_shift": 7.0, "cfg": 1.0, "denoise": 1.0}
    tiles = {"tile_size": 256, "overlap": 64, "temporal_size": 64, "temporal_overlap": 16}
    nodes = {
        "lora0": node("HYVLoadModel", model="tiny.safetensors", precision="auto"),
        "encoders": node("HYVLoadTextEncoders", precision="auto", **files),
        "vae": node("HYVLoadVAE", vae="tiny.safetensors", precision="auto"),
        "text": node("HYVTextEncode", text_encoders=["encoders", 0], prompt="a red circle", template="video"),
        "latent": node("HYVEmptyLatent", width=32, height=48, length=5, batch_size=1),
        "sampler": node(
            "HYVSampler", model=[f"lora{len(loras)}", 0], positive=["text", 0], latent=["latent", 0], **numbers
        ),
        "decode": node("HYVVAEDecode", samples=["sampler", 0], vae=["vae", 0], **tiles),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="lora"),
    }
    for index, inputs in enumerate(loras):
        settings = {"lora": "style.safetensors", "strength": 1.0, "blocks": "all", "mode": "side path"} | inputs
        nodes[f"lora{index + 1}"] = node("HYVLoadLora", model=[f"lora{index}", 0], **settings)
    return nodes


@pytest.fixture(scope="module")
def frames(server):
    """Runs the graph with some LoRAs and gives its images and what became of it."""
    tiny = open_checkpoint(server.base / "models" / "diffusion_models" / "tiny.safetensors")
    tensors = {}
    generator = torch.Generator().manual_seed(3)
    for key, info in tiny.tensors.items():
        if "_blocks." in key and len(info.shape) == 2:
            base = key.removesuffix(".weight")
            down = torch.randn(2, info.shape[1], generator=generator) * 0.3
            up = torch.randn(info.shape[0], 2, generator=generator) * 0.3
            tensors |= {f"transformer.{base}.lora_A.weight": down, f"transformer.{base}.lora_B.weight": up}
    tensors["transformer.double_blocks.9.img_attn_proj.lora_A.weight"] = torch.zeros(2, 64)
    (server.base / "models" / "loras").mkdir(exist_ok=True)
    save_file(tensors, server.base / "models" / "loras" / "style.safetensors")

    def frames(*loras: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        outcome = server.run(graph(*loras))
        assert outcome["status"] == "success", outcome
        files = [server.base / "output" / item["filename"] for item in outcome["outputs"]["save"]["images"]]
        return np.stack([np.asarray(Image.open(file)) for file in files]), outcome

    return frames


def test_a_lora_changes_the_video_and_removing_it_gives_the_same_bits(frames, server):
    before, _ = frames()
    changed, outcome = frames({})
    assert not np.array_equal(changed, before)
    assert np.array_equal(frames()[0], before)
    assert np.array_equal(frames({"strength": 0.0})[0], before)
    (report,) = outcome["outputs"]["lora1"]["text"]
    assert "official names behind transformer. (PEFT, diffusion-pipe)" in report
    assert "1 stray tensor (transformer.double_blocks.9.img_attn_proj.lora_A.weight)" in report
    assert "style.safetensors: 1 of its tensors is not applied" in server.log()


def test_merged_shows_what_the_side_path_shows(frames):
    side, merged = (frames({"mode": mode, "strength": 0.5})[0].astype(int) for mode in ("side path", "merged"))
    assert np.abs(side - merged).max() <= 1


def test_another_strength_loads_nothing_again(frames, server):
    frames({"strength": 0.5})
    loads = server.log().count("Requested to load")
    frames({"strength": 0.75})
    frames({"strength": 0.75, "blocks": "double 0"})
    assert server.log().count("Requested to load") == loads


def test_factors_are_part_of_the_hosts_memory_and_leave_with_it(frames, server):
    changed, _ = frames({}, {"strength": -0.5})
    assert {"Transformer", "LoraWeights"} <= server.get("/memory_probe")["loaded"].keys()
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert np.array_equal(frames({}, {"strength": -0.5})[0], changed)
    assert "memory leak" not in server.log()


def test_a_filter_that_cannot_be_read_is_refused_in_our_words(server):
    outcome = server.run(graph({"blocks": "double 7"}))
    assert outcome["status"] == "error"
    assert "asks for 7 of 2 double blocks" in outcome["error"]
