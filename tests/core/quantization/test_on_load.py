"""Fp8 made on load: a scale for each row, small errors that are known, sensitive layers untouched."""

from __future__ import annotations

import json

import pytest
import torch
from hyvideo_nodes.hyvideo_core.loading import build_transformer, detect_transformer, open_checkpoint
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear, describe_errors, on_load_errors
from hyvideo_nodes.hyvideo_core.quantization import on_load as module
from hyvideo_nodes.hyvideo_core.quantization.on_load import quantized_rows
from safetensors.torch import load_file, save_file

E4M3 = torch.float8_e4m3fn


def open_golden(golden_dir):
    return detect_transformer(open_checkpoint(golden_dir / "dit_weights.safetensors"))


def test_rows_of_very_different_sizes_are_all_kept_to_fp8s_precision():
    weight = torch.randn(64, 96) * torch.logspace(-6, 4, 64)[:, None]
    small, scale, error = quantized_rows(weight)
    widened = small.float() * scale
    assert small.dtype == E4M3
    assert scale.shape == (64, 1)
    # three bits behind the point: half of the last one is a sixteenth; numbers near zero have steps of their own
    assert ((widened - weight).abs() <= weight.abs() / 16 + scale * 2**-10).all()
    assert error == pytest.approx(((widened - weight).norm() / weight.norm()).item(), rel=1e-5)
    assert 0.01 < error < 0.04


def test_scales_are_numbers_of_bfloat16_and_never_overflow():
    _, scale, _ = quantized_rows(torch.randn(500, 32))
    assert torch.equal(scale.bfloat16().float(), scale)
    small, _, _ = quantized_rows(torch.randn(500, 32) * 1e4)
    assert small.float().isfinite().all()


def test_a_row_of_zeros_stays_zero():
    small, scale, error = quantized_rows(torch.zeros(3, 16))
    assert (small.float() * scale == 0).all()
    assert error == 0


def test_some_rows_at_a_time_give_the_same(monkeypatch):
    weight = torch.randn(50, 16)
    whole = quantized_rows(weight)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    parts = quantized_rows(weight)
    assert torch.equal(parts[0].float(), whole[0].float())
    assert torch.equal(parts[1], whole[1])
    assert parts[2] == pytest.approx(whole[2])


def test_only_the_blocks_big_layers_become_fp8(golden_dir):
    detected = open_golden(golden_dir)
    plain = build_transformer(detected, dtype=torch.bfloat16).state_dict()
    model = build_transformer(detected, dtype=torch.bfloat16, make_fp8=True)
    config = detected.config
    made = {name for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)}
    assert len(made) == 8 * config.num_double_blocks + 2 * config.num_single_blocks
    assert not any("mod" in name or "norm" in name or not name.startswith(("double", "single")) for name in made)
    state = model.state_dict()
    others = plain.keys() - {f"{name}.weight" for name in made}
    assert all(torch.equal(state[name], plain[name]) for name in others)


def test_the_error_of_each_layer_is_known(golden_dir):
    detected = open_golden(golden_dir)
    model = build_transformer(detected, dtype=torch.float32, make_fp8=True)
    weights = load_file(golden_dir / "dit_weights.safetensors")
    errors = on_load_errors(model)
    assert len(errors) == 8 * detected.config.num_double_blocks + 2 * detected.config.num_single_blocks
    for name, error in errors.items():
        weight, widened = weights[f"{name}.weight"], model.get_submodule(name).dequantized()
        assert error == pytest.approx(((widened - weight).norm() / weight.norm()).item(), rel=1e-4)
        assert 0.01 < error < 0.04
    text = describe_errors(errors)
    worst = max(errors, key=errors.get)
    assert text.startswith(f"fp8 made on load: {len(errors)} layers")
    assert text.endswith(f"{errors[worst]:.2%} at most ({worst})")
    assert describe_errors({}) == ""


def test_what_the_file_stores_in_fp8_stays_as_it_is(golden_dir, tmp_path):
    weights = load_file(golden_dir / "dit_weights.safetensors")
    cast = "double_blocks.0.img_mlp.fc1"
    weights[f"{cast}.weight"] = weights[f"{cast}.weight"].to(E4M3)
    config = json.dumps(dict(open_golden(golden_dir).view.checkpoint.config))
    save_file(weights, tmp_path / "m.safetensors", metadata={"config": config})
    detected = detect_transformer(open_checkpoint(tmp_path / "m.safetensors"))
    model = build_transformer(detected, dtype=torch.float32)
    assert [name for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)] == [cast]
    again = build_transformer(detected, dtype=torch.float32, make_fp8=True)
    assert torch.equal(again.get_submodule(cast).dequantized(), weights[f"{cast}.weight"].float())
    assert cast not in on_load_errors(again)


@torch.no_grad()
def test_the_model_moves_little(golden_dir):
    case = load_file(golden_dir / "dit_t2v_cfgdistill.safetensors")
    detected = open_golden(golden_dir)
    latents = case["in.x"] if "in.x" in case else torch.randn(1, detected.config.in_channels, 3, 6, 10)
    states, pooled = torch.randn(1, 7, detected.config.text_width), torch.randn(1, detected.config.pooled_width)
    given = (latents[:1], torch.tensor([500.0]), [states], pooled, torch.tensor([6000.0]))
    exact = build_transformer(detected, dtype=torch.float32)(*given)
    made = build_transformer(detected, dtype=torch.float32, make_fp8=True)(*given)
    assert 0 < (made - exact).norm() / exact.norm() < 0.06
