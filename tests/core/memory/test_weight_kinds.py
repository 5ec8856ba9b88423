"""Whatever a layer stores its weight as, and whatever lies beside it, it is streamed as it is."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.lora.factors import LowRank
from hyvideo_nodes.hyvideo_core.lora.layers import LoraLinear
from hyvideo_nodes.hyvideo_core.lora.read_parts import Change
from hyvideo_nodes.hyvideo_core.lora.view import with_modules
from hyvideo_nodes.hyvideo_core.memory import Residency, StreamedModel, transformer_layout
from hyvideo_nodes.hyvideo_core.model.modulation import ModulationProjection
from hyvideo_nodes.hyvideo_core.model.transformer import walk_blocks
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear
from hyvideo_nodes.hyvideo_core.quantization.base import frozen
from hyvideo_nodes.hyvideo_core.quantization.gguf_blocks import GgufLinear
from hyvideo_nodes.hyvideo_core.quantization.nvfp4 import Nvfp4Linear
from torch.utils._pytree import tree_leaves

from .fake_device import FakeDevice
from .test_streaming import make_inputs, make_model

CHANGED = (
    "double_blocks.0.img_attn_qkv",
    "single_blocks.1.linear1",
    "double_blocks.1.img_mod.linear",
    "final_layer.linear",
)
BIG = ("img_attn_qkv", "img_mlp.fc1", "txt_attn_proj", "linear1", "linear2")


def fp8(layer, *, by_row: bool):
    small = Fp8Linear(
        layer.in_features,
        layer.out_features,
        has_bias=layer.bias is not None,
        weight_dtype=torch.float8_e4m3fn,
        compute_dtype=torch.float32,
        scaled=True,
    )
    small.weight = frozen(layer.weight.to(torch.float8_e4m3fn))
    small.scale = torch.rand(layer.out_features, 1) + 0.5 if by_row else torch.rand(1) + 0.5
    small.bias = layer.bias
    return small


def gguf(layer):
    blocks = GgufLinear(
        layer.in_features, ((layer.out_features, "Q8_0"),), has_bias=layer.bias is not None, compute_dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(layer.out_features)
    rows = torch.randint(
        0, 256, (layer.out_features, layer.in_features // 32, 34), dtype=torch.uint8, generator=generator
    )
    rows[..., :2] = torch.tensor([0, 20], dtype=torch.uint8)  # a small float16 scale
    blocks.runs = torch.nn.ParameterList([frozen(rows.flatten(1))])
    blocks.bias = layer.bias
    return blocks


def nvfp4(layer):
    small = Nvfp4Linear(
        layer.in_features, layer.out_features, has_bias=layer.bias is not None, compute_dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(layer.out_features)
    small.weight = frozen(torch.randint(0, 256, small.weight.shape, dtype=torch.uint8, generator=generator))
    small.block_scale = torch.full(small.block_scale.shape, 0.02).to(torch.float8_e4m3fn)
    small.bias = layer.bias
    return small


KINDS = {
    "plain": lambda layer: layer,
    "bf16": lambda layer: layer.bfloat16(),
    "fp8": lambda layer: fp8(layer, by_row=False),
    "fp8 by rows": lambda layer: fp8(layer, by_row=True),
    "gguf": gguf,
    "nvfp4": nvfp4,
}


def swap_layers(model, kind: str):
    for name, module in list(model.named_modules()):
        if name.endswith(BIG) and name.partition(".")[0].endswith("blocks"):
            model.set_submodule(name, KINDS[kind](module))
    return model


def run_streamed(residency: Residency, model, device: FakeDevice, **options) -> torch.Tensor:
    with device, torch.no_grad(), StreamedModel(residency, model, **options) as stream:
        return model(**make_inputs(), run=walk_blocks(lambda: None, stream.hold))


def run_resident(model) -> torch.Tensor:
    with FakeDevice(), torch.no_grad():
        return model(**make_inputs())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_weight_is_streamed_bit_for_bit(kind):
    model = swap_layers(make_model(), kind)
    expected = run_resident(model)
    device = FakeDevice()
    residency = Residency(model, transformer_layout(model), device)
    for kept in (0, residency.most_bytes // 2):
        residency.fit(kept)
        assert torch.equal(run_streamed(residency, model, device), expected)
        assert device.live() == residency.kept_bytes
    assert device.faults == []
    assert torch.equal(run_resident(model), expected)


def lora_view(model, *, bias: bool = False):
    """A view with a LoRA on some layers, twice on one of them."""
    generator = torch.Generator().manual_seed(5)
    layers = {}
    for name in CHANGED:
        layer = model.get_submodule(name)
        down = torch.randn(4, layer.in_features, generator=generator) * 0.1
        up = torch.randn(layer.out_features, 4, generator=generator) * 0.1
        added = torch.randn(layer.out_features, generator=generator) * 0.1 if bias else None
        layers[name] = LoraLinear(layer, [(Change(LowRank(down, up, 1.0), None, added, None), (0, len(up)))], 0.7)
    return with_modules(model, layers)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["plain", "fp8 by rows"])
def test_loras_beside_the_weights_are_streamed_with_them(kind, bias):
    model = swap_layers(make_model(), kind)
    plain = run_resident(model)
    view = lora_view(model, bias=bias)
    expected = run_resident(view)
    assert not torch.equal(expected, plain)
    device = FakeDevice()
    residency = Residency(model, transformer_layout(model), device)
    for kept in (0, residency.most_bytes // 2, residency.most_bytes):
        residency.fit(kept)
        with residency.at_home():
            view = lora_view(model, bias=bias)
        assert torch.equal(run_streamed(residency, view, device, slots=2), expected)
        assert torch.equal(run_streamed(residency, model, device, slots=2), plain)
        assert device.live() == residency.kept_bytes
    assert device.faults == []


def test_everything_a_view_computes_with_is_streamed():
    model = make_model()
    view = lora_view(model, bias=True)
    device = FakeDevice()
    residency = Residency(model, transformer_layout(model), device)
    with StreamedModel(residency, view) as stream:
        for block in (*view.double_blocks, *view.single_blocks):
            parts = {part for part in block.modules() if isinstance(part, ModulationProjection)}
            apart = {inner for part in parts for inner in part.modules()}
            for held, modules in ((block, {*block.modules()} - apart), *((part, {*part.modules()}) for part in parts)):
                with stream.hold(held):
                    assert all(device.owns(tensor) for module in modules for tensor in tensors_of(module))
        with stream.hold(view.final_layer) as layer:
            assert all(device.owns(tensor) for module in layer.modules() for tensor in tensors_of(module))
        assert all(device.owns(tensor) for module in view.time_in.modules() for tensor in tensors_of(module))


def tensors_of(module) -> list[torch.Tensor]:
    """All tensors that a module refers to, registered or not."""
    registered = (module._parameters, module._buffers)
    return [leaf for leaf in tree_leaves((registered, vars(module))) if isinstance(leaf, torch.Tensor)]
