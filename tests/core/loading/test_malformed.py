"""Damaged and hostile files: one of our errors or a load, never another exception, a hang or a heap of memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, CorruptFileError, HyVideoError, UntrustedFileError
from hyvideo_nodes.hyvideo_core.loading import (
    build_clip_encoder,
    build_llama_encoder,
    build_transformer,
    build_vae,
    check_complete,
    detect_clip,
    detect_llama,
    detect_transformer,
    detect_vae,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.model import Transformer

from .writers import Stored, gguf, in_blocks, sharded_folder, single

MAX_GROWTH_BYTES = 1_000_000_000
HEADER_BYTES = 6000  # of the sound files; their headers are a little longer
fuzzed = settings(
    max_examples=100,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
needs_pickles = pytest.mark.skipif(torch.__version__ < "2.6", reason="pickles are only opened on PyTorch 2.6 or newer")


@pytest.fixture(autouse=True, scope="module")
def memory_stays_small():
    """No claim of a header may make the process grow by 1 GB, not even for a moment."""
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH_BYTES


class Weights(dict):
    """A state dict that does not fill reports of failing examples."""

    def __repr__(self):
        return f"{len(self)} tensors"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(5)
    sizes = tiny(hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1, rope_axes=(4, 6, 6))
    return Weights((name, tensor.detach()) for name, tensor in Transformer(sizes).state_dict().items())


@pytest.fixture(scope="module")
def sound(weights, tmp_path_factory):
    """A sound file of each kind."""
    blocks = Stored(in_blocks("Q8_0")(weights), {"rope_theta": 256.0}, {"general.name": "x"})
    return {
        "safetensors": single(Stored(weights, {"rope_theta": 256.0}), tmp_path_factory.mktemp("sound")),
        "gguf": gguf(blocks, tmp_path_factory.mktemp("sound")),
    }


def attempt(path: Path) -> None:
    """Everything that a loader may do with a file; errors of ours are fine, others get out."""
    try:
        checkpoint = open_checkpoint(path)
    except HyVideoError as error:
        assert str(path.parent) not in str(error)
        str(error).encode()
        return
    for use in (read_all, load_transformer, load_vae, load_llama, load_clip):
        try:
            use(checkpoint)
        except HyVideoError as error:
            str(error).encode()


def read_all(checkpoint):
    with checkpoint.reading() as read:
        for name, info in checkpoint.tensors.items():
            tensor = read(name)
            assert tensor.dtype == info.dtype
            assert info.block is not None or tensor.shape == info.shape


def load_transformer(checkpoint):
    detected = detect_transformer(checkpoint)
    check_complete(detected)
    build_transformer(detected, dtype=torch.float32)


def load_vae(checkpoint):
    detected = detect_vae(checkpoint)
    check_complete(detected)
    build_vae(detected, dtype=torch.float32)


def load_llama(checkpoint):
    build_llama_encoder(checkpoint, detect_llama(checkpoint), dtype=torch.float32)


def load_clip(checkpoint):
    build_clip_encoder(checkpoint, detect_clip(checkpoint), dtype=torch.float32)


# --- bytes that are wrong anywhere

places = st.integers(0, 2**20)
kinds = pytest.mark.parametrize("kind", ["safetensors", "gguf"])


@fuzzed
@given(edits=st.lists(st.tuples(st.booleans() | st.just(True), places, st.integers(0, 255)), min_size=1, max_size=4))
@kinds
def test_flipped_bytes(kind, edits, sound, tmp_path):
    whole = bytearray(sound[kind].read_bytes())
    for in_header, place, value in edits:
        whole[place % (HEADER_BYTES if in_header else len(whole))] = value
    path = tmp_path / f"m.{kind}"
    path.write_bytes(whole)
    attempt(path)


@fuzzed
@given(keep=places, extra=st.binary(max_size=20))
@kinds
def test_truncated_files(kind, keep, extra, sound, tmp_path):
    whole = sound[kind].read_bytes()
    path = tmp_path / f"m.{kind}"
    path.write_bytes(whole[: keep % len(whole)] + extra)
    attempt(path)


# --- headers of safetensors, field by field

sizes = st.sampled_from([-(2**70), -1, 0, 1, 3, 2**20, 2**31, 2**40, 2**63, 2**64 - 1, 2**80]) | st.integers(-5, 5000)
words = st.text(max_size=5) | st.sampled_from(["F32", "\ud800", "U8"])
odd = st.recursive(
    st.none() | st.booleans() | sizes | st.floats() | words,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
shapes = st.lists(sizes, max_size=6)
dtypes = st.sampled_from(["F64", "F8_E4M3", "U8", "BOOL", "F4"])


def safetensors_of(header: object, content: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def split_safetensors(path: Path) -> tuple[dict, bytes]:
    whole = path.read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


@fuzzed
@given(data=st.data())
def test_safetensors_entries_of_odd_values(data, sound, tmp_path):
    header, content = split_safetensors(sound["safetensors"])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
        if field is None or not isinstance(header[name], dict):
            header[name] = data.draw(odd)
        else:
            header[name][field] = data.draw(odd | shapes | dtypes)
    path = tmp_path / "m.safetensors"
    length = data.draw(st.none() | st.sampled_from([0, 1, 2**31, 2**63]))
    path.write_bytes(safetensors_of(header, content, length))
    attempt(path)


@fuzzed
@given(metadata=odd, config=odd)
def test_metadata_of_odd_types(metadata, config, sound, tmp_path):
    header, content = split_safetensors(sound["safetensors"])
    path = tmp_path / "m.safetensors"
    for entry in (metadata, {"config": metadata}, {"config": json.dumps(config)}, {"_quantization_metadata": config}):
        path.write_bytes(safetensors_of({**header, "__metadata__": entry}, content))
        attempt(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1_000_000,
        b'{"a":' * 300_000,
        json.dumps({"a": {"dtype": "F32", "shape": [0, 2**50], "data_offsets": [0, 0]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**82]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}).encode(),
        b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 8]}}',
        b'{"a": ' + b"9" * 10_000 + b"}",
        json.dumps({"\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode(),
        json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}).encode(),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [2], '
            b'"data_offsets": [0, 8]}}'
        ),
        b'{"a": {"dtype": "F32", "shape": [1], "shape": [2], "data_offsets": [0, 8]}}',
        json.dumps({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}).encode(),
    ],
    ids=range(14),
)
def test_hostile_headers_are_refused(header, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"^m\.safetensors"):
        open_checkpoint(path)


# --- sound files of tensors and settings that make no model

CONFIG_NAMES = (
    *("rope_theta", "rope_dim_list", "heads_num"),
    *("norm_num_groups", "sample_size", "scaling_factor", "time_compression_ratio", "spatial_compression_ratio"),
)
odd_configs = st.dictionaries(st.sampled_from(CONFIG_NAMES), odd)


@fuzzed
@given(data=st.data())
@kinds
def test_odd_key_lists_and_shapes(kind, data, weights, tmp_path):
    changed = Weights(weights)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(changed)))
        change = data.draw(st.sampled_from(["drop", "rename", "reshape", "resize", "retype"]))
        if change == "drop":
            del changed[name]
        elif change == "rename":
            changed[data.draw(st.text(st.characters(codec="utf-8"), max_size=8)) + name] = changed.pop(name)
        elif change == "reshape":
            changed[name] = changed[name].reshape(data.draw(st.sampled_from([(-1,), (1, -1), (-1, 1, 1, 1)])))
        elif change == "resize":
            changed[name] = torch.zeros(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
        else:
            changed[name] = changed[name].to(data.draw(st.sampled_from([torch.float16, torch.int8, torch.int32])))
    write = single if kind == "safetensors" else gguf
    attempt(write(Stored(changed, {"rope_theta": 256.0}), tmp_path))


@fuzzed
@given(config=odd_configs)
@pytest.mark.parametrize(("kind", "detect"), [("dit", detect_transformer), ("vae", detect_vae)])
def test_settings_of_odd_types(kind, detect, config, golden_dir):
    checkpoint = open_checkpoint(golden_dir / f"{kind}_weights.safetensors")
    try:
        check_complete(detect(replace(checkpoint, config={**checkpoint.config, **config})))
    except HyVideoError as error:
        str(error).encode()


def test_a_model_of_thousands_of_blocks_is_refused(weights, tmp_path):
    many = {f"double_blocks.{index}.img_attn_proj.weight": torch.zeros(1, 1) for index in range(3000)}
    with pytest.raises(CheckpointError, match=r"500 or more of double_blocks"):
        detect_transformer(open_checkpoint(single(Stored({**many, **weights}), tmp_path)))


# --- headers of GGUF, field by field

numbers32, numbers64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
small = st.integers(0, 40)
names = st.sampled_from([b"general.alignment", b"general.architecture", b"config", b"x", b"\xff", b"general.name"])


def chunk(words: bytes) -> bytes:
    return struct.pack("<Q", len(words)) + words


values = st.builds(lambda kind, rest: struct.pack("<I", kind) + rest, small, st.binary(max_size=24)) | st.builds(
    lambda kind, count, rest: struct.pack("<IIQ", 9, kind, count) + rest,
    small,
    small | numbers64,
    st.binary(max_size=24),
)
entries = st.builds(lambda name, value: chunk(name) + value, names, values)
tensors = st.builds(
    lambda name, axes, kind, offset: chunk(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset),
    names,
    st.lists(small | numbers64 | st.just(256), max_size=6),
    small | numbers32,
    small | numbers64 | st.just(2**64 - 32),
)


@fuzzed
@given(
    version=st.sampled_from([1, 2, 3, 3, 3, 4, 0x03000000]),
    counts=st.tuples(small | numbers64, small | numbers64) | st.none(),
    some_entries=st.lists(entries, max_size=3),
    some_tensors=st.lists(tensors, max_size=3),
    content=st.binary(max_size=64),
)
def test_gguf_headers_of_any_fields(version, counts, some_entries, some_tensors, content, tmp_path):
    num_tensors, num_entries = counts or (len(some_tensors), len(some_entries))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries)
    path = tmp_path / "m.gguf"
    path.write_bytes(head + b"".join(some_entries) + b"".join(some_tensors) + content)
    attempt(path)


@fuzzed
@given(heads=st.tuples(small | numbers32, small | numbers32), rows=st.integers(1, 9))
def test_language_models_of_odd_heads(heads, rows, tmp_path):
    settings = chunk(b"general.architecture") + struct.pack("<I", 8) + chunk(b"llama")
    for name, value in zip((b"llama.attention.head_count", b"llama.attention.head_count_kv"), heads, strict=True):
        settings += chunk(name) + struct.pack("<II", 4, value)
    num_bytes = 32 * rows * 4
    described = b"".join(
        chunk(name) + struct.pack("<IQQIQ", 2, 32, rows, 0, num_bytes * index)
        for index, name in enumerate([b"token_embd.weight", b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"])
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, 3, 3) + settings + described
    path = tmp_path / "m.gguf"
    path.write_bytes(head + b"\0" * (-len(head) % 32 + 3 * num_bytes))
    attempt(path)


def test_an_endless_list_of_texts_is_passed_over_in_no_time(tmp_path):
    count = 2_000_000
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + chunk(b"x") + struct.pack("<IIQ", 9, 8, count)
    path = tmp_path / "m.gguf"
    path.write_bytes(head + b"\0" * (8 * count))
    assert open_checkpoint(path).tensors == {}


# --- lists of shards


@pytest.fixture(scope="module")
def shards(weights, tmp_path_factory):
    return sharded_folder(Stored(weights), tmp_path_factory.mktemp("shards"))


file_names = st.sampled_from(
    [
        "model-00001-of-00003.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "none.safetensors",
        "../x.safetensors",
        "C:\\x.safetensors",
        "a/b/c.safetensors",
        "x" * 5000,
        *("..", "/", ".", "", "\0", "\ud800"),
    ]
)
texts = st.text(st.characters(codec="utf-8"), max_size=20)


@fuzzed
@given(data=st.data())
def test_lists_of_shards_of_any_content(data, shards):
    index = shards / "model.safetensors.index.json"
    whole = index.read_text()
    weight_map = json.loads(whole)["weight_map"]
    for _ in range(data.draw(st.integers(1, 3))):
        weight_map[data.draw(st.sampled_from(sorted(weight_map)) | texts)] = data.draw(file_names | odd)
    contents = {
        "entries": st.just(json.dumps({"weight_map": weight_map})),
        "map": odd.map(lambda value: json.dumps({"weight_map": value})),
        "all": odd.map(json.dumps),
        "text": texts,
        "cut": st.integers(0, len(whole)).map(lambda end: whole[:end]),
    }
    try:
        index.write_text(data.draw(contents[data.draw(st.sampled_from(sorted(contents)))]), encoding="utf-8")
        attempt(shards)
        attempt(index)
    finally:
        index.write_text(whole)


def test_shards_that_lack_what_their_index_promises_are_named(weights, tmp_path):
    index = sharded_folder(Stored(weights), tmp_path) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["final_layer.extra"] = "model-00002-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match=r"model-00002-of-00003\.safetensors lacks 1 .*final_layer\.extra"):
        open_checkpoint(index)


def test_a_shard_that_is_a_link_out_of_its_folder_is_refused(weights, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    sharded_folder(Stored(weights), folder)
    shard = folder / "model-00001-of-00003.safetensors"
    shard.rename(tmp_path / "outside.safetensors")
    try:
        shard.symlink_to(tmp_path / "outside.safetensors")
    except OSError:
        pytest.skip("no links on this system")
    with pytest.raises(UntrustedFileError, match=r"outside its folder, itself or through a link; .* place of links"):
        open_checkpoint(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("name", ["a.safetensors", "a.safetensors.index.json", "a.bin"])
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)], ids=["folder", "pipe"])
def test_what_has_a_files_name_and_is_none_is_passed_over(make, name, weights, tmp_path):
    """A pipe would be waited for without end."""
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors or \.bin file"):
        open_checkpoint(tmp_path)
    single(Stored(weights), tmp_path)
    assert open_checkpoint(tmp_path).tensors.keys() == weights.keys()


def test_two_files_of_the_same_tensors_are_not_mixed(weights, tmp_path):
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        single(Stored(weights), tmp_path).rename(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"both hold .* choose one of these files"):
        open_checkpoint(tmp_path)


# --- pickles


@needs_pickles
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@fuzzed
@given(content=st.binary(max_size=60), protocol=st.integers(0, 5), value=odd)
def test_pickles_of_any_content(content, protocol, value, tmp_path):
    path = tmp_path / "m.pt"
    for whole in (content, pickle.dumps(value, protocol), b"\x80\x02" + content, b"PK\x03\x04" + content):
        path.write_bytes(whole)
        attempt(path)


@needs_pickles
def test_a_pickle_that_holds_itself_is_refused(tmp_path):
    table: dict = {}
    table["model"] = table
    torch.save(table, tmp_path / "m.pt")
    with pytest.raises(CorruptFileError, match="holds no table of tensors"):
        open_checkpoint(tmp_path / "m.pt")


@needs_pickles
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_of_a_small_tensor_that_claims_to_be_huge_is_refused(is_zip, tmp_path):
    huge = torch.zeros(1).expand(2**20, 2**20)
    torch.save({"module": {"a": huge}}, tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CorruptFileError, match="larger than the file"):
        open_checkpoint(tmp_path / "m.pt")


@needs_pickles
def test_a_pickle_that_unfolds_is_refused_before_it_does(tmp_path):
    with ZipFile(tmp_path / "m.pt", "w", ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(50_000_000))
        archive.writestr("m/version", "3")
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match="is compressed, which PyTorch's files are not"):
        open_checkpoint(tmp_path / "m.pt")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@needs_pickles
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(is_zip, weights, tmp_path):
    sparse = torch.sparse_coo_tensor([[0], [0]], [1.0], (4, 4))
    torch.save({**weights, "a": sparse}, tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CorruptFileError, match="a is a sparse or quantized tensor"):
        open_checkpoint(tmp_path / "m.pt")
    torch.save({"a": torch.zeros(2, device="meta")}, tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    with pytest.raises(CorruptFileError, match="was saved without its numbers"), checkpoint.reading() as read:
        read("a")
