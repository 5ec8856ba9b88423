"""Attention kernels and fused element-wise kernels against PyTorch's own: interleaved, medians, in one process.

    python3 dev.py bench kernels

Two heads of 128 in float32 on two threads; with --full the 13B model's sizes in bf16 on a GPU. A kernel that is not
installed, or does not pass its check, has a line that says why. The error is that of 64 rows against float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.benchmarks.duel import parse
from hyvideo_nodes.benchmarks.sizes import SMALL_WORKLOADS, WORKLOADS, Workload
from hyvideo_nodes.benchmarks.timing import interleaved
from hyvideo_nodes.hyvideo_core.attention import CHOICES, AttentionBackend, sdpa
from hyvideo_nodes.hyvideo_core.attention.kernels import Kernel
from hyvideo_nodes.hyvideo_core.attention.self_check import Site as AttentionSite
from hyvideo_nodes.hyvideo_core.attention.self_check import check, error_of
from hyvideo_nodes.hyvideo_core.fallback import attempt
from hyvideo_nodes.hyvideo_core.kernels import choose_kernels
from hyvideo_nodes.hyvideo_core.kernels.choice import KITCHEN, TRITON
from hyvideo_nodes.hyvideo_core.kernels.self_check import SAMPLES, Site
from hyvideo_nodes.hyvideo_core.model.elementwise import PLAIN, Elementwise
from torch import Tensor

KERNELS = {kernel.name: kernel for kernels in CHOICES.values() for kernel in kernels}
Attention = dict[str, AttentionBackend]


def working_attention(like: Tensor, head_size: int) -> Attention:
    """Those kernels that are installed and right."""
    tried = {
        name: attempt(partial(checked, kernel, like, head_size), name, "left out") for name, kernel in KERNELS.items()
    }
    return {name: attention for name, attention in tried.items() if attention is not None}


def checked(kernel: Kernel, like: Tensor, head_size: int) -> AttentionBackend:
    """A kernel's function; raises if it is not installed or not right."""
    attention = kernel.load()
    wrong = check(attention, AttentionSite(like.device, like.dtype, head_size), is_lossy=kernel.is_lossy)
    if wrong is not None:
        raise ArithmeticError(wrong)
    return attention


def attention_lines(work: Workload, kernels: Attention, like: Tensor, rounds: int) -> Iterator[str]:
    """One line for each kernel: its time, PyTorch's, their ratio, its rate, its error."""
    shape = (1, work.tokens, 3, work.config.num_heads, work.config.head_size)
    q, k, v = torch.randn(shape, device=like.device, dtype=like.dtype).unbind(2)
    for name, attention in kernels.items():
        mine, own = interleaved([partial(attention, q, k, v), partial(sdpa, q, k, v)], rounds)
        rate, error = work.block_attention_flops / mine / 1e9, error_of(attention(q, k, v), q, k, v)
        yield f"{times(name, work, mine, own)} {rate:>13.1f}  {error:.2e}"


def elementwise_lines(work: Workload, kernels: dict[str, Elementwise], like: Tensor, rounds: int) -> Iterator[str]:
    """One line for each function and library: its time, PyTorch's, their ratio."""
    for library, chosen in kernels.items():
        for function, sample in SAMPLES.items():
            plain, fused = getattr(PLAIN, function), getattr(chosen, function)
            if fused is not plain:
                inputs = sample(site_of(work, like), batch=1, tokens=work.tokens)
                mine, own = interleaved([partial(fused, *inputs), partial(plain, *inputs)], rounds)
                yield times(f"{library} {function}", work, mine, own)


def site_of(work: Workload, like: Tensor) -> Site:
    """Where and in what the element-wise functions are timed."""
    return Site(like.device, like.dtype, work.config.hidden_size, work.config.num_heads, work.config.head_size)


def times(name: str, work: Workload, mine: float, own: float) -> str:
    """The part of a line that both tables have."""
    return f"{name:>28} {work.tokens:>7} {mine * 1e3:>10.3f} {own * 1e3:>10.3f} {mine / own:>6.3f}"


def main() -> None:
    """Prints both tables."""
    options = parse(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    like = torch.empty(0, device="cuda", dtype=torch.bfloat16) if options.full else torch.empty(0)
    works = WORKLOADS if options.full else SMALL_WORKLOADS
    with torch.inference_mode():
        attention = working_attention(like, works[0].config.head_size)
        kernels = {library: choose_kernels(library, site_of(works[0], like)) for library in (KITCHEN, TRITON)}
        print(f"{'':>28} {'tokens':>7} {'its ms':>10} {'own ms':>10} {'ratio':>6} {'its GFLOP/s':>13}  error")
        for work in works:
            for line in attention_lines(work, attention, like, options.rounds):
                print(line, flush=True)
        for work in works:
            for line in elementwise_lines(work, kernels, like, options.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
