"""Loading speed against safetensors.torch.load_file + load_state_dict: interleaved, medians, in one process.

    python3 dev.py bench loading_speed

Both go from the path of a file of bf16 weights, which the system has in its cache, to a model of which every page has
been read once, since weights that stay mapped would else cost nothing. Theirs makes the model without initializing it;
ours takes its sizes from the header and checks that nothing is missing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alias"))

import torch
from hyvideo_nodes.benchmarks.timing import interleaved
from hyvideo_nodes.hyvideo_core.config import TransformerConfig
from hyvideo_nodes.hyvideo_core.loading import build_transformer, detect_transformer, open_checkpoint
from hyvideo_nodes.hyvideo_core.model import Transformer
from safetensors.torch import load_file, save_file

CONFIG = TransformerConfig(
    hidden_size=1024,
    num_heads=8,
    num_double_blocks=3,
    num_single_blocks=4,
    rope_axes=(16, 56, 56),
    text_width=1024,
    pooled_width=768,
    has_guidance=True,
)
PAGE_BYTES = 4096


def write_weights(path: Path) -> int:
    """A file of random bf16 weights under official names; gives its size in bytes."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(CONFIG).state_dict().items()}
    save_file({name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}, path)
    return path.stat().st_size


def touch(model: torch.nn.Module) -> None:
    """Reads something from every page of a model's weights."""
    for tensor in model.state_dict().values():
        tensor.view(torch.uint8).flatten()[::PAGE_BYTES].sum()


def make_calls(path: Path, dtype: torch.dtype) -> tuple[Callable[[], None], Callable[[], None]]:
    """Loading of the file as `dtype`, ours and theirs."""

    def ours() -> None:
        touch(build_transformer(detect_transformer(open_checkpoint(path)), dtype=dtype))

    def theirs() -> None:
        with torch.device("meta"):
            model = Transformer(CONFIG).to(dtype)
        model.to_empty(device="cpu").load_state_dict(load_file(path))
        touch(model)

    return ours, theirs


def main() -> None:
    """Prints one line for each dtype: gigabytes of the file a second, both ways, and the ratio ours / theirs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "weights.safetensors"
        num_bytes = write_weights(path)
        print(f"{num_bytes / 1e6:.0f} MB of bf16, {rounds} rounds")
        print(f"{'to':>9} {'ours GB/s':>10} {'theirs GB/s':>12} {'ratio':>6}")
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            ours, theirs = (num_bytes / 1e9 / seconds for seconds in interleaved(make_calls(path, dtype), rounds))
            name = str(dtype).removeprefix("torch.")
            print(f"{name:>9} {ours:>10.2f} {theirs:>12.2f} {ours / theirs:>6.2f}")


if __name__ == "__main__":
    main()
