"""A LoRA in a graph: read at node time from its header, applied at the sampler, gone without a trace."""

from __future__ import annotations

import gc
import shutil
import weakref

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import OptionError, WrongModelError
from hyvideo_nodes.nodes import NODES, host, recipes
from hyvideo_nodes.nodes.host import headless
from safetensors.torch import load_file, save_file

from ..core.memory.fake_device import FakeDevice

NODE = {node.define_schema().node_id: node for node in NODES}["HYVLoadLora"]
NUM_LAYERS = 2 * 8 + 3 * 2


def musubi(model, strength: float = 0.3) -> dict[str, torch.Tensor]:
    """A file as musubi-tuner writes it for a recipe's model."""
    tensors = {}
    for layer in ("img_attn_qkv", "img_attn_proj", "img_mlp.fc1", "img_mlp.fc2"):
        for stream in (layer, layer.replace("img", "txt")):
            tensors |= {f"double_blocks.{i}.{stream}": (0, 0) for i in range(2)}
    tensors |= {f"single_blocks.{i}.linear{n}": (0, 0) for i in range(3) for n in (1, 2)}
    view, factors = model.detected.view, {}
    for name in tensors:
        out, width = view.info(f"{name}.weight").shape
        base = f"lora_unet_{name.replace('.', '_')}"
        factors |= {
            f"{base}.lora_down.weight": torch.randn(2, width) * strength,
            f"{base}.lora_up.weight": torch.randn(out, 2) * strength,
            f"{base}.alpha": torch.tensor(1.0),
        }
    return factors


@pytest.fixture
def loras(models, tmp_path, model):
    """The tiny models, with a folder of LoRAs beside them."""
    folder = tmp_path / "more" / "loras"
    folder.mkdir(parents=True)
    save_file(musubi(model), folder / "style.safetensors")
    save_file(musubi(model), folder / "other.safetensors")
    headless.use_folders(headless.Folders(models=(models, tmp_path / "more")))
    return folder


@pytest.fixture
def sample(loras, positive, latent, run_node):
    def sample(recipe, seed=0):
        return run_node("HYVSampler", model=recipe, positive=positive, latent=latent, steps=2, seed=seed)[0]["samples"]

    return sample


def test_the_report_tells_kind_layout_and_coverage(loras, model, run_node):
    recipe, report = run_node("HYVLoadLora", model=model, lora="style.safetensors", blocks="double 1, single all")
    assert f"style.safetensors: LoRA of rank 2, kohya names (musubi-tuner); {NUM_LAYERS} of {NUM_LAYERS}" in report
    assert "side path at strength 1 on 14 layers: double 1, single 0-2" in report
    assert recipe.patcher is None and recipe.loras[0].weights.patcher is None, "nothing but headers is read here"


def test_a_graph_may_leave_out_blocks_and_mode(loras, model):
    assert [socket.id for socket in NODE.define_schema().inputs if socket.optional] == ["blocks", "mode"]
    report = NODE.execute(model=model, lora="style.safetensors", strength=1.0).result[1]
    assert f"side path at strength 1 on {NUM_LAYERS} layers: double 0-1, single 0-2" in report


def test_a_lora_changes_the_video_and_goes_without_a_trace(sample, model, run_node):
    with torch.inference_mode():
        before = sample(model)
        (recipe, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors")
        changed = sample(recipe)
        assert not torch.allclose(changed, before)
        assert torch.equal(sample(model), before)
        assert torch.equal(sample(recipe), changed)


def test_loras_are_streamed_with_the_weights_and_leave_the_model_as_it_was(sample, model, run_node, monkeypatch):
    device = FakeDevice()
    monkeypatch.setattr(host, "stream_device_for", lambda role: device)
    found = {}
    for budget in ("auto", "0", "0.0018"):
        (limited,) = run_node("HYVMemory", model=model, budget=budget)
        (first, _) = run_node("HYVLoadLora", model=limited, lora="style.safetensors")
        (both, _) = run_node("HYVLoadLora", model=first, lora="other.safetensors", strength=0.5)
        with torch.inference_mode(), device:
            found[budget] = [sample(recipe) for recipe in (limited, first, both, limited)]
        assert device.live() == model.patcher.loaded_size()
    assert device.faults == []
    for plain, once, twice, after in found.values():
        assert not torch.equal(plain, once) and not torch.equal(once, twice)
        assert torch.equal(plain, after)
    assert all(torch.equal(*pair) for videos in found.values() for pair in zip(videos, found["auto"], strict=True))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_another_strength_reads_no_file_again(sample, model, run_node, monkeypatch, is_streamed):
    if is_streamed:
        device = FakeDevice()
        monkeypatch.setattr(host, "stream_device_for", lambda role: device)
    (recipe, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=1.0)
    sample(recipe)
    read = weakref.ref(recipe.loras[0].weights)
    del recipe
    gc.collect()
    (recipe, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=0.5)
    assert recipe.loras[0].weights is read()
    assert read().patcher is not None


def test_all_recipes_of_a_file_share_one_model_and_one_patcher(sample, model, run_node):
    strong, weak = (run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=s)[0] for s in (1.0, 0.5))
    sample(strong), sample(weak)
    assert strong.patcher is weak.patcher is model.patcher
    assert strong.loras[0].weights is weak.loras[0].weights
    assert strong.loras[0].weights.patcher is not None


