"""The precision widget of the model loader: fp8 made on load, its report, products in fp8 where a card has them."""

from __future__ import annotations

import re

import pytest
import torch
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear, on_load_errors


def run_with(run_node, positive, latent, precision):
    model = run_node("HYVLoadModel", model="tiny.safetensors", precision=precision)[0]
    samples, report = run_node("HYVSampler", model=model, positive=positive, latent=latent, steps=2, seed=3)
    return model.weights.place(0)[0], samples["samples"], report


@pytest.mark.parametrize("precision", ["fp8_scaled", "fp8_matmul"])
def test_the_report_lists_the_error_of_every_layer(precision, positive, latent, run_node):
    transformer, _, report = run_with(run_node, positive, latent, precision)
    errors = on_load_errors(transformer)
    assert len(errors) == sum(isinstance(layer, Fp8Linear) for layer in transformer.modules()) > 0
    assert f"fp8 made on load: {len(errors)} layers" in report
    listed = re.findall(r"^  (\S+): (\S+)%$", report, flags=re.MULTILINE)
    assert {name: f"{error:.2%}" for name, error in errors.items()} == {name: f"{error}%" for name, error in listed}


def test_fp8_made_on_load_changes_the_result_a_little(positive, latent, run_node):
    _, exact, report = run_with(run_node, positive, latent, "fp32")
    _, rounded, _ = run_with(run_node, positive, latent, "fp8_scaled")
    assert "fp8" not in report
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.1


def test_a_device_without_products_in_fp8_gives_what_widening_gives_and_says_so(positive, latent, run_node, caplog):
    _, widened, _ = run_with(run_node, positive, latent, "fp8_scaled")
    with caplog.at_level("INFO"):
        transformer, found, _ = run_with(run_node, positive, latent, "fp8_matmul")
    assert torch.equal(found, widened)
    assert all(layer.multiply is None for layer in transformer.modules() if isinstance(layer, Fp8Linear))
    assert len([record for record in caplog.records if "does not multiply in fp8" in record.message]) == 1
