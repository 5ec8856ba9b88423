"""Block formats: our decoders against those of the gguf package, and layers that are used in parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hyvideo_nodes.hyvideo_core.errors import CheckpointError
from hyvideo_nodes.hyvideo_core.quantization import gguf_blocks
from hyvideo_nodes.hyvideo_core.quantization.gguf_blocks import FORMATS, GgufLinear, dequantize, row_bytes

from .block_samples import HALVES, random_blocks


def reference(blocks: torch.Tensor, block: str) -> torch.Tensor:
    return torch.from_numpy(quants.dequantize(blocks.numpy(), GGMLQuantizationType[block]))


@pytest.mark.parametrize("block", FORMATS)
def test_random_blocks_have_the_bits_of_the_gguf_package(block):
    blocks = random_blocks(block, rows=8, width=1024)
    ours = dequantize(blocks, block)
    assert ours.shape == (8, 1024)
    assert ours.isfinite().all() and ours.std() > 0
    assert torch.equal(ours, reference(blocks, block).float())


@pytest.mark.parametrize("block", HALVES)
def test_every_bit_of_a_block_counts(block):
    """Flipping any one bit changes what comes out, as it does in the gguf package."""
    (one,) = random_blocks(block, rows=1, width=FORMATS[block].num_weights)
    bits = len(one) * 8
    flipped = one.repeat(bits, 1)
    flipped[torch.arange(bits), torch.arange(bits) // 8] ^= torch.tensor(2).pow(torch.arange(bits) % 8).to(torch.uint8)
    assert torch.equal(dequantize(flipped, block), reference(flipped, block))
    changed = (dequantize(flipped, block) != dequantize(one, block)).any(1)
    assert changed.float().mean() > 0.85  # a scale of zero hides the weights of its sub-block


@pytest.mark.parametrize("block", FORMATS)
def test_block_sizes_are_those_of_the_gguf_package(block):
    assert (FORMATS[block].num_weights, FORMATS[block].num_bytes) == GGML_QUANT_SIZES[GGMLQuantizationType[block]]


@pytest.mark.parametrize("block", ["Q8_0", "Q4_K", "Q6_K"])
def test_widening_in_chunks_changes_nothing(block, monkeypatch):
    blocks = random_blocks(block, rows=7, width=512)
    whole = dequantize(blocks, block, torch.bfloat16)
    monkeypatch.setattr(gguf_blocks, "CPU_CHUNK_ELEMENTS", 768)
    assert torch.equal(dequantize(blocks, block, torch.bfloat16), whole)


def test_weights_are_rounded_to_the_compute_dtype_once():
    blocks = random_blocks("Q5_K", rows=4, width=256)
    assert torch.equal(dequantize(blocks, "Q5_K", torch.float16), dequantize(blocks, "Q5_K").half())


def layer_of(*runs: tuple[str, int], width: int = 256, dtype: torch.dtype = torch.float32) -> GgufLinear:
    """A layer of random blocks: (format, rows) of each run."""
    layer = GgufLinear(width, tuple((rows, block) for block, rows in runs), has_bias=True, compute_dtype=dtype)
    for index, (block, rows) in enumerate(runs):
        layer.runs[index].data = random_blocks(block, rows, width, seed=index)
    layer.bias.data = torch.randn(layer.out_features).to(dtype)
    return layer


MIXED = (("Q4_K", 24), ("Q6_K", 8), ("F16", 5))


@pytest.mark.parametrize("runs", [(("Q3_K", 37),), MIXED], ids=["one format", "several formats"])
@pytest.mark.parametrize("rows", [None, (0, 37), (3, 9), (20, 30), (24, 37), (36, 37)])
def test_rows_are_those_of_the_whole_layer(runs, rows):
    layer, x = layer_of(*runs), torch.randn(2, 3, 256)
    assert (layer.in_features, layer.out_features) == (256, 37)
    weight = torch.cat([reference(part, block).float() for part, (block, _) in zip(layer.runs, runs, strict=True)])
    assert torch.equal(layer.dequantized(), weight)
    start, end = rows or (0, 37)
    assert torch.equal(layer(x, rows), F.linear(x, weight[start:end], layer.bias[start:end]))


def test_only_the_blocks_of_the_rows_are_widened(monkeypatch):
    widened = []
    original = gguf_blocks.dequantize
    monkeypatch.setattr(gguf_blocks, "dequantize", lambda *given: widened.append(given[0].shape) or original(*given))
    layer_of(*MIXED)(torch.randn(1, 256), (22, 26))
    assert widened == [(2, row_bytes(256, "Q4_K")), (2, row_bytes(256, "Q6_K"))]


def test_a_layer_computes_in_its_dtype_and_keeps_its_blocks():
    layer = layer_of(("Q8_0", 16), dtype=torch.bfloat16)
    assert layer(torch.randn(2, 256)).dtype == layer.compute_dtype == torch.bfloat16
    layer.to(torch.float16)  # as hosts do with whole models
    assert layer.runs[0].dtype == torch.uint8


def test_gradients_reach_the_input_of_a_layer_of_blocks():
    layer, x = layer_of(("Q4_0", 16)), torch.randn(2, 256, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantized().sum(0).expand(2, -1))


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(CheckpointError, match="rows of 100 weights cannot be Q4_K, whose blocks hold 256"):
        row_bytes(100, "Q4_K")