def test_strength_zero_and_no_blocks_give_the_model_itself(loras, model, run_node, caplog):
    recipe, report = run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=0.0)
    assert recipe is model and "no effect: strength is 0" in report
    assert caplog.records == [] or caplog.records[-1].levelname == "INFO", "somebody chose that"
    recipe, report = run_node("HYVLoadLora", model=model, lora="style.safetensors", blocks="other")
    assert recipe is model and "no effect: the chosen blocks hold none" in report
    assert caplog.records[-1].levelname == "WARNING"


def test_loras_in_a_row_add_up_in_any_order(sample, model, run_node):
    def chain(*files):
        recipe = model
        for name, strength in files:
            (recipe, _) = run_node("HYVLoadLora", model=recipe, lora=name, strength=strength)
        return sample(recipe)

    first, second = ("style.safetensors", 0.5), ("other.safetensors", -0.25)
    torch.testing.assert_close(chain(first, second), chain(second, first), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(chain(first, second), chain(first))
    torch.testing.assert_close(chain(first, (first[0], -0.5)), sample(model), rtol=1e-4, atol=1e-4)


def test_merged_equals_the_side_path_and_leaves_the_base_alone(sample, model, run_node):
    before = sample(model)
    weights = {name: tensor.clone() for name, tensor in model.weights.load().model.state_dict().items()}
    side, merged = (
        run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=0.7, mode=mode)[0]
        for mode in ("side path", "merged")
    )
    torch.testing.assert_close(sample(merged), sample(side), rtol=1e-4, atol=1e-4)
    assert merged.patcher is not model.patcher and not merged.loras
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.weights.load().model.state_dict().items())
    assert torch.equal(sample(model), before)
    (again, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=0.7, mode="merged")
    assert again.weights is merged.weights
    (other, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=0.6, mode="merged")
    assert other.weights is not merged.weights


