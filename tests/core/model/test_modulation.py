"""Modulation of a whole run, made before its first step: the same bits, without the weights that made it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hyvideo_nodes.hyvideo_core import pipeline
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.lora.factors import LowRank
from hyvideo_nodes.hyvideo_core.lora.layers import LoraLinear
from hyvideo_nodes.hyvideo_core.lora.read_parts import Change
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.modulation import ModulationProjection, VectorModulation
from hyvideo_nodes.hyvideo_core.model.modulation_table import ModulationTable
from hyvideo_nodes.hyvideo_core.model.transformer import first_modulated_input, walk_blocks
from hyvideo_nodes.hyvideo_core.pipeline import SamplingOptions, StartLatents, sample_latents
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear
from hyvideo_nodes.hyvideo_core.quantization.base import frozen
from hyvideo_nodes.hyvideo_core.quantization.gguf_blocks import GgufLinear
from hyvideo_nodes.hyvideo_core.step_cache import TeaCache
from hyvideo_nodes.hyvideo_core.text_encoders.conditioning import Conditioning
from torch import nn

TIMESTEPS = (1000.0, 812.5, 437.25, 90.0)


def make_model(dtype: torch.dtype = torch.float32, **changes) -> Transformer:
    model = Transformer(tiny(**changes)).to(dtype)
    for weight in model.parameters():
        weight.data.normal_(std=0.1)
    return model


def inputs(model: Transformer, timestep: float) -> dict:
    generator = torch.Generator().manual_seed(5)
    return {
        "latents": torch.randn(1, 4, 3, 4, 6, generator=generator),
        "timesteps": torch.tensor([timestep]),
        "text": [torch.randn(1, 5, 32, generator=generator)],
        "pooled": torch.randn(1, 24, generator=generator),
        "guidance": torch.tensor([6016.0]),
    }


def vectors(model: Transformer, timesteps=TIMESTEPS) -> list[torch.Tensor]:
    given = [inputs(model, timestep) for timestep in timesteps]
    return [model.embed_vector(one["timesteps"], one["pooled"], one["guidance"]) for one in given]


def make_table(model: Transformer, **options) -> ModulationTable:
    return ModulationTable(model.double_blocks, model.single_blocks, vectors(model), **options)


def projections(model: Transformer) -> list[ModulationProjection]:
    return [module for module in model.modules() if isinstance(module, ModulationProjection)]


def lose(model: Transformer) -> None:
    """Takes the weights that make modulation away."""
    for projection in projections(model):
        projection.to("meta")


def as_fp8(plain: nn.Linear) -> nn.Module:
    small = Fp8Linear.like(plain, torch.float8_e4m3fn, torch.bfloat16)
    weights = {"weight": plain.weight.to(torch.float8_e4m3fn), "bias": plain.bias.bfloat16()}
    small.load_state_dict(weights, assign=True)
    return small


def as_gguf(plain: nn.Linear) -> nn.Module:
    small = GgufLinear(plain.in_features, ((plain.out_features, "Q8_0"),), has_bias=True, compute_dtype=torch.float32)
    blocks = plain.in_features // 32
    scales = torch.full((plain.out_features, blocks, 1), 0.003, dtype=torch.half).view(torch.uint8)
    numbers = torch.randint(-127, 128, (plain.out_features, blocks, 32), dtype=torch.int8).view(torch.uint8)
    small.runs = nn.ParameterList([frozen(torch.cat((scales, numbers), dim=-1).flatten(1))])
    small.bias = plain.bias
    return small


def with_lora(plain: nn.Linear) -> nn.Module:
    factor = LowRank(torch.randn(3, plain.in_features), torch.randn(plain.out_features, 3), 0.1)
    return LoraLinear(plain, [(Change(factor), (0, plain.out_features))], 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_table_gives_the_bits_that_blocks_would(dtype):
    model = make_model(dtype)
    expected = [model(**inputs(model, timestep)) for timestep in TIMESTEPS]
    table = make_table(model)
    lose(model)
    for timestep, velocity in zip(TIMESTEPS, expected, strict=True):
        assert torch.equal(model(**inputs(model, timestep), modulation=table), velocity)


@pytest.mark.parametrize("store", [as_fp8, as_gguf, with_lora])
@torch.no_grad()
def test_weights_of_every_kind_are_used_as_they_are_stored(store):
    model = make_model()
    plain = model(**inputs(model, TIMESTEPS[2]))
    for projection in projections(model):
        projection.linear = store(projection.linear)
    expected = model(**inputs(model, TIMESTEPS[2]))
    assert not torch.equal(expected, plain)
    table = make_table(model)
    lose(model)
    assert torch.equal(model(**inputs(model, TIMESTEPS[2]), modulation=table), expected)


@torch.no_grad()
def test_an_unknown_vector_is_computed_from_the_blocks():
    model = make_model()
    given, seen = inputs(model, 500.0), []

    @contextmanager
    def hold(module):
        seen.append(module)
        yield

    table = make_table(model, hold=hold)
    assert seen == projections(model)  # each of them once, whatever the number of vectors
    assert torch.equal(model(**given, modulation=table), model(**given))
    assert seen == 2 * projections(model)


@torch.no_grad()
def test_nearly_the_same_vector_is_another_one():
    model = make_model()
    known = inputs(model, TIMESTEPS[0])
    near = known | {"guidance": torch.nextafter(known["guidance"], torch.tensor([0.0]))}
    table = make_table(model)
    assert torch.equal(model(**near, modulation=table), model(**near))


@torch.no_grad()
def test_two_timesteps_are_served_in_one_step():
    model = make_model()
    first, second = vectors(model)[1:3]
    table = make_table(model)
    lose(model)
    source = table(torch.cat((second, first)))
    for index, block in enumerate(model.double_blocks):
        both = source.double(index, block)
        for row, vec in enumerate((second, first)):
            alone = table(vec).double(index, block)
            for part, own in zip(both, alone, strict=True):
                assert all(torch.equal(a[row : row + 1], b) for a, b in zip(part, own, strict=True))
    shift = source.single(0, model.single_blocks[0]).shift
    assert shift.shape == (2, 1, model.config.hidden_size)


@torch.no_grad()
def test_a_table_costs_what_it_holds_and_repeated_vectors_nothing():
    model = make_model()
    config = model.config
    width = 3 * (4 * config.num_double_blocks + config.num_single_blocks) * config.hidden_size
    vecs = [*vectors(model), *vectors(model)]
    assert ModulationTable(model.double_blocks, model.single_blocks, vecs).num_bytes == len(TIMESTEPS) * width * 4


@pytest.mark.parametrize("changes", [{"num_double_blocks": 0}, {"num_single_blocks": 0}])
@torch.no_grad()
def test_every_member_of_the_family_has_its_table(changes):
    model = make_model(**changes)
    given = inputs(model, TIMESTEPS[0])
    assert torch.equal(model(**given, modulation=make_table(model)), model(**given))


@torch.no_grad()
def test_the_signal_of_step_caches_comes_from_the_table():
    model = make_model()
    table, signals = make_table(model), []

    def run(model, given):
        signals.append(first_modulated_input(model, given))
        return given.img

    model(**inputs(model, TIMESTEPS[0]), run=run)
    lose(model)
    model(**inputs(model, TIMESTEPS[0]), run=run, modulation=table)
    assert torch.equal(*signals)


def test_a_run_asks_for_the_weights_once_and_before_its_first_step(monkeypatch):
    model = make_model()
    start = StartLatents(samples=torch.zeros(2, 4, 3, 4, 6))
    prompts = [Conditioning(states=torch.randn(1, 5, 32), pooled=torch.randn(1, 24)) for _ in range(2)]
    options = SamplingOptions(steps=3, cfg=2.0)
    order = []

    @contextmanager
    def hold(module):
        order.append(module)
        yield

    def sample(**extra):
        cache, cpu = TeaCache(rel_l1_thresh=0.01), torch.device("cpu")
        return sample_latents(model, start, prompts, prompts[:1], options, device=cpu, step_cache=cache, **extra)[0]

    result = sample(hold=hold, run=walk_blocks(lambda: order.append("block")))
    assert order[: order.index("block")] == projections(model)
    assert {*order[order.index("block") :]} == {"block"}
    monkeypatch.setattr(pipeline, "_modulation_table", lambda *_: VectorModulation)
    assert torch.equal(sample(), result)
