"""Quantized files with companions of any kind: one of our errors or a load, never another exception."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, CorruptFileError, HyVideoError, WrongModelError
from hyvideo_nodes.hyvideo_core.loading import build_transformer, check_complete, detect_transformer, open_checkpoint
from hyvideo_nodes.hyvideo_core.model import Transformer
from safetensors.torch import save_file

from .writers import PRECISIONS

LAYER = "double_blocks.0.img_attn_qkv"
OWN = ("weight", "weight_scale", "weight_scale_2", "scale_weight", "fp8_scale", "comfy_quant", "input_scale", "bias")
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int8, torch.int64)
SHAPES = ((), (0,), (1,), (2,), (3,), (192,), (192, 1), (192, 64), (192, 32), (192, 4), (256, 4), (1, 1, 1), (1, 192))
MARKS = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", None, 5, ["nvfp4"], {"a": 1})
fuzzed = settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def sound():
    torch.manual_seed(0)
    weights = {name: tensor.detach() for name, tensor in Transformer(tiny()).state_dict().items()}
    kinds = ("fp32", "scaled_fp8", "comfy_quant e4m3fn", "comfy_quant nvfp4")
    return {kind: PRECISIONS[kind].encode(weights) for kind in kinds}


def load(tensors, folder, metadata=None):
    path = folder / "m.safetensors"
    config = {"config": json.dumps({"rope_dim_list": [4, 6, 6]})}
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
        path,
        metadata=config | (metadata or {}),
    )
    detected = detect_transformer(open_checkpoint(path))
    check_complete(detected)
    return build_transformer(detected, dtype=torch.float32)


@fuzzed
@given(
    kind=st.sampled_from(["fp32", "scaled_fp8", "comfy_quant e4m3fn", "comfy_quant nvfp4"]),
    changes=st.lists(
        st.tuples(st.sampled_from(OWN), st.sampled_from(DTYPES), st.sampled_from(SHAPES)), min_size=1, max_size=3
    ),
    removed=st.sets(st.sampled_from(OWN), max_size=2),
)
def test_companions_of_any_dtype_and_shape(kind, changes, removed, sound, tmp_path):
    tensors = dict(sound[kind])
    for own in removed:
        tensors.pop(f"{LAYER}.{own}", None)
    for own, dtype, shape in changes:
        tensors[f"{LAYER}.{own}"] = torch.ones(shape).to(dtype)
    try:
        load(tensors, tmp_path)
    except HyVideoError as error:
        assert "m.safetensors" in str(error)


@fuzzed
@given(
    mark=st.sampled_from(MARKS),
    text=st.one_of(st.none(), st.binary(max_size=30), st.just(b"[" * 5000)),
    metadata=st.one_of(st.none(), st.text(max_size=20), st.just('{"layers":' * 3000)),
)
def test_marks_of_any_content(mark, text, metadata, sound, tmp_path):
    content = json.dumps({"format": mark}).encode() if text is None else text
    tensors = {**sound["comfy_quant e4m3fn"], f"{LAYER}.comfy_quant": torch.tensor(list(content), dtype=torch.uint8)}
    given_metadata = {} if metadata is None else {"_quantization_metadata": metadata}
    try:
        load(tensors, tmp_path, given_metadata)
    except HyVideoError as error:
        assert "m.safetensors" in str(error)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("own", [None, "scale_weight"])
def test_whole_numbers_in_place_of_weights_are_refused(own, dtype, sound, tmp_path):
    tensors = dict(sound["fp32"])
    tensors[f"{LAYER}.weight"] = torch.ones(192, 64, dtype=dtype)
    if own is not None:
        tensors[f"{LAYER}.{own}"] = torch.ones(())
    words = rf"stores weights as {str(dtype).removeprefix('torch.')}, .* is not read \(1 weight: {LAYER}.weight\)"
    with pytest.raises(WrongModelError, match=words):
        load(tensors, tmp_path)


def test_marks_as_long_as_weights_are_not_read(sound, tmp_path):
    tensors = {**sound["fp32"], f"{LAYER}.comfy_quant": torch.zeros(100_000, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=r"comfy_quant is not JSON: \[100000\] of uint8"):
        load(tensors, tmp_path)


@pytest.mark.parametrize("kind", ["scaled_fp8", "comfy_quant e4m3fn"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(number, kind, sound, tmp_path):
    tensors = dict(sound[kind])
    scale = next(f"{LAYER}.{own}" for own in OWN if "scale" in own and f"{LAYER}.{own}" in tensors)
    tensors[scale] = torch.full_like(tensors[scale], number)
    with pytest.raises(CorruptFileError, match=rf"m\.safetensors: the scale of {LAYER}\.weight holds NaN or infinity"):
        load(tensors, tmp_path)
