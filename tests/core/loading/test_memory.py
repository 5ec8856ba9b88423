"""Loading takes the memory of the model and little more; measured in a process of its own, on a file of 300 MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import TransformerConfig
from hyvideo_nodes.hyvideo_core.errors import CorruptFileError
from hyvideo_nodes.hyvideo_core.loading.mapping import mapped
from hyvideo_nodes.hyvideo_core.model import Transformer
from safetensors.torch import save_file

from .writers import Blocks, Stored, gguf

ROOT = Path(__file__).resolve().parents[3]
MIB = 2**20
LIMIT_BYTES = 128 * MIB
"""A model of 25 GB has layers of 130 MB: what loading needs besides the model is about one of them."""

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from /proc")
needs_pickles = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6),
    reason="pickles are only opened on PyTorch 2.6 or newer",
)

CHILD = """
import json, sys
from pathlib import Path
import torch
from hyvideo_nodes.hyvideo_core.loading import build_transformer, detect_transformer, open_checkpoint

torch.set_num_threads(1)

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":"))

path, dtype, make_fp8 = Path(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3] == "True"
detected = detect_transformer(open_checkpoint(path))
small = build_transformer(detect_transformer(open_checkpoint(Path(sys.argv[4]))), dtype=dtype, make_fp8=make_fp8)
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
model = build_transformer(detected, dtype=dtype, make_fp8=make_fp8)
peak = kilobytes("VmHWM")
state = model.state_dict()
weight = model.single_blocks[0].linear2.dequantized()
print(json.dumps({
    "peak": (peak - before) * 1024,
    "model": sum(tensor.nbytes for tensor in state.values()),
    "sum": float(weight.float().sum()),
}))
"""

SAVING = """
import json, sys
from pathlib import Path
import torch
from hyvideo_nodes.hyvideo_core.loading import save_as

torch.set_num_threads(1)

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":"))

source, small, target, precision = sys.argv[1:]
save_as(Path(small), Path(target), dialect="diffusers", precision=precision)
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
save_as(Path(source), Path(target), dialect="diffusers", precision=precision, overwrite=True)
print(json.dumps({"peak": (kilobytes("VmHWM") - before) * 1024}))
"""


def config(width: int) -> TransformerConfig:
    return TransformerConfig(
        hidden_size=width,
        num_heads=width // 128,
        num_double_blocks=2,
        num_single_blocks=3,
        rope_axes=(16, 56, 56),
        text_width=256,
        pooled_width=128,
        has_guidance=True,
    )


def weights(width: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in Transformer(config(width)).state_dict().items()}
    return {key: torch.full(shape, 0.5, dtype=torch.bfloat16) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("large")
    large = weights(1024)
    assert sum(tensor.nbytes for tensor in large.values()) > 290 * MIB
    save_file(large, folder / "large.safetensors")
    save_file(weights(128), folder / "small.safetensors")
    torch.save({"module": large}, folder / "large.pt")
    return {path.name: path for path in folder.iterdir()}


def measure(files, name, dtype, make_fp8=False) -> dict[str, float]:
    return run(CHILD, files[name], dtype, make_fp8, files["small.safetensors"])


def run(script, *arguments) -> dict[str, float]:
    """What a script prints that measures itself in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "alias"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@needs_proc
@pytest.mark.parametrize(
    ("dtype", "make_fp8", "model_bytes"), [("bfloat16", False, 2), ("float32", False, 4), ("bfloat16", True, 1)]
)
def test_a_safetensors_file_needs_its_model_and_one_layer_more(files, dtype, make_fp8, model_bytes):
    found = measure(files, "large.safetensors", dtype, make_fp8)
    num_numbers = files["large.safetensors"].stat().st_size / 2
    assert found["model"] >= 0.98 * model_bytes * num_numbers
    assert found["peak"] <= found["model"] + LIMIT_BYTES
    assert found["sum"] == pytest.approx(0.5 * 1024 * 5 * 1024, rel=0.02)


@needs_proc
@needs_pickles
def test_a_pickle_needs_its_model_and_one_mapping_more(files):
    found = measure(files, "large.pt", "float32")
    assert found["peak"] <= found["model"] + 512 * MIB


@needs_proc
@pytest.mark.parametrize("precision", ["fp32", "fp8_scaled"])
def test_saving_anew_takes_the_memory_of_a_layer(files, precision, tmp_path):
    target = tmp_path / "new.safetensors"
    found = run(SAVING, files["large.safetensors"], files["small.safetensors"], target, precision)
    # a layer as it is read and as it is written: 65 to 130 MiB, as the system gives pages back sooner or later
    assert found["peak"] <= 1.5 * LIMIT_BYTES
    assert target.stat().st_size > {"fp32": 580, "fp8_scaled": 145}[precision] * MIB


@needs_proc
def test_weights_that_stay_as_they_are_take_no_memory_until_they_are_used(files):
    assert measure(files, "large.safetensors", "bfloat16")["peak"] <= LIMIT_BYTES


@needs_proc
def test_a_gguf_file_takes_no_memory_for_blocks_until_they_are_used(files, tmp_path):
    stored = {}
    for name, tensor in weights(1024).items():
        in_blocks = tensor.ndim == 2 and tensor.shape[1] % 32 == 0
        blocks = np.ones((len(tensor), tensor.shape[-1] // 32 * 34), dtype=np.uint8) if in_blocks else None
        stored[name] = tensor.float() if blocks is None else Blocks(blocks, "Q8_0")
    path = gguf(Stored(stored), tmp_path)
    assert path.stat().st_size > 150 * MIB
    found = measure({**files, "large.gguf": path}, "large.gguf", "bfloat16")
    assert found["model"] > 150 * MIB
    assert found["peak"] <= 32 * MIB


def test_pages_are_given_back_with_their_tensor_and_no_others(tmp_path):
    path = tmp_path / "content"
    content = torch.arange(40_000, dtype=torch.int32)
    path.write_bytes(content.numpy().tobytes())
    with mapped(path) as file:
        kept = file.tensor(0, (10_000,), torch.int32)
        gone = file.tensor(40_000, (20_000,), torch.int32)
        kept += 1  # private to this process
        assert torch.equal(gone, content[10_000:30_000])
        del gone
        again = file.tensor(40_000, (30_000,), torch.int32)
    assert torch.equal(kept, content[:10_000] + 1)
    assert torch.equal(again, content[10_000:])
    assert path.read_bytes() == content.numpy().tobytes()


def test_a_tensor_anywhere_in_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "content"
    numbers = torch.randn(6)
    path.write_bytes(b"odd" + numbers.numpy().tobytes())
    with mapped(path) as file:
        assert torch.equal(file.tensor(3, (2, 3), torch.float32), numbers.reshape(2, 3))
        assert file.tensor(3, (0, 3), torch.float32).shape == (0, 3)
        with pytest.raises(CorruptFileError, match="cut off since it was opened"):
            file.tensor(7, (6,), torch.float32)


def test_an_empty_file_is_cut_off_too(tmp_path):
    (tmp_path / "empty").touch()
    with mapped(tmp_path / "empty") as file, pytest.raises(CorruptFileError, match="cut off"):
        file.tensor(0, (1,), torch.uint8)


def test_mapped_weights_can_be_trained(tmp_path):
    (tmp_path / "content").write_bytes(bytes(16))
    with torch.inference_mode(), mapped(tmp_path / "content") as file:
        assert not file.tensor(0, (4,), torch.float32).is_inference()
