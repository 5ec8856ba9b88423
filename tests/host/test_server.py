"""The pack in a running ComfyUI: listed, run, interrupted, refused, with native nodes around ours."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hyvideo_nodes.nodes import NODES
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
TILES = {"tile_size": 256, "overlap": 64, "temporal_size": 64, "temporal_overlap": 16}
SMALL_TILES = {"tile_size": 64, "overlap": 16, "temporal_size": 8, "temporal_overlap": 4}
# slow enough that a request to stop arrives before the next step is done, and one layer's activations outweigh SLACK
LARGE = {"width": 320, "height": 320, "length": 33}
SLACK_BYTES = 256 * 1024

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampling(**changes: dict[str, Any]) -> Graph:
    """From files to latents; `changes` are inputs by node."""
    graph = {
        "model": node("HYVLoadModel", model="tiny.safetensors", precision="auto"),
        "encoders": node(
            "HYVLoadTextEncoders", llm="tiny_llama.safetensors", clip="tiny_clip.safetensors", precision="auto"
        ),
        "vae": node("HYVLoadVAE", vae="tiny.safetensors", precision="auto"),
        "text": node("HYVTextEncode", text_encoders=["encoders", 0], prompt="a red circle", template="video"),
        "latent": node("HYVEmptyLatent", width=32, height=48, length=9, batch_size=1),
        "sampler": node(
            "HYVSampler",
            model=["model", 0],
            positive=["text", 0],
            latent=["latent", 0],
            seed=1,
            steps=STEPS,
            embedded_guidance_scale=6.0,
            flow_shift=7.0,
            cfg=1.0,
            denoise=1.0,
        ),
    }
    for name, inputs in changes.items():
        graph[name]["inputs"] |= inputs
    return graph


def decoded(**changes: dict[str, Any]) -> Graph:
    """From files to frames."""
    return sampling(**changes) | {"decode": node("HYVVAEDecode", samples=["sampler", 0], vae=["vae", 0], **TILES)}


def saved(graph: Graph, images: str, prefix: str) -> Graph:
    """The graph with its images written to files."""
    return graph | {"save": node("SaveImage", images=[images, 0], filename_prefix=prefix)}


def large(model: str = "tiny.safetensors", steps: int = STEPS) -> Graph:
    """From files to the latents of a larger video."""
    graph = sampling(model={"model": model}, latent=LARGE, sampler={"steps": steps})
    return graph | {"save": node("SaveLatent", samples=["sampler", 0], filename_prefix="large")}


@pytest.fixture(scope="module")
def frames(server):
    """Runs a graph and gives its images, as numbers."""

    def frames(graph: Graph, images: str) -> np.ndarray:
        outcome = server.run(saved(graph, images, "frames"))
        assert outcome["status"] == "success", outcome
        files = [server.base / "output" / item["filename"] for item in outcome["outputs"]["save"]["images"]]
        return np.stack([np.asarray(Image.open(file)) for file in files])

    return frames


@pytest.fixture(scope="module")
def reference(frames) -> np.ndarray:
    """What our own decode makes of the tiny model's latents."""
    return frames(decoded(), "decode")


def test_it_is_imported_without_complaint_and_lists_every_node(server):
    known = server.get("/object_info")
    assert {found.define_schema().node_id for found in NODES} <= known.keys()
    # what other tests make it refuse comes after its start
    start = server.log().partition("To see the GUI go to")[0]
    lines = [line for line in start.splitlines() if "hyvideo" in line.lower() or "Traceback" in line]
    assert not [line for line in lines if "IMPORT FAILED" in line or "Cannot import" in line or "Traceback" in line]


def test_templates_are_offered(server):
    offered = server.get("/workflow_templates")["hyvideo-nodes"]
    assert sorted(offered) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def test_a_video_is_made_with_progress_and_preview_at_each_step(server):
    graph = decoded() | {
        "scale": node("ImageScale", image=["decode", 0], upscale_method="bilinear", width=64, height=96, crop="center"),
        "video": node("CreateVideo", images=["scale", 0], fps=24.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="clip", format="mp4", codec="h264"),
    }
    outcome = server.run(graph)
    assert outcome["status"] == "success", outcome
    assert outcome["progress"]["sampler"] == [[step, STEPS] for step in range(1, STEPS + 1)]
    assert outcome["previews"] == {"sampler": STEPS}
    assert outcome["progress"]["decode"] == [[1, 1]]
    (file,) = (server.base / "output").glob("clip*.mp4")
    with av.open(str(file)) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 96)
        assert sum(1 for _ in container.decode(stream)) == 9


