"""Products in fp8: the numbers of the reference formula, only when asked for, never where a card lacks them."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear, use_fp8_matmul
from hyvideo_nodes.hyvideo_core.quantization import fp8_matmul as module
from hyvideo_nodes.hyvideo_core.quantization.fp8_matmul import fits_kernels, scaled_product

E4M3 = torch.float8_e4m3fn
CPU = torch.device("cpu")


def cpu_has_the_kernel() -> bool:
    small = torch.ones(16, 16).to(E4M3)
    try:
        torch._scaled_mm(small, small.t(), scale_a=torch.ones(()), scale_b=torch.ones(()), out_dtype=torch.float32)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


needs_kernel = pytest.mark.skipif(not cpu_has_the_kernel(), reason="this PyTorch multiplies in fp8 on GPUs only")


def make_layer(scaling, in_features=64, out_features=48, dtype=torch.float32, weight_dtype=E4M3):
    layer = Fp8Linear(
        in_features,
        out_features,
        has_bias=True,
        weight_dtype=weight_dtype,
        compute_dtype=dtype,
        scaled=scaling != "none",
    )
    wide = torch.randn(out_features, in_features) * torch.logspace(-2, 0, out_features)[:, None]
    scale = {"none": 1.0, "one": wide.abs().max() / 448, "rows": wide.abs().amax(1, keepdim=True) / 448}[scaling]
    layer.weight = torch.nn.Parameter((wide / scale).to(weight_dtype), requires_grad=False)
    layer.bias = torch.nn.Parameter(torch.randn(out_features).to(dtype), requires_grad=False)
    if scaling != "none":
        layer.scale = torch.as_tensor(scale).reshape(-1, 1) if scaling == "rows" else torch.as_tensor(scale).reshape(1)
    return layer


def rounded(x):
    """x as one scale and e4m3 numbers give it back."""
    scale = x.abs().max() / 448
    return (x / scale).to(E4M3).float() * scale


@needs_kernel
@pytest.mark.parametrize("rows", [None, (16, 48)])
@pytest.mark.parametrize("weight_dtype", [E4M3, torch.float8_e5m2])
@pytest.mark.parametrize("scaling", ["none", "one", "rows"])
def test_equals_the_reference_on_rounded_inputs(scaling, weight_dtype, rows):
    layer = make_layer(scaling, weight_dtype=weight_dtype)
    x = torch.randn(2, 5, 64)
    expected = layer(rounded(x), rows)
    layer.multiply = scaled_product
    found = layer(x, rows)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_near_the_reference(dtype):
    layer = make_layer("rows", dtype=dtype)
    x = (torch.randn(2, 5, 64) * 3).to(dtype)
    expected = layer(x).float()
    layer.multiply = scaled_product
    found = layer(x)
    assert found.dtype == dtype
    assert (found.float() - expected).norm() / expected.norm() < 0.05


@needs_kernel
@pytest.mark.parametrize("size", [0.0, 1e-30, 3e4])
def test_inputs_of_any_size_stay_finite(size):
    layer = make_layer("one")
    layer.multiply = scaled_product
    x = torch.randn(4, 64) * size
    expected = torch.nn.functional.linear(x, layer.dequantized(), layer.bias)
    assert torch.allclose(layer(x), expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


@needs_kernel
def test_one_nan_is_not_hidden():
    layer = make_layer("one")
    layer.multiply = scaled_product
    x = torch.randn(4, 64)
    x[2, 3] = torch.nan
    assert layer(x).isnan().any()


def test_without_the_option_weights_are_widened():
    layer = make_layer("one")
    assert layer.multiply is None
    x = torch.randn(3, 64)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.dequantized(), layer.bias))


def test_a_device_without_it_keeps_widening_and_says_so_once(caplog):
    model = torch.nn.Sequential(make_layer("one"), make_layer("rows", in_features=48))
    before = model[1](model[0](torch.ones(1, 64)))
    with caplog.at_level("INFO"):
        assert use_fp8_matmul(model, CPU) == 0
    assert len(caplog.records) == 1
    assert "cpu does not multiply in fp8 (NVIDIA from compute capability 8.9 on does)" in caplog.text
    assert torch.equal(model[1](model[0](torch.ones(1, 64))), before)


def test_layers_are_left_alone_that_the_file_or_the_kernels_exclude(monkeypatch):
    marked = make_layer("one")
    marked.is_full_precision = True
    odd = make_layer("one", out_features=40)
    wide = make_layer("one", weight_dtype=torch.float32)
    plain = torch.nn.Linear(64, 64)
    fitting = make_layer("rows")
    model = torch.nn.ModuleList((marked, odd, wide, plain, fitting))
    monkeypatch.setattr(module, "has_fp8_matmul", lambda device: True)
    monkeypatch.setattr(module, "try_product", lambda *site: True)
    assert [fits_kernels(layer) for layer in (marked, odd, wide, fitting)] == [False, False, False, True]
    assert use_fp8_matmul(model, CPU) == 1
    assert fitting.multiply is scaled_product
    assert marked.multiply is odd.multiply is None


def raising(*args, **kwargs):
    raise NotImplementedError("no kernel in this build\nof PyTorch")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (raising, "NotImplementedError: no kernel in this build"),
        (lambda x, weight, *_, **__: (x.float() @ weight.float()) * 1.3, "against float32"),
        (lambda x, weight, *_, **__: torch.full((len(x), weight.shape[1]), torch.nan), "nan%"),
    ],
    ids=["missing", "wrong numbers", "NaN"],
)
def test_kernels_that_do_not_work_are_found_before_a_layer_uses_them(monkeypatch, caplog, kernel, reason):
    monkeypatch.setattr(module, "has_fp8_matmul", lambda device: True)
    monkeypatch.setattr(torch, "_scaled_mm", kernel)
    layer = make_layer("rows")
    assert use_fp8_matmul(layer, CPU) == 0
    assert layer.multiply is None
    assert len(caplog.records) == 1
    assert reason in caplog.text
    assert "fp8 weights are widened instead" in caplog.text


@needs_kernel
@pytest.mark.parametrize("weight_dtype", [E4M3, torch.float8_e5m2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_that_work_pass_their_trial(weight_dtype, dtype):
    assert module.try_product(CPU, weight_dtype, dtype)


@pytest.mark.parametrize(
    ("capability", "is_hip", "has_kernel", "expected"),
    [
        ((8, 9), False, True, True),
        ((9, 0), False, True, True),
        ((8, 6), False, True, False),
        ((12, 0), True, True, False),
        ((9, 0), False, False, False),
    ],
)
def test_which_cards_have_it(capability, is_hip, has_kernel, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", "6.2" if is_hip else None)
    if not has_kernel:
        monkeypatch.delattr(torch, "_scaled_mm")
    assert module.has_fp8_matmul(torch.device("cuda")) is expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")
def test_the_card_gives_the_same_numbers_as_widening():
    if not module.has_fp8_matmul(torch.device("cuda")):
        pytest.skip("a card without products in fp8")
    for scaling in ("none", "one", "rows"):
        layer = make_layer(scaling, in_features=256, out_features=512, dtype=torch.bfloat16).cuda()
        x = torch.randn(37, 256, device="cuda", dtype=torch.bfloat16)
        expected = layer(x).float()
        assert use_fp8_matmul(layer, torch.device("cuda")) == 1
        assert (layer(x).float() - expected).norm() / expected.norm() < 0.05
