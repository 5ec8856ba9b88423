"""Weight files: what opens, what is refused, and in which words."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, CorruptFileError, UntrustedFileError
from hyvideo_nodes.hyvideo_core.loading import build_transformer, detect_transformer, open_checkpoint
from hyvideo_nodes.hyvideo_core.loading.mapping import MappedFile
from safetensors.torch import load_file, save_file

needs_pickles = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6),
    reason="pickles are only opened on PyTorch 2.6 or newer",
)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(3, 4), "b.bias": torch.randn(5).bfloat16()}


def test_headers_are_read_without_tensors(weights, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(weights, path, metadata={"config": json.dumps({"rope_theta": 7}), "latent_rgb": "{}"})
    checkpoint = open_checkpoint(path)
    assert {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()} == {
        "a.weight": ((3, 4), torch.float32),
        "b.bias": ((5,), torch.bfloat16),
    }
    assert checkpoint.config == {"rope_theta": 7}
    assert checkpoint.metadata == {"latent_rgb": "{}"}
    with checkpoint.reading() as read:
        assert torch.equal(read("a.weight"), weights["a.weight"])


@needs_pickles
@pytest.mark.parametrize("layers", [(), ("module",), ("state_dict",), ("ema",), ("model", "module")])
def test_pickles_open_through_their_wrappers(layers, weights, tmp_path):
    content: object = {**weights, "config": {"heads_num": 2}}
    for layer in layers:
        content = {layer: content}
    path = tmp_path / "m.pt"
    torch.save(content, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors.keys() == weights.keys()
    assert checkpoint.config == {"heads_num": 2}
    with checkpoint.reading() as read:
        assert torch.equal(read("b.bias"), weights["b.bias"])


@needs_pickles
def test_a_transformer_pickle_builds_like_its_safetensors(golden_dir, tmp_path):
    path = golden_dir / "dit_weights.safetensors"
    torch.save({"module": load_file(path), "config": dict(open_checkpoint(path).config)}, tmp_path / "m.pt")
    expected = build_transformer(detect_transformer(open_checkpoint(path)), dtype=torch.float32).state_dict()
    loaded = build_transformer(detect_transformer(open_checkpoint(tmp_path / "m.pt")), dtype=torch.float32)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name])


@needs_pickles
@pytest.mark.parametrize("is_zip", [True, False])
def test_pickles_of_both_ages_give_weights_that_can_be_trained(is_zip, weights, tmp_path):
    path = tmp_path / "m.pt"
    torch.save(weights, path, _use_new_zipfile_serialization=is_zip)
    with torch.inference_mode(), open_checkpoint(path).reading() as read:
        tensor = read("a.weight")
        assert torch.equal(tensor, weights["a.weight"])
    assert not tensor.is_inference()


@needs_pickles
def test_a_pickle_of_something_else_is_named(tmp_path):
    path = tmp_path / "m.pt"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(CorruptFileError, match=r"m\.pt holds no table of tensors"):
        open_checkpoint(path)


@needs_pickles
@pytest.mark.parametrize("content", [{}, {"step": 3}, {"weights": {"a": torch.zeros(2)}}, {"model": {}}])
def test_a_pickle_without_tensors_where_they_belong_is_named(content, tmp_path):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CorruptFileError, match=r"m\.pt holds no table of tensors, .* module, state_dict, model, ema"):
        open_checkpoint(tmp_path / "m.pt")


@needs_pickles
def test_an_empty_wrapper_hides_no_other(weights, tmp_path):
    torch.save({"module": {}, "state_dict": None, "model": torch.zeros(3), "ema": weights}, tmp_path / "m.pt")
    assert open_checkpoint(tmp_path / "m.pt").tensors.keys() == weights.keys()


def test_an_index_may_begin_with_a_byte_order_mark_and_may_not_be_empty(weights, tmp_path):
    save_file(weights, tmp_path / "m.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "m.safetensors")}), encoding="utf-8-sig")
    assert open_checkpoint(index).tensors.keys() == weights.keys()
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CorruptFileError, match="lists no shards"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "z"]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}},
        {"__metadata__": ["x"], "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"config": 5}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_of_wrong_types_is_refused(header, tmp_path):
    path = tmp_path / "m.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"0000")
    with pytest.raises(CorruptFileError, match=r"m\.safetensors"):
        open_checkpoint(path)


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@needs_pickles
def test_a_pickle_that_would_execute_code_is_refused(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"a": Payload()}, path)
    with pytest.raises(UntrustedFileError, match=r"holds more than tensors.*use a \.safetensors file"):
        open_checkpoint(path)


def test_old_pytorch_never_opens_a_pickle(weights, tmp_path, monkeypatch):
    path = tmp_path / "m.pt"
    torch.save(weights, path)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(UntrustedFileError, match=r"PyTorch 2\.5\.1.*2\.6 or newer"):
        open_checkpoint(path)


def test_shards_read_as_one_model(weights, tmp_path):
    save_file({"a.weight": weights["a.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b.bias": weights["b.bias"]}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"rope_theta": 5}))
    index = {"weight_map": dict(zip(weights, sorted(p.name for p in tmp_path.glob("*.safetensors")), strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {"rope_theta": 5}
    with checkpoint.reading() as read:
        assert all(torch.equal(read(name), tensor) for name, tensor in weights.items())


def test_an_index_may_not_leave_its_folder(weights, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(weights, tmp_path / "outside.safetensors")
    index = {"weight_map": {"a.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UntrustedFileError, match="names a file outside its folder"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks model-00001-of-00001\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_a_truncated_file_is_refused(keep, weights, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match="download it again"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"just some text, saved under the wrong name", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"", "it is empty"),
        (pickle.dumps({"a": 1}, protocol=2) + b" " * 30, "PyTorch pickle"),
        (struct.pack("<Q", 12) + b'["a", "list"]', "is not a safetensors file"),
        (struct.pack("<Q", 12) + b'{"a": "text"}', "damaged header|is not a safetensors file"),
    ],
)
def test_other_content_is_told_apart(content, words, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=words):
        open_checkpoint(path)


def test_a_damaged_pickle_is_refused(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(b"PK\x03\x04 not really a zip file")
    with pytest.raises((CorruptFileError, UntrustedFileError), match=r"m\.pt"):
        open_checkpoint(path)


def test_unknown_formats_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"files ending in '\.onnx' are not read; use one of \.safetensors"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "absent.safetensors")


def test_messages_never_show_the_users_folders(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"text")
    with pytest.raises(CorruptFileError) as caught:
        open_checkpoint(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_tensor_of_unknown_dtype_is_named(tmp_path):
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(CheckpointError, match="tensor a is stored as F4, which is not read"):
        open_checkpoint(path)


def test_each_tensor_is_read_once_and_kept_without_a_copy(golden_dir, monkeypatch):
    reads: list[int] = []
    original = MappedFile.tensor

    def counting(self, start, shape, dtype):
        tensor = original(self, start, shape, dtype)
        reads.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(MappedFile, "tensor", counting)
    detected = detect_transformer(open_checkpoint(golden_dir / "dit_weights.safetensors"))
    assert reads == []
    model = build_transformer(detected, dtype=torch.float32)
    assert len(reads) == len(detected.view.checkpoint.tensors)
    assert {tensor.data_ptr() for tensor in model.state_dict().values()} == set(reads)


@pytest.mark.parametrize("name", ["m.safetensors", "m.gguf"])
def test_a_file_that_may_not_be_read_is_named(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(b"x" * 100)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(Permission denied\)"):
        open_checkpoint(path)
