"""Compiled blocks compute what blocks compute, and one compiled form serves all of a kind."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch
from hyvideo_nodes.hyvideo_core.attention import sdpa
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.kernels.compiled import CompiledBlocks
from hyvideo_nodes.hyvideo_core.model.transformer import Transformer, walk_blocks

CPU = torch.device("cpu")
CONFIG = tiny()
LINE = 1  # the trial
GRAPHS_OF_BOTH_KINDS = 2 if torch.__version__ >= "2.13" else 4  # older compilers break them once


class Graphs:
    """A compiler that counts what it is given and leaves it as it is."""

    def __init__(self, most: int = 100) -> None:
        self.count = 0
        self.most = most

    def __call__(self, graph, example_inputs):
        self.count += 1
        if self.count > self.most:
            raise KeyError("nothing compiles this\nat all")
        return graph.forward


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False)


def inputs(num_text: int = 5):
    random = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(1, CONFIG.in_channels, 3, 8, 8, generator=random),
        "timesteps": torch.tensor([500.0]),
        "text": [torch.randn(1, num_text, CONFIG.text_width, generator=random)],
        "pooled": torch.randn(1, CONFIG.pooled_width, generator=random),
        "guidance": torch.tensor([6000.0]),
    }


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@torch.inference_mode()
def test_one_graph_for_each_kind_of_block_and_not_a_bit_of_difference(model):
    graphs = Graphs()
    run = walk_blocks(lambda: None, call=CompiledBlocks(CPU, graphs))
    for num_text in (5, 5, 9, 12):  # the second length compiles for all lengths
        given = inputs(num_text)
        assert torch.equal(model(**given, run=run), model(**given))
        assert graphs.count <= LINE + GRAPHS_OF_BOTH_KINDS * (1 if num_text == 5 else 2)
    assert CONFIG.num_double_blocks > 1
    assert CONFIG.num_single_blocks > 1


@torch.inference_mode()
def test_weights_may_come_and_go_between_blocks(model):
    """As streaming brings them: another memory for each block, nothing in it outside of the hold."""
    graphs = Graphs()
    expected = model(**inputs())
    stored = {block: [p.data for p in block.parameters()] for block in (*model.double_blocks, *model.single_blocks)}

    @contextmanager
    def hold(block):
        for parameter, data in zip(block.parameters(), stored[block], strict=True):
            parameter.data = data.clone()
        yield
        for parameter, data in zip(block.parameters(), stored[block], strict=True):
            parameter.data.fill_(float("nan"))
            parameter.data = data

    run = walk_blocks(lambda: None, hold, CompiledBlocks(CPU, graphs))
    for _ in range(2):
        assert torch.equal(model(**inputs(), run=run), expected)
    assert graphs.count <= LINE + GRAPHS_OF_BOTH_KINDS < LINE + len(stored)


@torch.inference_mode()
def test_attention_that_nothing_can_compile_is_called_from_outside(model):
    calls = []

    @torch.compiler.disable
    def attention(q, k, v):
        calls.append(q.shape[1])
        return sdpa(q, k, v)

    run = walk_blocks(lambda: None, call=CompiledBlocks(CPU, Graphs()))
    expected = model(**inputs(), attention=attention)
    number = len(calls)
    assert torch.equal(model(**inputs(), run=run, attention=attention), expected)
    assert len(calls) == 2 * number


@torch.inference_mode()
@pytest.mark.parametrize("most", [0, 1, 2], ids=["nothing", "a line only", "double blocks only"])
def test_without_a_compiler_blocks_compute_as_they_are_written_after_one_line(model, caplog, most):
    run = walk_blocks(lambda: None, call=CompiledBlocks(CPU, Graphs(most)))
    for _ in range(2):
        assert torch.equal(model(**inputs(), run=run), model(**inputs()))
    assert len(warnings(caplog)) == 1
    assert "nothing compiles this" in warnings(caplog)[0]
    assert "\n" not in warnings(caplog)[0]
    assert warnings(caplog)[0].endswith("blocks compute as they are written")


def test_a_python_that_compiles_nothing_is_known_before_the_first_block(model, monkeypatch, caplog):
    def unsupported(*args, **kwargs):
        raise RuntimeError("Dynamo is not supported here")

    monkeypatch.setattr(torch, "compile", unsupported)
    call = CompiledBlocks(CPU)
    line = "torch.compile does not work here (RuntimeError: Dynamo is not supported here); blocks compute as they are"
    assert warnings(caplog) == [line + " written"]
    assert call(model.double_blocks[0]) is model.double_blocks[0]


@torch.no_grad()
def test_what_was_begun_is_not_done_twice(model):
    """A compiler that gives up after tokens were written to: nothing could be right after that."""
    tokens = []

    def compiler(graph, example_inputs):
        for x in tokens:
            x[:, :1] += 1
            raise KeyError("too late")
        return graph.forward

    def remember(model, inputs):
        tokens.append(inputs.img)
        return compiled(model, inputs)

    compiled = walk_blocks(lambda: None, call=CompiledBlocks(CPU, compiler))
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="too late"):
        model(**inputs(), run=remember)


@torch.inference_mode()
def test_errors_of_a_block_itself_are_its_own(model, caplog):
    def broken(q, k, v):
        raise torch.OutOfMemoryError("full")

    run = walk_blocks(lambda: None, call=CompiledBlocks(CPU, Graphs()))
    with pytest.raises(torch.OutOfMemoryError):
        model(**inputs(), run=run, attention=torch.compiler.disable(broken))
