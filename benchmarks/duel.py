"""What the scripts share that let our transformer run against other people's: sizes, weights, lines of the table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from hyvideo_nodes.benchmarks.rivals import Call, Inputs, Rival, rivals_of
from hyvideo_nodes.benchmarks.sizes import SMALL_WORKLOADS, WORKLOADS, Workload
from hyvideo_nodes.benchmarks.timing import interleaved
from hyvideo_nodes.hyvideo_core.config import TransformerConfig
from hyvideo_nodes.hyvideo_core.model import Transformer

Kind = Literal["forward", "double", "single"]
INIT_STD = 0.02
TITLE = f"{'':>22} {'tokens':>7} {'ours ms':>10} {'theirs ms':>10} {'ratio':>6} {'ours GFLOP/s':>13}  difference"


@dataclass(frozen=True, slots=True)
class Bout:
    """One size with everybody who takes part."""

    work: Workload
    model: Transformer
    rivals: list[Rival]
    inputs: Inputs


def parse(description: str | None, *, rounds: int = 15) -> argparse.Namespace:
    """`rounds`, by default as given, and `full`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each call is timed")
    parser.add_argument("--full", action="store_true", help="the 13B model's sizes in bf16 on a GPU")
    options = parser.parse_args()
    if options.full and not torch.cuda.is_available():
        parser.error("--full needs a GPU, and PyTorch sees none; without it the small sizes run on the CPU")
    return options


def bouts(full: bool, *, alone: bool = False, **changes: int) -> Iterator[Bout]:
    """Every size, on the same random weights: small ones in float32 on two threads, or full ones in bf16 on a GPU.

    Args:
        alone: nobody takes part but us.
        changes: what differs from the configuration, such as the number of blocks.
    """
    torch.manual_seed(0)
    torch.set_num_threads(2)
    works = [work.with_config(**changes) for work in (WORKLOADS if full else SMALL_WORKLOADS)]
    model = random_transformer(works[0].config, "cuda" if full else "cpu", torch.bfloat16 if full else torch.float32)
    rivals = [] if alone else rivals_of(model)
    for work in works:
        yield Bout(work, model, rivals, Inputs.random(work, like=model.img_in.proj.weight))


def random_transformer(config: TransformerConfig, device: str, dtype: torch.dtype) -> Transformer:
    """Matrices with a deviation of 0.02 as in a trained model (zeros would be faster), norms of 1."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.to_empty(device=device)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=INIT_STD)
        else:
            torch.nn.init.zeros_(weight)
    for name, weight in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.ones_(weight)
    return model.eval().requires_grad_(False)


def lines(kind: Kind, bout: Bout, ours: Call, rounds: int) -> Iterator[str]:
    """A line of the table for every rival: milliseconds, ours / theirs, our FLOP rate, largest relative difference.

    Args:
        kind: what is timed.
        ours: its call.
    """
    flops = bout.work.step_flops if kind == "forward" else bout.work.block_flops
    theirs = {rival.name: getattr(rival, kind)(bout.inputs) for rival in bout.rivals}
    expected = ours()
    differences = [(call() - expected).abs().max() / expected.abs().max() for call in theirs.values()]
    mine, *others = interleaved([ours, *theirs.values()], rounds)
    for rival, other, difference in zip(theirs, others, differences, strict=True):
        yield (
            f"{f'{kind} / {rival}':>22} {bout.work.tokens:>7} {mine * 1e3:>10.1f} {other * 1e3:>10.1f} "
            f"{mine / other:>6.3f} {flops / mine / 1e9:>13.1f}  {float(difference):.1e}"
        )
