"""Beside a layer or merged into its weight: the same numbers, on every kind of stored weight; and back again."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.lora import Attached, LoraLinear, load_lora, open_lora, with_loras, with_merged_loras
from hyvideo_nodes.hyvideo_core.lora.view import with_modules
from hyvideo_nodes.hyvideo_core.model.linear import Linear
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear
from hyvideo_nodes.hyvideo_core.quantization.gguf_blocks import GgufLinear
from torch import nn


def attach(checkpoint, config, strength: float = 1.0, blocks: str = "all", dtype=torch.float32) -> Attached:
    lora = open_lora(checkpoint, config)
    return Attached(lora=lora, weights=load_lora(lora, dtype=dtype), strength=strength, blocks=blocks)


def to_fp8(layer: Linear) -> Fp8Linear:
    stored = Fp8Linear(
        layer.in_features,
        layer.out_features,
        has_bias=True,
        weight_dtype=torch.float8_e4m3fn,
        compute_dtype=torch.float32,
        scaled=True,
    )
    scale = layer.weight.abs().max() / 448
    stored.weight.data = (layer.weight / scale).to(torch.float8_e4m3fn)
    stored.scale = scale.reshape(1)
    stored.bias.data = layer.bias.data
    return stored


def to_gguf(layer: Linear) -> GgufLinear:
    runs = ((layer.out_features, "Q8_0"),)
    stored = GgufLinear(layer.in_features, runs, has_bias=True, compute_dtype=torch.float32)
    rows = gguf.quants.quantize(layer.weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    stored.runs[0].data = torch.from_numpy(np.ascontiguousarray(rows))
    stored.bias.data = layer.bias.data
    return stored


STORAGES = {"plain": lambda layer: layer, "scaled fp8": to_fp8, "GGUF": to_gguf}


@pytest.fixture(params=list(STORAGES))
def stored(request, model):
    """The model with its blocks' weights in one kind of storage."""
    store = STORAGES[request.param]
    layers = {
        name: store(module)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and "_blocks." in name and "refiner" not in name
    }
    return with_modules(model, layers)


