"""Files written anew: what loads from them is what loaded before, bit for bit where the precision holds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import CheckpointError, HyVideoError, OptionError, WrongModelError
from hyvideo_nodes.hyvideo_core.loading import (
    build_transformer,
    build_vae,
    check_complete,
    detect_transformer,
    detect_vae,
    open_checkpoint,
)
from hyvideo_nodes.hyvideo_core.loading import safetensors_writer as writer_module
from hyvideo_nodes.hyvideo_core.loading.key_maps import OFFICIAL, TRANSFORMER_DIALECTS, VAE_DIALECTS
from hyvideo_nodes.hyvideo_core.loading.save import DIALECTS, save_as
from hyvideo_nodes.hyvideo_core.quantization import StoredLinear
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .writers import CONTAINERS, PRECISIONS, Stored, in_dialect

NAMES = {"official": "official", "comfy": "ComfyUI", "diffusers": "diffusers"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
E4M3 = torch.float8_e4m3fn


@pytest.fixture
def transformer(golden_dir):
    return golden_dir / "dit_weights.safetensors"


@pytest.fixture
def vae(golden_dir):
    return golden_dir / "vae_weights.safetensors"


def weights(path, dtype=torch.float32):
    """What layers compute with, by official name."""
    detected = detect_transformer(open_checkpoint(path))
    check_complete(detected)
    model = build_transformer(detected, dtype=dtype)
    small = {name: layer for name, layer in model.named_modules() if isinstance(layer, StoredLinear)}
    inner = tuple(f"{name}." for name in small)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(inner)}
    biases = {f"{name}.bias": layer.bias for name, layer in small.items()}
    return state | biases | {f"{name}.weight": layer.dequantized() for name, layer in small.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_layout_and_width_loads_to_the_same_numbers(dialect, precision, transformer, tmp_path):
    save_as(transformer, tmp_path / "m.safetensors", dialect=dialect, precision=precision)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert {info.dtype for info in checkpoint.tensors.values()} == {DTYPES[precision]}
    assert detect_transformer(checkpoint).view.dialect.name == NAMES[dialect]
    expected = {key: value.to(DTYPES[precision]).float() for key, value in weights(transformer).items()}
    assert_equal(weights(tmp_path / "m.safetensors"), expected)


def test_diffusers_names_and_numbers_are_those_of_its_own_export(transformer, golden_dir, tmp_path):
    save_as(transformer, tmp_path / "m.safetensors", dialect="diffusers", precision="fp32")
    assert_equal(load_file(tmp_path / "m.safetensors"), load_file(golden_dir / "dit_weights_diffusers.safetensors"))


@pytest.mark.parametrize("last", ["fp32", "fp8_scaled"])
def test_a_tour_through_all_layouts_comes_home_bit_for_bit(last, transformer, tmp_path):
    path = tmp_path / "0.safetensors"
    save_as(transformer, path, dialect="official", precision=last)
    start = load_file(path)
    for number, dialect in enumerate(("comfy", "diffusers", "comfy", "official"), 1):
        save_as(path, tmp_path / f"{number}.safetensors", dialect=dialect, precision=last)
        path = tmp_path / f"{number}.safetensors"
    end = load_file(path)
    assert end.keys() == start.keys()
    assert all(torch.equal(end[key].float(), start[key].float()) for key in start)
    assert [key for key in start if end[key].dtype != start[key].dtype] == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scaled_fp8_keeps_sensitive_layers_and_rounds_the_rest(dialect, transformer, tmp_path):
    path = tmp_path / "m.safetensors"
    save_as(transformer, path, dialect=dialect, precision="fp8_scaled")
    saved, before, after = load_file(path), weights(transformer), weights(path)
    assert saved["scaled_fp8"].shape == (2,)
    made = {key for key in before if not torch.equal(before[key], after[key])}
    config = detect_transformer(open_checkpoint(path)).config
    assert len(made) == 8 * config.num_double_blocks + 2 * config.num_single_blocks
    assert not any("mod" in key or not key.startswith(("double", "single")) for key in made)
    for key in made:
        assert 0 < (after[key] - before[key]).norm() / before[key].norm() < 0.04, key
    scales = {name: value for name, value in saved.items() if name.endswith(".scale_weight")}
    assert all(value.shape == () and value.dtype == torch.float32 for value in scales.values())
    small = {name.removesuffix(".weight") for name, value in saved.items() if value.dtype == E4M3} - {"scaled_fp8"}
    assert {name.removesuffix(".scale_weight") for name in scales} == small


def test_fp8_weights_keep_their_bits_and_scales(transformer, golden_dir, tmp_path):
    golden = load_file(golden_dir / "dit_fp8.safetensors")
    tensors = load_file(transformer)
    for key, value in golden.items():
        if key.startswith("map."):
            name = key.removeprefix("map.")
            tensors |= {f"{name}.weight": golden[f"fp8.{name}.weight"], f"{name}.scale_weight": value}
    config = json.dumps(dict(open_checkpoint(transformer).config))
    save_file(tensors, tmp_path / "source.safetensors", metadata={"config": config})
    expected = weights(tmp_path / "source.safetensors")
    for dialect in DIALECTS:
        path = tmp_path / f"{dialect}.safetensors"
        save_as(tmp_path / "source.safetensors", path, dialect=dialect, precision="fp8_scaled")
        assert_equal(weights(path), expected)
    saved = load_file(tmp_path / "official.safetensors")
    assert all(torch.equal(saved[key].float(), value.float()) for key, value in tensors.items() if "scale" not in key)
    for precision, dtype in DTYPES.items():
        path = tmp_path / f"{precision}.safetensors"
        save_as(tmp_path / "source.safetensors", path, dialect="comfy", precision=precision)
        assert_equal(weights(path, dtype), weights(tmp_path / "source.safetensors", dtype))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scales_of_rows_become_one_for_each_weight_as_other_tools_read_them(dialect, transformer, tmp_path, caplog):
    """Kernels of ComfyUI refuse any other scale on a graphics card, or take its first number for all rows."""
    tensors = load_file(transformer)
    rows = ("double_blocks.0.img_attn_qkv", "single_blocks.1.linear1", "double_blocks.1.txt_mod.linear")
    for name in rows:
        scale = tensors[f"{name}.weight"].abs().amax(1, keepdim=True) / 448
        tensors |= {f"{name}.weight": (tensors[f"{name}.weight"] / scale).to(E4M3), f"{name}.scale_weight": scale}
    config = json.dumps(dict(open_checkpoint(transformer).config))
    save_file(tensors, tmp_path / "source.safetensors", metadata={"config": config})
    before = weights(tmp_path / "source.safetensors")
    save_as(tmp_path / "source.safetensors", tmp_path / "m.safetensors", dialect=dialect, precision="fp8_scaled")
    saved, after = load_file(tmp_path / "m.safetensors"), weights(tmp_path / "m.safetensors")
    assert {value.shape for name, value in saved.items() if name.endswith(".scale_weight")} == {()}
    assert all(
        (after[f"{name}.weight"] - before[f"{name}.weight"]).norm() <= 0.04 * before[f"{name}.weight"].norm()
        for name in rows
    )
    assert "m.safetensors: 2 fp8 weights are rounded a second time, such as double_blocks.0.img_attn_qkv" in caplog.text


def test_parts_of_one_weight_share_their_scale_and_so_come_home_bit_for_bit(transformer, tmp_path, caplog):
    path, home, direct = (tmp_path / f"{name}.safetensors" for name in ("parts", "home", "direct"))
    save_as(transformer, path, dialect="diffusers", precision="fp8_scaled")
    save_as(path, home, dialect="official", precision="fp8_scaled")
    save_as(transformer, direct, dialect="official", precision="fp8_scaled")
    assert home.read_bytes() == direct.read_bytes()
    assert "a second time" not in caplog.text


@pytest.mark.parametrize(
    ("container", "precision"),
    [
        ("gguf", "Q8_0"),
        ("gguf", "BF16 matrices"),
        ("diffusers folder", "bf16"),
        ("pickle, module", "scaled_fp8"),
        ("shards", "comfy_quant nvfp4"),
    ],
)
def test_every_container_can_be_saved_anew(container, precision, transformer, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    if container.startswith("pickle") and torch.__version__ < "2.6":
        pytest.skip("pickles are only opened on PyTorch 2.6 or newer")
    encoded = PRECISIONS[precision].encode(in_dialect(load_file(transformer), OFFICIAL))
    path = CONTAINERS[container](Stored(encoded, dict(open_checkpoint(transformer).config)), source)
    before = weights(path)
    save_as(path, tmp_path / "wide.safetensors", dialect="diffusers", precision="fp32")
    assert_equal(weights(tmp_path / "wide.safetensors"), before)
    save_as(path, tmp_path / "small.safetensors", dialect="comfy", precision="fp8_scaled")
    after = weights(tmp_path / "small.safetensors")
    assert all((after[key] - before[key]).norm() <= 0.04 * before[key].norm() for key in before)
    assert open_checkpoint(tmp_path / "small.safetensors").config == open_checkpoint(path).config


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
def test_weights_that_were_cast_keep_their_numbers(dtype, transformer, tmp_path):
    cast = {key: value.to(dtype) for key, value in load_file(transformer).items()}
    config = json.dumps(dict(open_checkpoint(transformer).config))
    save_file(cast, tmp_path / "cast.safetensors", metadata={"config": config})
    expected = weights(tmp_path / "cast.safetensors")
    for precision in ("bf16", "fp32", "fp8_scaled"):
        path = tmp_path / f"{precision}.safetensors"
        save_as(tmp_path / "cast.safetensors", path, dialect="diffusers", precision=precision)
        # e5m2 has no place in a layout whose readers take all of it for e4m3, and is rounded again
        if precision != "fp8_scaled" or dtype == E4M3:
            assert_equal(weights(path), expected)
        kinds = {info.dtype for info in open_checkpoint(path).tensors.values()}
        assert (torch.float8_e5m2 in kinds) is False


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_vaes_too(dialect, precision, vae, tmp_path):
    path = tmp_path / "v.safetensors"
    save_as(vae, path, dialect=dialect, precision=precision)
    detected = detect_vae(open_checkpoint(path))
    check_complete(detected)
    assert detected.view.dialect.name == {"comfy": "ComfyUI"}.get(dialect, "official")
    before = build_vae(detect_vae(open_checkpoint(vae)), dtype=torch.float32).state_dict()
    expected = {key: value.to(DTYPES[precision]).float() for key, value in before.items()}
    assert_equal(build_vae(detected, dtype=torch.float32).state_dict(), expected)


@pytest.mark.parametrize("kind", ["transformer", "vae"])
def test_names_and_shapes_at_full_size_are_those_that_others_publish(kind, manifest_dir):
    """Splitting empty tensors gives the manifests of every layout, so both ways come from one table."""
    peers = json.loads((manifest_dir / "peers_keys.json").read_text())
    if kind == "transformer":
        official = json.loads((manifest_dir / "hunyuanvideo_t2v_cfgdistill_transformer.official.json").read_text())
        theirs = json.loads((manifest_dir / "hunyuanvideo_t2v_transformer.diffusers.json").read_text())
        comfy = {
            name.replace(".N.", f".{index}."): shape
            for name, (shape, count) in peers["comfy_after_host_rename"].items()
            for index in range(count)
        }
        expected = {"diffusers": {name: shape for name, (shape, _) in theirs.items()}, "ComfyUI": comfy}
        dialects = TRANSFORMER_DIALECTS
    else:
        official = json.loads((manifest_dir / "hunyuanvideo_vae.official.json").read_text())
        expected, dialects = {"ComfyUI": peers["vae_comfy"]}, VAE_DIALECTS
    found = {}
    for dialect in dialects:
        parts = {}
        for key, (shape, _) in official.items():
            parts |= dialect.split(key, torch.empty(shape, device="meta"), 3072)
        found[dialect.name] = {name: list(part.shape) for name, part in parts.items()}
    assert {name: found[name] for name in expected} == expected


def test_metadata_and_configuration_are_kept(transformer, tmp_path):
    config = {**open_checkpoint(transformer).config, "note": "ä"}
    metadata = {"config": json.dumps(config), "author": "somebody", "_quantization_metadata": '{"layers": {}}'}
    save_file(load_file(transformer), tmp_path / "source.safetensors", metadata=metadata)
    save_as(tmp_path / "source.safetensors", tmp_path / "m.safetensors", dialect="comfy", precision="bf16")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert checkpoint.config == config
    assert checkpoint.metadata == {"format": "pt", "author": "somebody"}


def test_tensors_lie_at_multiples_of_their_size(transformer, tmp_path):
    save_as(transformer, tmp_path / "m.safetensors", dialect="comfy", precision="fp8_scaled")
    content = (tmp_path / "m.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    sizes = {"F32": 4, "F8_E4M3": 1, "BF16": 2}
    header = json.loads(content[8 : 8 + length])
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in entries)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert set(file.keys()) == header.keys() - {"__metadata__"}


def test_an_existing_file_stays_unless_told_otherwise(transformer, tmp_path):
    path = tmp_path / "m.safetensors"
    shutil.copy(transformer, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"m\.safetensors is the file to be read; choose another name"):
        save_as(path, path, dialect="official", precision="bf16")
    with pytest.raises(CheckpointError, match=r"m\.safetensors exists already.*--overwrite"):
        save_as(transformer, path, dialect="official", precision="bf16")
    assert path.read_bytes() == before
    save_as(path, path, dialect="comfy", precision="fp32", overwrite=True)
    assert_equal(weights(path), weights(transformer))
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.fixture(params=["nameless until whole", "named"])
def file_system(request, monkeypatch):
    """One that can hold files without names, where the system has one, and one that cannot."""
    if request.param == "named":
        monkeypatch.setattr(writer_module, "OPEN_FILES", Path("/nowhere"))


def test_a_file_has_its_name_when_it_is_whole(file_system, transformer, tmp_path):
    save_as(transformer, tmp_path / "m.safetensors", dialect="official", precision="fp32")
    save_as(transformer, tmp_path / "m.safetensors", dialect="official", precision="fp32", overwrite=True)
    assert_equal(weights(tmp_path / "m.safetensors"), weights(transformer))
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_failure_leaves_nothing_behind(file_system, transformer, tmp_path, monkeypatch):
    calls = []

    def failing(self, name, tensor):
        calls.append(name)
        if len(calls) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer_module.SafetensorsWriter, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        save_as(transformer, tmp_path / "m.safetensors", dialect="official", precision="bf16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"target": "m.pt"}, CheckpointError, r"let its name end in \.safetensors"),
        ({"target": "absent/m.safetensors"}, CheckpointError, "there is no folder"),
        ({"dialect": "klingon"}, OptionError, "no dialect klingon.*official, comfy, diffusers"),
        ({"precision": "int3"}, OptionError, "bf16, fp16, fp32, fp8_scaled"),
        ({"source": "absent.safetensors"}, CheckpointError, "does not exist"),
        ({"source": "vae"}, OptionError, "is a VAE, which fp8_scaled is not made for"),
        ({"source": "lora"}, WrongModelError, "is a LoRA.*expected a HunyuanVideo transformer or VAE"),
    ],
)
def test_what_cannot_be_done_is_refused(change, error, words, transformer, vae, tmp_path):
    save_file({"lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight": torch.ones(4, 64)}, tmp_path / "l.safetensors")
    sources = {"vae": vae, "lora": tmp_path / "l.safetensors", "absent.safetensors": tmp_path / "absent.safetensors"}
    options = {"dialect": "official", "precision": "fp8_scaled", "target": "m.safetensors", **change}
    source = sources.get(options.pop("source", ""), transformer)
    with pytest.raises(error, match=words):
        save_as(source, tmp_path / options.pop("target"), **options)
    assert [file.name for file in tmp_path.iterdir()] == ["l.safetensors"]


def test_an_incomplete_file_is_not_passed_on(transformer, tmp_path):
    tensors = load_file(transformer)
    del tensors["final_layer.linear.bias"]
    save_file(tensors, tmp_path / "source.safetensors")
    with pytest.raises(HyVideoError):
        save_as(tmp_path / "source.safetensors", tmp_path / "m.safetensors", dialect="official", precision="bf16")


def test_numbers_that_fp16_does_not_hold_are_refused(transformer, tmp_path):
    tensors = load_file(transformer)
    tensors["final_layer.linear.bias"][0] = 1e6
    config = json.dumps(dict(open_checkpoint(transformer).config))
    save_file(tensors, tmp_path / "source.safetensors", metadata={"config": config})
    with pytest.raises(OptionError, match=r"final_layer\.linear\.bias has numbers beyond 65504.*choose bf16"):
        save_as(tmp_path / "source.safetensors", tmp_path / "m.safetensors", dialect="official", precision="fp16")


def test_a_full_disk_is_told_before_anything_is_written(transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GB, its disk has 0\.0 GB left"):
        save_as(transformer, tmp_path / "m.safetensors", dialect="official", precision="bf16")


def test_what_is_promised_is_what_is_written(tmp_path):
    info = writer_module.TensorInfo((2, 3), torch.float32)
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="promised"), writer_module.writing(path, {"a": info}, {}) as writer:
        writer.write("a", torch.zeros(3, 2))
    with pytest.raises(ValueError, match="1 tensors were never written"), writer_module.writing(path, {"a": info}, {}):
        pass
    assert list(tmp_path.iterdir()) == []