def test_native_nodes_decode_with_our_vae(frames):
    def made_by(class_type: str, **tiles: int) -> np.ndarray:
        graph = sampling(latent={"width": 96, "height": 128, "length": 17})
        graph["decode"] = node(class_type, samples=["sampler", 0], vae=["vae", 0], **tiles)
        return frames(graph, "decode")

    whole, tiled = made_by("VAEDecode"), made_by("VAEDecodeTiled", **SMALL_TILES)
    assert whole.shape == (17, 128, 96, 3)
    assert np.array_equal(whole, made_by("HYVVAEDecode", **TILES))
    assert np.array_equal(tiled, made_by("HYVVAEDecode", **SMALL_TILES))
    assert not np.array_equal(tiled, whole)


def test_native_nodes_encode_with_our_vae(frames):
    def back_and_forth(class_type: str, **sizes: int) -> np.ndarray:
        graph = decoded(latent={"width": 96, "height": 128, "length": 17})
        graph["encode"] = node(class_type, pixels=["decode", 0], vae=["vae", 0], **sizes)
        graph["again"] = node("HYVVAEDecode", samples=["encode", 0], vae=["vae", 0], **TILES)
        return frames(graph, "again")

    ours = back_and_forth("HYVVAEEncode", **TILES)
    assert ours.shape == (17, 128, 96, 3)
    assert np.array_equal(back_and_forth("VAEEncode"), ours)
    tiled = back_and_forth("VAEEncodeTiled", **SMALL_TILES)
    assert np.array_equal(tiled, back_and_forth("HYVVAEEncode", **SMALL_TILES))
    assert not np.array_equal(tiled, ours)


def test_native_nodes_that_choose_a_device_or_save_take_our_vae(server, frames, reference):
    graph = decoded() | {"written": node("VAESave", vae=["vae", 0], filename_prefix="vae/tiny")}
    assert server.run(graph)["status"] == "success"
    assert list((server.base / "output" / "vae").glob("tiny*.safetensors"))
    if "SelectVAEDevice" not in server.get("/object_info"):
        pytest.skip("this ComfyUI has no SelectVAEDevice")
    graph = decoded() | {"placed": node("SelectVAEDevice", vae=["vae", 0], device="default")}
    graph["decode"]["inputs"]["vae"] = ["placed", 0]
    assert np.array_equal(frames(graph, "decode"), reference)


def test_native_nodes_prepare_latents_and_noise_levels_for_our_sampler(frames):
    graph = decoded(sampler={"latent": ["pair", 0], "sigmas": ["levels", 0]}) | {
        "latent": node("EmptyHunyuanLatentVideo", width=32, height=48, length=5, batch_size=1),
        "pair": node("RepeatLatentBatch", samples=["latent", 0], amount=2),
        "levels": node("KarrasScheduler", steps=3, sigma_max=1.0, sigma_min=0.1, rho=7.0),
    }
    made = frames(graph, "decode")
    assert made.shape == (10, 48, 32, 3)
    assert not np.array_equal(made[:5], made[5:])


def test_native_nodes_change_our_conditioning(frames, reference):
    guided = decoded(sampler={"positive": ["guided", 0]})
    guided["guided"] = node("FluxGuidance", conditioning=["text", 0], guidance=6.0)
    guided["sampler"]["inputs"]["embedded_guidance_scale"] = 1.0  # the one in the conditioning wins
    assert np.array_equal(frames(guided, "decode"), reference)
    avoiding = decoded(sampler={"negative": ["zero", 0], "cfg": 2.0})
    avoiding["zero"] = node("ConditioningZeroOut", conditioning=["text", 0])
    assert not np.array_equal(frames(avoiding, "decode"), reference)


@pytest.mark.parametrize(
    ("class_type", "inputs", "words"),
    [
        ("ConditioningCombine", {"conditioning_1": ["text", 0], "conditioning_2": ["text", 0]}, "2 entries"),
        ("ConditioningSetTimestepRange", {"conditioning": ["text", 0], "start": 0.0, "end": 0.5}, "percent"),
        (
            "HunyuanImageToVideo",
            {"width": 32, "height": 48, "length": 9, "batch_size": 1, "guidance_type": "v2 (replace)"}
            | {"positive": ["text", 0], "vae": ["vae", 0], "start_image": ["picture", 0]},
            "guiding_frame_index",
        ),
    ],
)
def test_conditioning_that_we_cannot_obey_is_refused_by_name(server, class_type, inputs, words):
    graph = decoded(sampler={"positive": ["changed", 0]}) | {"changed": node(class_type, **inputs)}
    graph["picture"] = node("EmptyImage", width=32, height=48, batch_size=1, color=255)
    outcome = server.run(saved(graph, "decode", "never"))
    assert outcome["status"] == "error"
    assert words in outcome["error"]


