"""Our transformer's forward with all weights streamed against the same with all of them resident, in one process.

    python3 dev.py bench streamed_forward

Hidden size 256, 2 + 4 blocks, float32, two threads: there a streamed block is one that was copied before. With --full
the 13B model in bf16 on a GPU that holds it, beside a second one on the host: streaming is to cost nothing from 480p
on. The last column is what the streamed call allocates at most there, to be held against `dev.py bench memory`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.benchmarks.duel import Bout, bouts, parse
from hyvideo_nodes.benchmarks.rivals import Call
from hyvideo_nodes.benchmarks.sizes import GB
from hyvideo_nodes.benchmarks.timing import interleaved
from hyvideo_nodes.hyvideo_core.memory import Residency, StreamedModel, open_device, transformer_layout
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.modulation import BlockHold
from hyvideo_nodes.hyvideo_core.model.modulation_table import ModulationTable
from hyvideo_nodes.hyvideo_core.model.transformer import walk_blocks

TITLE = f"{'tokens':>7} {'streamed ms':>12} {'resident ms':>12} {'ratio':>6}  equal {'allocated GB':>13}"


def forward(bout: Bout, model: Transformer, hold: BlockHold) -> Call:
    """A model call whose modulation was made before, as in every step of a run."""
    x = bout.inputs
    vec = model.embed_vector(x.timestep, x.pooled, x.guidance)
    table = ModulationTable(model.double_blocks, model.single_blocks, [vec], hold)
    run = walk_blocks(lambda: None, hold)
    return lambda: model(x.latents, x.timestep, [x.states], x.pooled, x.guidance, run=run, modulation=table)


def allocated(call: Call, resident: Transformer) -> str:
    """GB that a call allocates at most, without the weights of the resident model; not known on a CPU."""
    if not torch.cuda.is_available():
        return "-"
    torch.cuda.reset_peak_memory_stats()
    call()
    weights = sum(weight.nbytes for weight in resident.parameters())
    return f"{(torch.cuda.max_memory_allocated() - weights) / GB:.2f}"


def lines(bout: Bout, on_host: Transformer, rounds: int) -> Iterator[str]:
    """One line: milliseconds, streamed / resident, whether the bits are the same, the allocated peak."""
    device = open_device(bout.inputs.latents.device)
    residency = Residency(on_host, transformer_layout(on_host), device)
    with StreamedModel(residency, on_host) as streamed:
        theirs = forward(bout, on_host, streamed.hold)
        ours = forward(bout, bout.model, nullcontext)
        is_equal = torch.equal(theirs(), ours())
        peak = allocated(theirs, bout.model)
        slow, fast = interleaved([theirs, ours], rounds)
    milliseconds = f"{slow * 1e3:>12.1f} {fast * 1e3:>12.1f}"
    yield f"{bout.work.tokens:>7} {milliseconds} {slow / fast:>6.3f}  {is_equal!s:>5} {peak:>13}"


def main() -> None:
    """Prints one line per size."""
    options = parse(__doc__)
    print(TITLE)
    on_host: Transformer | None = None
    with torch.no_grad():
        for bout in bouts(options.full, alone=True):
            on_host = on_host or copy.deepcopy(bout.model).cpu()
            for line in lines(bout, on_host, options.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
