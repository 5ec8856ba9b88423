"""The transformer's own laws, beyond parity."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import TransformerConfig, tiny
from hyvideo_nodes.hyvideo_core.errors import ConditioningError, ConfigError, ShapeError
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.linear import Linear
from hyvideo_nodes.hyvideo_core.model.transformer import run_blocks, walk_blocks
from hyvideo_nodes.hyvideo_core.quantization import FP8_DTYPES, Fp8Linear


def inputs(config: TransformerConfig, batch: int = 1) -> dict:
    return {
        "latents": torch.randn(batch, config.in_channels, 3, 4, 6),
        "timesteps": torch.full((batch,), 300.0),
        "text": [torch.randn(batch, 5, config.text_width)],
        "pooled": None if config.pooled_width is None else torch.randn(batch, config.pooled_width),
        "guidance": torch.full((batch,), 6000.0) if config.has_guidance else None,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_double_blocks": 0},
        {"num_single_blocks": 0},
        {"num_double_blocks": 0, "num_single_blocks": 0},
        {"pooled_width": None},
        {"has_guidance": False},
        {"in_channels": 9},
        {"num_refiner_blocks": 0},
        {"mlp_ratio": 2.0},
        {"patch_size": (1, 1, 1)},
    ],
)
@torch.no_grad()
def test_every_member_of_the_family_runs(changes):
    config = tiny(**changes)
    given = inputs(config)
    assert Transformer(config)(**given).shape == (1, config.out_channels, *given["latents"].shape[2:])


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet():
    config = tiny()
    model, given = Transformer(config), inputs(config, 2)
    whole = model(**given)
    single = model(**{key: value[:1] if key != "text" else [value[0][:1]] for key, value in given.items()})
    assert torch.allclose(whole[:1], single, atol=1e-6)


def test_gradients_reach_every_weight_and_match_the_forward_without_them():
    config = tiny()
    model, given = Transformer(config), inputs(config)
    with torch.no_grad():
        expected = model(**given)
    velocity = model(**given)
    assert torch.equal(velocity, expected)
    velocity.square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@torch.no_grad()
def test_inputs_are_never_written_to():
    config = tiny()
    model, given = Transformer(config), inputs(config)
    before = given["latents"].clone(), given["text"][0].clone()
    model(**given)
    assert torch.equal(given["latents"], before[0])
    assert torch.equal(given["text"][0], before[1])


@torch.no_grad()
def test_the_runner_is_asked_before_every_block():
    config = tiny()
    model, given = Transformer(config), inputs(config)
    seen = []
    assert torch.equal(model(**given, run=walk_blocks(lambda: seen.append(1))), model(**given, run=run_blocks))
    assert len(seen) == config.num_double_blocks + config.num_single_blocks


@torch.no_grad()
def test_every_block_is_held_while_it_computes_and_only_one_at_a_time():
    config = tiny()
    model, given = Transformer(config), inputs(config)
    expected, held, seen = model(**given), [], []

    @contextmanager
    def hold(block):
        held.append(block)
        yield
        held.remove(block)

    for block in (*model.double_blocks, *model.single_blocks):
        block.register_forward_pre_hook(lambda block, _: seen.append(held == [block]))
    assert torch.equal(model(**given, run=walk_blocks(lambda: None, hold)), expected)
    assert seen == [True] * (config.num_double_blocks + config.num_single_blocks)


@torch.no_grad()
def test_the_attention_backend_is_the_callers_choice():
    config = tiny()
    model, given = Transformer(config), inputs(config)
    shapes = []

    def attend(q, k, v):
        shapes.append(tuple(q.shape))
        return torch.zeros_like(v)

    model(**given, attention=attend)
    joint = 3 * 2 * 3 + 5
    assert shapes.count((1, joint, config.num_heads, config.head_size)) == 5
    assert shapes.count((1, 5, config.num_heads, config.head_size)) == config.num_refiner_blocks


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"latents": torch.randn(1, 5, 3, 4, 6)}, ShapeError, "have 5 channels, this model takes 4"),
        ({"latents": torch.randn(1, 4, 3, 5, 6)}, ShapeError, "multiples of 16 pixels"),
        ({"text": [torch.randn(1, 5, 7)]}, ConditioningError, "width 7, this model takes one source of width 32"),
        ({"text": []}, ConditioningError, "width none"),
        ({"pooled": None}, ConditioningError, "needs a pooled text vector"),
        ({"guidance": None}, ConditioningError, "set embedded_guidance_scale"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words):
    config = tiny()
    with pytest.raises(error, match=words):
        Transformer(config)(**(inputs(config) | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 3}, "not a multiple of 3 heads"),
        ({"rope_axes": (4, 6, 8)}, r"must be even and add up to the head size 16"),
        ({"rope_axes": (2, 7, 7)}, r"must be even"),
    ],
)
def test_a_contradicting_configuration_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**change)


@pytest.mark.parametrize("dtype", FP8_DTYPES)
def test_fp8_layers_compute_with_the_widened_weight(dtype):
    plain = Linear(8, 12)
    small = Fp8Linear.like(plain, dtype, torch.float32)
    small.load_state_dict({"weight": plain.weight.to(dtype), "bias": plain.bias}, assign=True)
    x = torch.randn(2, 3, 8)
    expected = torch.nn.functional.linear(x, plain.weight.to(dtype).float(), plain.bias)
    assert torch.equal(small(x), expected)
    assert small.weight.dtype == dtype


@pytest.mark.parametrize("kind", ["plain", "fp8"])
def test_rows_of_a_fused_layer_are_the_rows_of_the_whole(kind):
    layer = Linear(8, 12)
    if kind == "fp8":
        small = Fp8Linear.like(layer, torch.float8_e4m3fn, torch.float32)
        small.load_state_dict({"weight": layer.weight.to(torch.float8_e4m3fn), "bias": layer.bias}, assign=True)
        layer = small
    x = torch.randn(2, 3, 8)
    parts = torch.cat((layer(x, rows=(0, 5)), layer(x, rows=(5, 12))), dim=-1)
    assert torch.allclose(parts, layer(x), atol=1e-6)


@torch.no_grad()
def test_the_model_computes_in_its_weights_dtype_whatever_comes_in():
    config = tiny()
    model = Transformer(config).to(torch.bfloat16)
    given = inputs(config)
    given["text"] = [given["text"][0].half()]
    assert model(**given).dtype == torch.bfloat16