def test_another_seed_runs_the_sampler_and_what_follows_only(server):
    first = server.run(saved(decoded(sampler={"seed": 10}), "decode", "seed"))
    before, loads = server.get("/memory_probe"), server.log().count("Requested to load")
    second = server.run(saved(decoded(sampler={"seed": 11}), "decode", "seed"))
    assert first["status"] == second["status"] == "success"
    assert set(second["executed"]) == {"sampler", "decode", "save"}
    assert {"model", "encoders", "vae", "text", "latent"} <= set(second["cached"])
    assert server.log().count("Requested to load") == loads
    after = server.get("/memory_probe")
    assert after["loaded"] == before["loaded"]
    assert {"Transformer", "VideoAutoencoder"} <= after["loaded"].keys()
    assert abs(after["bytes"] - before["bytes"]) < SLACK_BYTES


def test_an_interrupt_stops_within_a_step_and_leaves_nothing(server, frames, reference):
    before = _memory_after(server, large(steps=1))
    outcome = server.run(large(steps=30), interrupt_after=2)
    assert outcome["status"] == "interrupted"
    assert [done for done, _ in outcome["progress"]["sampler"]] in ([1, 2], [1, 2, 3])
    assert server.get("/memory_probe")["bytes"] < before + SLACK_BYTES
    assert np.array_equal(frames(decoded(), "decode"), reference)


def test_an_interrupt_stops_between_tiles(server, frames, reference):
    graph = decoded(latent=LARGE)
    graph["decode"]["inputs"] |= SMALL_TILES
    assert server.run(large())["status"] == "success"
    outcome = server.run(saved(graph, "decode", "never"), interrupt_after=2)
    assert outcome["status"] == "interrupted"
    assert outcome["progress"].keys() == {"decode"}
    done, total = outcome["progress"]["decode"][-1]
    assert done < 10 < total
    assert np.array_equal(frames(decoded(), "decode"), reference)


def test_a_nan_ends_the_run_with_its_step_and_leaves_nothing(server, frames, reference):
    before = _memory_after(server, large(steps=1))
    outcome = server.run(large("broken.safetensors"))
    assert outcome["status"] == "error"
    assert "step 1" in outcome["error"]
    assert server.get("/memory_probe")["bytes"] < before + SLACK_BYTES
    assert np.array_equal(frames(decoded(), "decode"), reference)


def test_freed_models_leave_memory_and_load_again(server, frames, reference):
    before = _memory_after(server, saved(decoded(), "decode", "before"))
    server.post("/free", {"unload_models": True, "free_memory": True})
    # obeyed a little later, models first
    freed = _wait_for(lambda: server.get("/memory_probe"), lambda probe: probe["bytes"] < before)
    assert freed["loaded"] == {}
    assert np.array_equal(frames(decoded(), "decode"), reference)
    used = server.get("/memory_probe")
    assert {"Transformer", "VideoAutoencoder", "LlamaTextEncoder", "ClipTextEncoder"} <= used["loaded"].keys()
    assert abs(used["bytes"] - before) < SLACK_BYTES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent": {"length": 32}}, "32"),
        ({"latent": {"width": 500}}, "width 500: sizes must be multiples of 16"),
        ({"model": {"model": "wrong.safetensors"}}, "VAE"),
        ({"vae": {"vae": "broken.safetensors"}}, "broken.safetensors"),
        ({"encoders": {"clip": "tiny_llama.safetensors"}}, "CLIP"),
    ],
)
def test_bad_input_is_refused_in_our_words(server, changes, words):
    outcome = server.run(saved(decoded(**changes), "decode", "never"))
    assert outcome["status"] in ("error", "refused")
    assert words in json.dumps(outcome["error"])
    assert "sampler" not in outcome["progress"]