def test_both_modes_mix(sample, model, run_node):
    def chain(*modes):
        recipe = model
        for name, mode in zip(("style.safetensors", "other.safetensors"), modes, strict=True):
            (recipe, _) = run_node("HYVLoadLora", model=recipe, lora=name, strength=0.5, mode=mode)
        return sample(recipe)

    expected = chain("side path", "side path")
    for modes in (("merged", "side path"), ("side path", "merged"), ("merged", "merged")):
        torch.testing.assert_close(chain(*modes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp8_scaled", "fp8_matmul"])
def test_merging_into_fp8_is_refused_before_anything_loads(precision, loras, run_node):
    (small,) = run_node("HYVLoadModel", model="tiny.safetensors", precision=precision)
    with pytest.raises(OptionError, match='set mode to "side path"'):
        run_node("HYVLoadLora", model=small, lora="style.safetensors", mode="merged")
    assert small.patcher is None


def test_merging_into_a_stored_fp8_file_is_refused_and_the_side_path_works(loras, models, model, sample, run_node):
    folder = loras.parent / "diffusion_models"
    folder.mkdir()
    weights = load_file(models / "diffusion_models" / "tiny.safetensors")
    small = {
        name: tensor.to(torch.float8_e4m3fn) if "_blocks." in name and tensor.ndim == 2 else tensor
        for name, tensor in weights.items()
    }
    from json import dumps

    save_file(small, folder / "small.safetensors", {"config": dumps(dict(model.detected.view.checkpoint.config))})
    (recipe,) = run_node("HYVLoadModel", model="small.safetensors")
    with pytest.raises(OptionError, match=r"small.safetensors: its weights are stored as fp8.*set mode to"):
        run_node("HYVLoadLora", model=recipe, lora="style.safetensors", mode="merged")
    (changed, _) = run_node("HYVLoadLora", model=recipe, lora="style.safetensors")
    assert not torch.allclose(sample(changed), sample(recipe))


def test_a_widened_model_is_described_with_its_channels_and_refused_by_the_sampler(loras, model, sample, run_node):
    tensors = {
        "diffusion_model.img_in.proj.lora_A.weight": torch.randn(2, 32, 1, 2, 2),
        "diffusion_model.img_in.proj.lora_B.weight": torch.randn(64, 2, 1, 1, 1),
    }
    save_file(tensors, loras / "keyframe.safetensors")
    recipe, report = run_node("HYVLoadLora", model=model, lora="keyframe.safetensors")
    assert "the model's input is widened from 16 to 32 channels" in report
    assert recipe.detected.config.in_channels == 32 and model.detected.config.in_channels == 16
    transformer, _ = recipe.place(0)
    assert transformer.img_in.proj.weight.shape[1] == 32
    (then, _) = run_node("HYVLoadLora", model=recipe, lora="style.safetensors")
    assert then.place(0)[0].config.in_channels == 32


def test_what_is_not_applied_is_warned_about_by_name(loras, model, run_node, caplog):
    tensors = load_file(loras / "style.safetensors")
    tensors |= {f"lora_te1_layers_{i}_mlp_fc1.lora_up.weight": torch.zeros(4, 2) for i in range(9)}
    tensors["lora_unet_double_blocks_7_img_mlp_fc1.lora_up.weight"] = torch.zeros(4, 2)
    save_file(tensors, loras / "mixed.safetensors")
    _, report = run_node("HYVLoadLora", model=model, lora="mixed.safetensors")
    assert f"{NUM_LAYERS} of {NUM_LAYERS + 1} layers matched, 1 stray tensor (" in report
    assert "9 tensors (lora_te1_" in report and "for text encoders, not applied" in report
    assert "10 of its tensors are not applied" in caplog.text
    assert "lora_te1_layers_8_mlp_fc1" in caplog.text and "double_blocks_7" in caplog.text


def test_a_lora_of_another_model_is_refused_by_name(loras, model, run_node):
    wan = {f"diffusion_model.blocks.0.self_attn.q.lora_{x}.weight": torch.zeros(8, 8) for x in "AB"}
    save_file(wan, loras / "wan.safetensors")
    with pytest.raises(WrongModelError, match=r"wan\.safetensors is a LoRA for Wan"):
        run_node("HYVLoadLora", model=model, lora="wan.safetensors")


def test_the_fingerprint_follows_the_file(loras):
    before = NODE.fingerprint_inputs(lora="style.safetensors", strength=1.0, blocks="all", mode="side path")
    assert NODE.fingerprint_inputs(lora="style.safetensors") == before
    shutil.copyfile(loras / "other.safetensors", loras / "style.safetensors")
    assert NODE.fingerprint_inputs(lora="style.safetensors") != before


def test_factors_stay_for_another_strength_and_go_with_the_next_run(sample, model, run_node):
    def held():
        gc.collect()
        return [key for key in recipes._shared if "style.safetensors" in str(key)]

    (recipe, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors")
    sample(recipe)
    factors = weakref.ref(recipe.loras[0].weights.load().model)
    del recipe
    assert held()
    (recipe, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors", strength=0.5)
    assert recipe.loras[0].weights.load().model is factors()
    del recipe
    sample(model)
    assert not held()


def test_factors_count_in_what_the_host_makes_room_for(sample, model, run_node, monkeypatch):
    placed = []
    monkeypatch.setattr(headless, "free_memory", lambda num_bytes, _: placed.append(num_bytes))
    monkeypatch.setattr(headless.ModulePatcher, "loaded_size", lambda self: 0)
    sample(model)
    (recipe, _) = run_node("HYVLoadLora", model=model, lora="style.safetensors")
    sample(recipe)
    factors = sum(parameter.nbytes for parameter in recipe.loras[0].weights.load().model.parameters())
    assert placed[1] - placed[0] == factors > 0
