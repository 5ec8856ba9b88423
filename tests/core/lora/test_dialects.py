"""Every trainer's layout finds every layer, at full size and in numbers."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import HYVIDEO_T2_CFGDISTILL, tiny
from hyvideo_nodes.hyvideo_core.loading.checkpoint import Checkpoint, TensorInfo
from hyvideo_nodes.hyvideo_core.lora import Attached, load_lora, open_lora, recognise_lora, with_loras
from hyvideo_nodes.hyvideo_core.lora.targets import layers_of, spellings


class HeaderOnly(Checkpoint):
    """A file of which only names and shapes exist."""

    @contextmanager
    def reading(self):
        raise AssertionError("only the header may be read")
        yield


def header(shapes: dict[str, tuple[int, ...]], **metadata: str) -> HeaderOnly:
    tensors = {name: TensorInfo(tuple(shape), torch.bfloat16) for name, shape in shapes.items()}
    return HeaderOnly(path=Path("lora.safetensors"), tensors=tensors, metadata=metadata)


def full_size(layout, layers: dict[str, tuple[int, int]], rank: int = 16) -> HeaderOnly:
    shapes = {}
    for name, (out, width) in layers.items():
        for base, (first, last) in layout.spell(name, out, width):
            shapes |= {base + layout.down: (rank, width), base + layout.up: (last - first, rank)}
            if layout.has_alpha:
                shapes[base + ".alpha"] = ()
    return header(shapes)


def test_every_layer_of_the_published_model_is_found(layout, layers_of_blocks):
    layers = layers_of_blocks(HYVIDEO_T2_CFGDISTILL, layout.has_modulation)
    lora = open_lora(full_size(layout, layers), HYVIDEO_T2_CFGDISTILL)
    expected = 320 if layout.has_modulation else 240
    assert (lora.coverage.matched, lora.coverage.expected) == (expected, expected)
    assert lora.coverage.is_complete
    assert {layer.name for layer in lora.layers} == set(layers)
    assert lora.dialect == layout.words
    assert lora.kinds == ("LoRA",) and lora.ranks == (16,)


def test_the_doctor_says_the_same_as_the_loader(layout, layers_of_blocks):
    file = full_size(layout, layers_of_blocks(HYVIDEO_T2_CFGDISTILL, layout.has_modulation))
    kind, lora = recognise_lora(file), open_lora(file, HYVIDEO_T2_CFGDISTILL)
    assert kind.fits and kind.family is None
    assert (kind.dialect, kind.kinds, kind.ranks) == (lora.dialect, lora.kinds, lora.ranks)
    assert kind.coverage == lora.coverage
    assert kind.targets == "double 0-19, single 0-39"
    assert kind.dtypes == ("bfloat16",)


def test_every_layout_gives_its_weights_their_changes(layout, make_factors, model, config, write):
    tensors, changes = make_factors(layout, config)
    lora = open_lora(write(tensors), config)
    view = with_loras(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32), strength=0.7)])
    for name, change in changes.items():
        expected = model.get_submodule(name).weight + 0.7 * change
        torch.testing.assert_close(view.get_submodule(name).dequantized(), expected, rtol=1e-5, atol=1e-7)


def test_names_outside_the_blocks_are_those_of_the_published_lists(manifest_dir):
    table = json.loads((manifest_dir / "keymap_transformer_official_to_diffusers.json").read_text())
    names = spellings(HYVIDEO_T2_CFGDISTILL)["diffusers"]
    for key in (key for key in table if key.endswith(".weight")):
        for source, _ in table[key]:
            assert names[source.removesuffix(".weight")].layer.name == key.removesuffix(".weight")


def test_no_two_modules_share_a_spelling():
    for names in spellings(tiny()).values():
        with_underscores = [name.replace(".", "_") for name in names]
        assert len(set(with_underscores)) == len(with_underscores)
        covered = dict.fromkeys(layers_of(tiny()), 0)
        for target in {(t.layer.name, t.rows) for t in names.values()}:
            covered[target[0]] += target[1][1] - target[1][0]
        assert all(covered[name] >= layer.shape[0] for name, layer in layers_of(tiny()).items())


def test_layers_outside_the_blocks_are_changed_too(model, config, write):
    names = ["time_in.mlp.0", "txt_in.individual_token_refiner.blocks.1.self_attn_qkv", "final_layer.linear"]
    tensors, changes = {}, {}
    for name in names:
        out, width = model.get_submodule(name).weight.shape
        down, up = torch.randn(3, width), torch.randn(out, 3)
        tensors |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        changes[name] = up @ down
    lora = open_lora(write(tensors), config)
    view = with_loras(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32))])
    for name, change in changes.items():
        torch.testing.assert_close(view.get_submodule(name).dequantized(), model.get_submodule(name).weight + change)


@pytest.mark.parametrize("prefix", ["transformer.", "lora_transformer_"])
def test_the_halves_of_diffusers_last_norm_are_swapped(prefix, model, config, write):
    width = config.hidden_size
    down, up, bias = torch.randn(2, width), torch.randn(2 * width, 2), torch.randn(2 * width)
    base = prefix + ("norm_out.linear" if prefix.endswith(".") else "norm_out_linear")
    lora = open_lora(
        write({f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up, f"{base}.diff_b": bias}), config
    )
    view = with_loras(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32))])
    name = "final_layer.adaLN_modulation.1"
    plain, changed = model.get_submodule(name), view.get_submodule(name)
    swapped = torch.cat(((up @ down)[width:], (up @ down)[:width]))
    torch.testing.assert_close(changed.dequantized(), plain.weight + swapped)
    torch.testing.assert_close(changed.bias, plain.bias + torch.cat((bias[width:], bias[:width])))


def test_parts_of_a_fused_layer_may_be_missing(model, config, write):
    width = config.hidden_size
    down, up = torch.randn(2, width), torch.randn(width, 2)
    base = "transformer.single_transformer_blocks.1.attn.to_v"
    lora = open_lora(write({f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up}), config)
    view = with_loras(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32))])
    expected = model.single_blocks[1].linear1.weight.clone()
    expected[2 * width : 3 * width] += up @ down
    torch.testing.assert_close(view.single_blocks[1].linear1.dequantized(), expected)


def test_q_k_and_v_together_change_the_first_rows_of_a_single_block(model, config, write):
    width = config.hidden_size
    down, up = torch.randn(2, width), torch.randn(3 * width, 2)
    base = "single_transformer_blocks.0.attn.to_qkv"
    lora = open_lora(write({f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up}), config)
    view = with_loras(model, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32))])
    expected = model.single_blocks[0].linear1.weight.clone()
    expected[: 3 * width] += up @ down
    torch.testing.assert_close(view.single_blocks[0].linear1.dequantized(), expected)