def test_tiles_that_cannot_be_are_refused_before_anything_runs(server):
    graph = decoded()
    graph["decode"]["inputs"]["overlap"] = 256
    outcome = server.run(saved(graph, "decode", "never"))
    assert outcome["status"] == "refused"
    assert "overlap 256: expected 0 or more and less than tile_size 256" in json.dumps(outcome["error"])


def test_sizes_and_tiles_may_come_through_links(server, frames, reference):
    sizes = {"width": ["wide", 0], "height": ["high", 0]}
    graph = decoded(latent=sizes) | {"wide": node("PrimitiveInt", value=32), "high": node("PrimitiveInt", value=48)}
    graph["tile"] = node("PrimitiveInt", value=TILES["tile_size"])
    graph["decode"]["inputs"]["tile_size"] = ["tile", 0]
    assert np.array_equal(frames(graph, "decode"), reference)
    graph["wide"]["inputs"]["value"] = 500
    outcome = server.run(saved(graph, "decode", "never"))
    assert outcome["status"] == "error"
    assert "width 500" in json.dumps(outcome["error"])


def test_a_model_that_the_user_linked_is_listed_and_works(server, frames, reference):
    if not (server.base / "models" / "vae" / "linked.safetensors").exists():
        pytest.skip("this system lets us make no links")
    assert "linked.safetensors" in _choices(server, "HYVLoadVAE", "vae")
    assert np.array_equal(frames(decoded(vae={"vae": "linked.safetensors"}), "decode"), reference)
    assert "linked.safetensors is not offered" not in server.log()


@pytest.mark.parametrize(
    ("ours", "widget", "native", "native_widget"),
    [("HYVLoadModel", "model", "UNETLoader", "unet_name"), ("HYVLoadVAE", "vae", "VAELoader", "vae_name")],
)
def test_embedded_files_are_listed_by_our_loaders_only_after_the_users(server, ours, widget, native, native_widget):
    listed, natively = _choices(server, ours, widget), _choices(server, native, native_widget)
    assert listed.index("tiny.safetensors") < listed.index("hyvideo_probe.safetensors")
    assert "tiny.safetensors" in natively
    assert not [name for name in natively if name.startswith("hyvideo_")]


def test_an_embedded_model_runs(frames):
    graph = decoded(model={"model": "hyvideo_probe.safetensors"}, vae={"vae": "hyvideo_probe.safetensors"})
    assert frames(graph, "decode").shape == (9, 48, 32, 3)


def test_the_embedded_template_runs(server):
    if "hyvideo_embedded_t2v.safetensors" not in _choices(server, "HYVLoadModel", "model"):
        pytest.skip("embedded/ is not here; python3 dev.py train-embedded makes it")
    graph = json.loads((ROOT / "workflows" / "api" / "embedded_t2v.json").read_text(encoding="utf-8"))
    for part in graph.values():
        if part["class_type"] == "HYVSampler":
            part["inputs"]["steps"] = STEPS
    outcome = server.run(graph)
    assert outcome["status"] == "success", outcome
    assert list(outcome["previews"].values()) == [STEPS]


def test_nodes_show_what_they_found_in_files(server):
    graph = {
        # a precision that no other test has: a cached node keeps its text, which is not sent again
        "model": node("HYVLoadModel", model="tiny.safetensors", precision="fp16"),
        "vae": node("HYVInspectFile", file="vae/tiny.safetensors"),
        "end": node("HYVInspectFile", file="text_encoders/tiny_llama.safetensors", model=["model", 0]),
    }
    outcome = server.run(graph)
    assert outcome["status"] == "success", outcome
    for name, words in {
        "model": "a HunyuanVideo transformer: text to video",
        "vae": "a HunyuanVideo VAE",
        "end": "a Llama language model",
    }.items():
        assert words in outcome["texts"][name]
        assert outcome["outputs"][name]["text"] == [outcome["texts"][name]]


def _choices(server, class_type: str, widget: str) -> list[str]:
    kind, *options = server.get(f"/object_info/{class_type}")[class_type]["input"]["required"][widget]
    return kind if isinstance(kind, list) else options[0]["options"]


def _memory_after(server, graph: Graph) -> int:
    """Bytes of the living tensors after a run."""
    assert server.run(graph)["status"] == "success"
    return server.get("/memory_probe")["bytes"]


def _wait_for(ask: Any, is_done: Any, seconds: float = 20) -> Any:
    """The first answer that is_done accepts; requests to free memory are obeyed a little later."""
    deadline = time.monotonic() + seconds
    while not is_done(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    return answer