def dense_copy(model):
    """The same model with every linear layer's weight as it is multiplied by."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear | Fp8Linear | GgufLinear):
            layers[name] = plain = Linear(module.in_features, module.out_features, device="meta")
            plain.weight = nn.Parameter(module.dequantized().clone(), requires_grad=False)
            plain.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=False)
    return with_modules(model, layers)


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def test_side_path_equals_merged_weights(layout, stored, make_factors, inputs, config, write):
    tensors, changes = make_factors(layout, config)
    view = with_loras(stored, [attach(write(tensors), config, 0.8)])
    merged = dense_copy(stored)
    for name, change in changes.items():
        merged.get_submodule(name).weight += 0.8 * change
    expected = merged(*inputs)
    assert relative_difference(view(*inputs), expected) < 1e-5
    assert relative_difference(stored(*inputs), expected) > 1e-3


@torch.no_grad()
def test_without_the_lora_every_bit_is_as_before(stored, layouts, make_factors, inputs, config, write):
    before = stored(*inputs)
    weights = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
    tensors, _ = make_factors(layouts["musubi"], config)
    view = with_loras(stored, [attach(write(tensors), config)])
    assert not torch.equal(view(*inputs), before)
    del view
    assert torch.equal(stored(*inputs), before)
    for name, tensor in stored.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), weights[name].view(torch.uint8)), name


def test_a_view_shares_every_parameter_of_the_model(stored, layouts, make_factors, config, write):
    tensors, _ = make_factors(layouts["kohya with modulation"], config)
    view = with_loras(stored, [attach(write(tensors), config)])
    shared = {parameter.data_ptr() for parameter in view.parameters()}
    assert {parameter.data_ptr() for parameter in stored.parameters()} <= shared
    assert sum(isinstance(module, LoraLinear) for module in view.modules()) == 2 * 10 + 3 * 3


def test_a_view_follows_when_the_model_moves_or_its_buffers_are_replaced(model, layouts, make_factors, config, write):
    layer = model.double_blocks[0].img_attn_proj = to_fp8(model.double_blocks[0].img_attn_proj)
    tensors, _ = make_factors(layouts["musubi"], config)
    view = with_loras(model, [attach(write(tensors), config)])
    model.double_blocks[0].to(torch.float32)  # buffers become new tensors in any move
    layer.scale = layer.scale * 2
    assert torch.equal(view.double_blocks[0].img_attn_proj.base.dequantized(), layer.dequantized())


def test_none_or_strength_zero_gives_the_model_itself(model, layouts, make_factors, config, write):
    tensors, _ = make_factors(layouts["musubi"], config)
    assert with_loras(model, []) is model
    assert with_loras(model, [attach(write(tensors), config, 0.0)]) is model
    assert with_merged_loras(model, [attach(write(tensors), config, 0.0)]) is model


@torch.no_grad()
def test_several_loras_add_up_with_their_own_strengths(model, layouts, make_factors, inputs, config, write):
    (first, changes), (second, others) = (make_factors(layouts[name], config) for name in ("musubi", "finetrainers"))
    files = [attach(write(first, "a.safetensors"), config, 0.5), attach(write(second, "b.safetensors"), config, -1.5)]
    merged = dense_copy(model)
    for name, change in others.items():
        merged.get_submodule(name).weight += -1.5 * change + 0.5 * changes.get(name, 0)
    assert relative_difference(with_loras(model, files)(*inputs), merged(*inputs)) < 1e-5


@torch.no_grad()
def test_opposite_strengths_cancel(model, layouts, make_factors, inputs, config, write):
    tensors, _ = make_factors(layouts["diffusion-pipe"], config)
    one = write(tensors)
    both = with_loras(model, [attach(one, config, 1.0), attach(one, config, -1.0)])
    assert relative_difference(both(*inputs), model(*inputs)) < 1e-5


@torch.no_grad()
def test_merged_mode_equals_the_side_path_and_leaves_the_model_alone(
    model, layouts, make_factors, inputs, config, write
):
    tensors, _ = make_factors(layouts["OneTrainer"], config)
    tensors |= {"diffusion_model.img_in.proj.diff": torch.randn(config.hidden_size, config.in_channels, 1, 2, 2) * 0.1}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one = attach(write(tensors), config, 0.6)
    merged = with_merged_loras(model, [one])
    assert relative_difference(merged(*inputs), with_loras(model, [one])(*inputs)) < 1e-5
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    assert list(merged.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("store", [to_fp8, to_gguf])
def test_merged_mode_refuses_weights_that_are_not_plain(store, model, layouts, make_factors, config, write):
    model.double_blocks[1].img_mlp.fc1 = store(model.double_blocks[1].img_mlp.fc1)
    tensors, _ = make_factors(layouts["musubi"], config)
    with pytest.raises(OptionError, match=r"double_blocks.1.img_mlp.fc1 is stored as .*set mode to side path"):
        with_merged_loras(model, [attach(write(tensors), config)])


@torch.no_grad()
def test_rows_of_a_fused_layer_take_their_rows_of_every_change(stored, layouts, make_factors, config, write):
    tensors, _ = make_factors(layouts["finetrainers"], config)
    layer = with_loras(stored, [attach(write(tensors), config, 0.9)]).single_blocks[2].linear1
    x, width = torch.randn(1, 7, config.hidden_size), config.hidden_size
    whole = layer(x)
    for rows in ((0, 3 * width), (3 * width, layer.out_features), (width // 2, 2 * width + 5)):
        torch.testing.assert_close(layer(x, rows=rows), whole[..., rows[0] : rows[1]], rtol=1e-5, atol=1e-6)
        assert torch.equal(layer.dequantized(rows), layer.dequantized()[rows[0] : rows[1]])


@torch.no_grad()
def test_a_filter_keeps_the_other_blocks_as_they_were(model, layouts, make_factors, config, write):
    tensors, _ = make_factors(layouts["kohya with modulation"], config)
    view = with_loras(model, [attach(write(tensors), config, blocks="double 1, single 0-1")])
    for part in ("double_blocks", "single_blocks"):
        for index, (block, changed) in enumerate(zip(getattr(model, part), getattr(view, part), strict=True)):
            is_chosen = (part, index) in {("double_blocks", 1), ("single_blocks", 0), ("single_blocks", 1)}
            assert (changed is not block) == is_chosen


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_side_paths_compute_in_the_models_dtype(dtype, model, layouts, make_factors, inputs, config, write):
    tensors, changes = make_factors(layouts["musubi"], config)
    small = model.to(dtype)
    one = attach(write(tensors), config, dtype=dtype)
    assert {parameter.dtype for parameter in one.weights.parameters()} == {dtype}
    result = with_loras(small, [one])(*inputs)
    assert result.dtype == dtype
    merged = dense_copy(small)
    for name, change in changes.items():
        merged.get_submodule(name).weight += change.to(dtype)
    assert relative_difference(result.float(), merged(*inputs).float()) < 0.05


def test_factors_can_be_trained(model, layouts, make_factors, inputs, config, write):
    tensors, _ = make_factors(layouts["musubi"], config)
    with torch.inference_mode():
        one = attach(write(tensors), config)
        view = with_loras(model, [one])
    one.weights.requires_grad_(True)
    view(*inputs).square().mean().backward()
    gradients = [parameter.grad for parameter in one.weights.parameters()]
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert all(parameter.grad is None for parameter in model.parameters())
