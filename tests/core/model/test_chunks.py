"""Blocks computed in parts: less memory, the same bits, the same training."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import TransformerConfig, tiny
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.chunks import LEAST_ROWS, LOW, BlockSettings, assembled, balanced
from hyvideo_nodes.hyvideo_core.model.elementwise import Elementwise
from hyvideo_nodes.hyvideo_core.model.modulation import ModulationProjection
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear

GRID = (3, 18, 22)
NUM_IMAGE = 3 * 9 * 11
NUM_TEXT = 71
# borders that divide neither the image nor the joint sequence, that cut text from image, that split heads unevenly
PARTS = [
    {"chunk_tokens": 64},
    {"chunk_tokens": 97},
    {"chunk_tokens": NUM_IMAGE},
    {"chunk_tokens": NUM_IMAGE + 1, "heads_at_once": 2},
    {"chunk_tokens": 130, "heads_at_once": 1},
]


def make_model(dtype: torch.dtype = torch.float32) -> Transformer:
    config = tiny()
    model = Transformer(config).to(dtype)
    for weight in model.parameters():
        weight.data.normal_(std=0.1)
    return model


def inputs(config: TransformerConfig, batch: int = 1) -> dict:
    return {
        "latents": torch.randn(batch, config.in_channels, *GRID),
        "timesteps": torch.full((batch,), 300.0),
        "text": [torch.randn(batch, NUM_TEXT, config.text_width)],
        "pooled": torch.randn(batch, config.pooled_width),
        "guidance": torch.full((batch,), 6000.0),
    }


@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 128, 129, 1000, 119_056])
@pytest.mark.parametrize("most", [1, 64, 100, 16_384])
def test_chunks_are_balanced_and_never_leave_a_short_tail(length, most):
    chunks = BlockSettings(chunk_tokens=most).chunks(length)
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert [chunk.start for chunk in chunks] == [sum(sizes[:index]) for index in range(len(sizes))]
    assert sum(sizes) == length
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(length, LEAST_ROWS)
    assert max(sizes) <= max(most, 2 * LEAST_ROWS)


def test_groups_of_heads_are_balanced():
    assert [group.stop - group.start for group in BlockSettings(heads_at_once=6).head_groups(24)] == [6] * 4
    assert balanced(5, 2) == [slice(0, 1), slice(1, 3), slice(3, 5)]
    assert BlockSettings().head_groups(24) == [slice(0, 24)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", PARTS, ids=str)
@torch.no_grad()
def test_parts_give_the_bits_of_the_whole(dtype, parts):
    model = make_model(dtype)
    given = inputs(model.config)
    assert torch.equal(model(**given, settings=BlockSettings(**parts)), model(**given))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@torch.no_grad()
def test_parts_differ_by_the_order_of_sums_on_a_gpu(dtype, tolerance):
    with torch.device("cuda"):
        model = make_model(dtype)
        given = inputs(model.config)
        whole = model(**given).float()
        for parts in PARTS:
            result = model(**given, settings=BlockSettings(**parts)).float()
            assert (result - whole).norm() <= tolerance * whole.norm()


@torch.no_grad()
def test_parts_of_a_batch_give_the_bits_of_the_whole():
    model = make_model()
    given = inputs(model.config, batch=2)
    assert torch.equal(model(**given, settings=BlockSettings(chunk_tokens=97, heads_at_once=2)), model(**given))


@torch.no_grad()
def test_weights_in_fp8_are_used_by_rows():
    model = make_model()
    for block in model.single_blocks:
        small = Fp8Linear.like(block.linear1, torch.float8_e4m3fn, torch.float32)
        small.load_state_dict(
            {"weight": block.linear1.weight.to(torch.float8_e4m3fn), "bias": block.linear1.bias}, assign=True
        )
        block.linear1 = small
    given = inputs(model.config)
    assert torch.equal(model(**given, settings=BlockSettings(chunk_tokens=97, heads_at_once=1)), model(**given))


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_a_training_step_in_parts_has_the_gradients_of_the_whole(parts):
    model = make_model()
    given = inputs(model.config)
    model(**given).square().mean().backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        without = model(**given)
    velocity = model(**given, settings=BlockSettings(**parts))
    assert torch.equal(velocity, without)
    velocity.square().mean().backward()
    for name, weight in model.named_parameters():
        # sums over tokens are taken chunk by chunk, so their order differs
        assert (weight.grad - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-12, name


@torch.no_grad()
def test_attention_sees_all_tokens_of_some_heads():
    model = make_model()
    seen = Counter()

    def attend(q, k, v):
        if q.shape[1] > NUM_TEXT:  # the refiner sees the text alone
            seen[tuple(q.shape)] += 1
            assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
        return v.clone()

    model(**inputs(model.config), attention=attend, settings=BlockSettings(chunk_tokens=97, heads_at_once=1))
    config = model.config
    blocks = config.num_double_blocks + config.num_single_blocks
    assert seen == {(1, NUM_IMAGE + NUM_TEXT, 1, config.head_size): blocks * config.num_heads}


@torch.no_grad()
def test_both_streams_stay_in_one_buffer():
    model = make_model()
    sizes = Counter()

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ == "cat":
                sizes[(len(args[0]), args[0][0].shape[1] if args[0][0].ndim == 3 else 0)] += 1
            return func(*args, **(kwargs or {}))

    with Sizes():
        model(**inputs(model.config))
    # the only one of image and text is that before the blocks
    assert sizes[(2, NUM_IMAGE)] == 1


@torch.no_grad()
def test_every_kernel_of_the_table_is_used_and_replaceable():
    plain, used = Elementwise(), Counter()

    def counting(name):
        def call(*args):
            used[name] += 1
            return getattr(plain, name)(*args)

        return call

    names = ("modulated_norm", "gated_residual", "gated_norm", "normed_heads")
    model = make_model()
    given = inputs(model.config)
    settings = BlockSettings(kernels=Elementwise(**{name: counting(name) for name in names}))
    assert torch.equal(model(**given, settings=settings), model(**given))
    double, single = model.config.num_double_blocks, model.config.num_single_blocks
    assert used == {
        "modulated_norm": 2 * double + single,
        "gated_norm": 2 * double,
        "gated_residual": 2 * double + single,
        "normed_heads": 2 * double + single,
    }


@torch.no_grad()
def test_the_low_mode_only_changes_memory():
    model = make_model()
    given = inputs(model.config)
    assert torch.equal(model(**given, settings=LOW), model(**given))


def test_a_lone_piece_is_not_copied():
    piece = torch.randn(1, 5, 3)
    with torch.no_grad():
        assert assembled(iter([piece]), 5) is piece
    assert assembled(iter([piece]), 5) is piece


def test_modulation_is_no_business_of_the_parts():
    calls = []
    model = make_model()
    for module in model.modules():
        if isinstance(module, ModulationProjection):
            module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**inputs(model.config), settings=BlockSettings(chunk_tokens=64, heads_at_once=1))
    assert len(calls) == 2 * model.config.num_double_blocks + model.config.num_single_blocks
