"""Files that are not what their name says, each under each name: told apart by their first bytes."""

from __future__ import annotations

import pickle

import pytest
import torch
from gguf import GGUFWriter
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, CorruptFileError, UntrustedFileError
from hyvideo_nodes.hyvideo_core.loading import open_checkpoint
from safetensors.torch import save_file

SUFFIXES = (".safetensors", ".gguf", ".pt")
needs_pickles = pytest.mark.skipif(torch.__version__ < "2.6", reason="pickles are only opened on PyTorch 2.6 or newer")


def write_gguf(path):
    writer = GGUFWriter(path, "hyvid")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


WRITERS = {
    "it is a web page": lambda path: path.write_bytes(b"\n<!DOCTYPE html><title>Sign in</title>"),
    "it is a Git LFS pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 3\n"),
    "it is empty": lambda path: path.write_bytes(b""),
    "it is a safetensors file; rename it to .safetensors": lambda path: save_file({"x": torch.zeros(2)}, path),
    "it is a GGUF file; rename it to .gguf": write_gguf,
    "it is a PyTorch pickle; rename it to .pt": lambda path: torch.save({"x": torch.zeros(2)}, path),
}


@needs_pickles
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("words", list(WRITERS))
def test_a_file_under_a_wrong_name_is_named(words, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    WRITERS[words](path)
    if words.endswith(suffix):
        open_checkpoint(path)
        return
    with pytest.raises(CorruptFileError, match=rf"model\{suffix} is not a .*: {words}"):
        open_checkpoint(path)


@needs_pickles
def test_a_pickle_of_plain_python_is_not_called_a_wrong_name(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": print}, protocol=0))
    with pytest.raises(UntrustedFileError, match="holds more than tensors"):
        open_checkpoint(path)


def test_bytes_of_no_known_kind_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="first bytes are not a header"):
        open_checkpoint(path)
