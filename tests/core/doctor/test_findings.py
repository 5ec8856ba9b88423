"""What the doctor says beyond the name: sizes, precisions, hints, companions, and that it never reads weights."""

from __future__ import annotations

import json
import pathlib
import re
import time
from contextlib import contextmanager

import gguf
import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.doctor import Findings, inspect, model_to_fit
from hyvideo_nodes.hyvideo_core.doctor.findings import size_words
from hyvideo_nodes.hyvideo_core.errors import WrongModelError
from hyvideo_nodes.hyvideo_core.loading.pickle_file import PickleFile
from hyvideo_nodes.hyvideo_core.loading.safetensors_file import SafetensorsFile
from hyvideo_nodes.hyvideo_core.loading.variants import SAME_BY_KEYS
from hyvideo_nodes.hyvideo_core.model import Transformer
from safetensors.torch import save_file

NUM_13B = 12_821_012_544


def with_channels(table, channels, *, guidance=True):
    changed = {name: entry for name, entry in table.items() if guidance or not name.startswith("guidance_in")}
    return changed | {"img_in.proj.weight": ([3072, channels, 1, 2, 2], "bfloat16")}


@pytest.mark.parametrize("prefix", ["", "model.model.", "model.diffusion_model.", "diffusion_model."])
def test_dialect_and_prefix_are_told(prefix, t2v, write):
    findings = inspect(write("m.safetensors", {prefix + name: entry for name, entry in t2v.items()}))
    assert (findings.dialect, findings.prefix) == ("official names", prefix)
    assert findings.problem is None


@pytest.mark.parametrize(
    ("channels", "guidance", "words", "lookalikes"),
    [
        (16, True, "one of several that look alike", SAME_BY_KEYS),
        (16, False, "text to video, undistilled", ()),
        (33, False, "image to video v1", ()),
        (33, True, "image to video v1, latent concatenation: noise, image and mask, guidance-distilled", ()),
        (32, True, "image to video, noise and image", ("SkyReels V1 I2V", "a base model with a keyframe LoRA")),
        (20, True, "20 input channels for 16 made", ()),
    ],
)
def test_variants_follow_the_input_channels(channels, guidance, words, lookalikes, t2v, write):
    findings = inspect(write("m.safetensors", with_channels(t2v, channels, guidance=guidance)))
    assert words in findings.variant
    assert "13B" in findings.variant
    assert [found[:30] for found in findings.lookalikes] == [name[:30] for name in lookalikes] or all(
        found.startswith(name) for found, name in zip(findings.lookalikes, lookalikes, strict=True)
    )


def test_another_size_is_described_with_its_numbers(write, t2v):
    table = {
        name: entry for name, entry in t2v.items() if not name.startswith(("double_blocks.19.", "single_blocks.39."))
    }
    findings = inspect(write("m.safetensors", table))
    assert "another size: 3072 wide, 24 heads, 19 double and 39 single blocks" in findings.variant
    assert findings.lookalikes == ()
    assert (
        "have 20 double and 40 single blocks; if this is one of them, its last blocks are missing" in findings.notes[0]
    )
    assert not inspect(write("whole.safetensors", t2v)).notes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hunyuan_video_720_cfgdistill_bf16", "HunyuanVideo T2V"),
        ("hunyuan_video_I2V_720_fixed_bf16", "I2V v2"),
        ("hunyuan_video_v2_replace_image_to_video_720p_bf16", "I2V v2"),
        ("hunyuan_video_FastVideo_720_fp8_e4m3fn", "FastHunyuan"),
        ("fast-hunyuan-video-t2v-720p-Q8_0", "FastHunyuan"),
        ("hunyuan_video_accvid_5_steps", "AccVideo"),
        ("skyreels_hunyuan_t2v_bf16", "SkyReels V1 T2V"),
        ("hunyuan_video_custom_720p_fp8_scaled", "HunyuanCustom"),
        ("my model", "does not say which"),
    ],
)
def test_the_name_is_a_hint_and_called_so(name, words, t2v, write):
    findings = inspect(write(f"{name}.safetensors", t2v))
    assert words in findings.hints[0]
    assert "prove nothing" in findings.hints[0] or name == "my model"
    assert name not in str(findings.variant)


def test_the_name_decides_nothing(t2v, write):
    """The same bytes under another name are the same model."""
    one, other = (inspect(write(name, t2v)) for name in ("skyreels_i2v.safetensors", "wan_vae.safetensors"))
    assert (one.kind, one.variant, one.lookalikes) == (other.kind, other.variant, other.lookalikes)


def test_metadata_is_quoted_without_control_characters(t2v, write):
    metadata = {"modelspec.title": "AccVideo \x1b[31m", "modelspec.author": "a" * 999, "unrelated": "x"}
    findings = inspect(write("m.safetensors", t2v, metadata))
    assert "modelspec.title = AccVideo" in findings.hints[1]
    assert "unrelated" not in str(findings)
    assert "\x1b" not in str(findings)
    assert max(map(len, str(findings).splitlines())) < 400


def test_parameters_and_memory_are_counted(t2v, write):
    findings = inspect(write("m.safetensors", t2v))
    assert findings.num_parameters == NUM_13B
    assert findings.stored == {"bf16": NUM_13B}
    assert findings.memory["as stored"] == findings.memory["as bf16"] == 2 * NUM_13B
    assert findings.memory["as fp32"] == 4 * NUM_13B
    # the published fp8 file: matrices of the blocks in one byte, the rest in two
    assert 13.1e9 < findings.memory["as fp8"] < 13.3e9


def test_memory_of_a_language_model_leaves_out_what_stays_in_the_file(write, manifest):
    whole = inspect(write("whole.safetensors", manifest("llava_llama3_8b.LlavaForConditionalGeneration")))
    text = inspect(write("text.safetensors", manifest("llama3_8b_text.LlamaModel")))
    assert whole.memory == text.memory
    assert whole.num_parameters > text.num_parameters
    assert "a vision tower (391 tensors)" in whole.notes[0]
    assert "a projector of image tokens (4 tensors)" in whole.notes[0]


def scaled(table, suffix, shape, dtype="float32"):
    """Block weights in fp8 with a tensor beside each."""
    weights = [n for n in table if "_blocks." in n and n.endswith(".weight") and len(table[n][0]) == 2]
    return {
        **{n: (s, "float8_e4m3fn" if n in weights else d) for n, (s, d) in table.items()},
        **{n.removesuffix("weight") + suffix: (shape, dtype) for n in weights},
    }


def test_plain_fp8_is_told_with_what_headers_leave_open(t2v, write):
    table = scaled(t2v, "unused", [])
    table = {name: entry for name, entry in table.items() if not name.endswith("unused")}
    findings = inspect(write("m_fp8.safetensors", table))
    assert findings.precision.startswith("fp8 (e4m3fn) without scales; fp8 e4m3fn 97%, bf16 3%")
    assert findings.notes[0].startswith("all fp8 weights have neither scales nor marks beside them")
    assert "_map.pt" in findings.notes[1]


def marked(table, lost):
    """A file of ComfyUI's newer layout; `lost` are tensors that it has no longer."""
    layers = [n.removesuffix(".weight") for n in scaled(table, "weight_scale", []) if n.endswith(".weight_scale")]
    layers = [n.removesuffix("_scale").removesuffix(".weight") for n in layers]
    marks = {"layers": {n: {"format": "float8_e4m3fn"} for n in layers if f"{n}.comfy_quant" not in lost}}
    table = {n: entry for n, entry in scaled(table, "weight_scale", []).items() if n not in lost}
    return table, {"_quantization_metadata": json.dumps(marks)}


@pytest.mark.parametrize(("size", "words"), [(600, "0.6 kB"), (2_400_000, "2.4 MB"), (25_600_000_000, "25.6 GB")])
def test_bytes_are_told_in_the_units_of_download_pages(size, words):
    assert size_words(size) == words


def test_a_lost_mark_is_told_from_the_header_alone(t2v, write):
    layer = "single_blocks.7.linear2"
    findings = inspect(write("m.safetensors", *marked(t2v, {f"{layer}.comfy_quant"})))
    assert f"does not say how 1 of its fp8 weights are scaled, such as {layer}.weight" in findings.problem
    # without its scale too, it is a layer that was cast, as far as a header tells
    findings = inspect(write("m.safetensors", *marked(t2v, {f"{layer}.comfy_quant", f"{layer}.weight_scale"})))
    assert findings.is_sound
    assert findings.notes[0].startswith("1 of 320 fp8 weights have neither scales nor marks beside them")
    assert findings.notes[0].endswith(f": {layer}.weight")


@pytest.mark.parametrize(
    ("num_fp8", "words"), [(1, "bf16 over 99.99%, fp8 e4m3fn under 0.01%"), (3072 * 8, "bf16 99.81%, fp8 e4m3fn 0.19%")]
)
def test_shares_never_round_to_all(num_fp8, words, t2v, write):
    table = t2v | {"img_in.proj.bias": ([3072], "bfloat16"), "guidance_in.mlp.0.weight": ([3072, 256], "bfloat16")}
    other = {"a.x": ([num_fp8 * 1000], "float8_e4m3fn")}
    assert inspect(write("m.safetensors", table | other)).precision.endswith(words)


@pytest.mark.parametrize("suffix", ["scale_weight", "fp8_scale"])
def test_scaled_fp8_is_told_and_scales_are_no_parameters(suffix, t2v, write):
    table = scaled(t2v, suffix, []) | {"scaled_fp8": ([0], "float8_e4m3fn")}
    findings = inspect(write("m.safetensors", table))
    assert findings.problem is None
    assert findings.precision.startswith("scaled fp8 (e4m3fn)")
    assert findings.num_parameters == NUM_13B
    assert not findings.notes


def test_comfyui_quantized_layers_are_counted(t2v, write):
    table = scaled(t2v, "weight_scale", [])
    layers = {n.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"} for n in table if n.endswith("weight_scale")}
    findings = inspect(write("m.safetensors", table, {"_quantization_metadata": json.dumps({"layers": layers})}))
    assert findings.problem is None
    assert findings.precision.startswith("ComfyUI quantized: 320 layers float8_e4m3fn")


def test_marks_in_tensors_are_read_and_nothing_else(t2v, write, monkeypatch):
    """A mark is a few bytes of JSON beside a weight: the only data that is ever read."""
    wanted = "double_blocks.0.img_mod.linear"
    mark = json.dumps({"format": "float8_e4m3fn"}).encode()
    table = {f"{wanted}.comfy_quant": ([len(mark)], "uint8"), f"{wanted}.weight_scale": ([], "float32"), **t2v}
    table[f"{wanted}.weight"] = ([18432, 3072], "float8_e4m3fn")
    path = write("m.safetensors", table)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length)
        file.write(mark)
    read = []
    original = SafetensorsFile.reading

    @contextmanager
    def spy(self):
        with original(self) as get:
            yield lambda name: (read.append(name), get(name))[1]

    monkeypatch.setattr(SafetensorsFile, "reading", spy)
    findings = inspect(path)
    assert findings.problem is None
    assert findings.precision.startswith("ComfyUI quantized: 1 layer float8_e4m3fn")
    assert set(read) == {f"{wanted}.comfy_quant"}


def test_25_gigabytes_take_no_time_and_are_not_read(t2v, write, monkeypatch):
    path = write("hunyuan_video_720_cfgdistill_bf16.safetensors", t2v)
    assert path.stat().st_size > 25e9

    def refuse(self):
        raise AssertionError("weights were opened")

    monkeypatch.setattr(SafetensorsFile, "reading", refuse)
    inspect(path)  # imports and tables are paid for here
    start = time.perf_counter()
    findings = inspect(path)
    assert time.perf_counter() - start < 2
    assert findings.is_sound


def test_what_else_is_needed_is_named_with_its_folder_and_loader(t2v, write):
    needs = " / ".join(inspect(write("m.safetensors", t2v)).needs)
    for words in (
        "llava_llama3_fp16",
        "clip_l.safetensors",
        "hunyuan_video_vae_bf16",
        "models/vae",
        "Load Text Encoders",
    ):
        assert words in needs
    image = inspect(write("i2v.safetensors", with_channels(t2v, 33, guidance=False)))
    assert "llava_llama3_vision.safetensors" in image.needs[-1]


def test_the_missing_scale_file_of_the_official_release_is_named(t2v, tmp_path):
    weights = {"double_blocks.0.img_mod.linear.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn)}
    weights["txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight"] = torch.zeros(6, 2)
    torch.save({"module": weights}, tmp_path / "mp_rank_00_model_states_fp8.pt")
    findings = inspect(tmp_path / "mp_rank_00_model_states_fp8.pt")
    assert findings.container == "PyTorch pickle"
    assert "mp_rank_00_model_states_fp8_map.pt" in findings.problem


def test_an_incomplete_file_has_a_problem_and_still_a_name(t2v, write):
    table = {name: entry for name, entry in t2v.items() if not name.startswith("double_blocks.3.txt_mlp")}
    findings = inspect(write("m.safetensors", table | {"surprise": ([1], "float32")}))
    assert findings.kind == "a HunyuanVideo transformer"
    assert findings.coverage == "852 of 856 tensors, 1 unexpected"
    assert findings.missing == tuple(
        f"double_blocks.3.txt_mlp.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    )
    assert findings.stray == ("surprise",)
    assert "lacks 4 tensors, such as double_blocks.3.txt_mlp.fc1.weight" in findings.problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>" + b" " * 99, "a web page"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b"not json at all!", "not a safetensors file"),
        (b"GGUF" + b"\x03" + b"\x00" * 60, "not a safetensors file|GGUF"),
    ],
)
def test_damage_is_a_finding(content, words, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    findings = inspect(path)
    assert not findings.is_sound
    assert re.search(words, findings.problem)
    assert "broken.safetensors" in str(findings)
    assert str(tmp_path) not in str(findings)


def test_a_missing_file_and_a_wrong_suffix_are_findings(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "does not exist" in inspect(tmp_path / "gone.safetensors").problem
    assert "files ending in '.txt' are not read" in inspect(tmp_path / "notes.txt").problem


def test_a_truncated_file_is_a_finding(t2v, write):
    path = write("m.safetensors", t2v)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert "truncated" in inspect(path).problem


@pytest.mark.parametrize("present", ["", "model.", "language_model.", "language_model.model.", "model.language_model."])
def test_findings_are_json(present, write, manifest):
    table = {present + name: entry for name, entry in manifest("llama3_8b_text.LlamaModel").items()}
    findings = inspect(write("m.safetensors", table))
    told = json.loads(json.dumps(findings.to_json()))
    assert told["prefix"] == present
    assert told["is_sound"] is True
    assert told["memory"]["as bf16"] == findings.memory["as bf16"]


def test_text_leaves_out_what_is_unknown():
    assert str(Findings(file="x.safetensors", kind="something unknown")) == (
        "x.safetensors\n  what it is:   something unknown"
    )


LORA = {
    f"transformer.double_blocks.{index}.img_attn_qkv.lora_{side}.weight": (shape, "bfloat16")
    for index in range(20)
    for side, shape in (("A", [16, 3072]), ("B", [9216, 16]))
}


def test_a_lora_is_measured_against_the_published_model(write):
    findings = inspect(write("style.safetensors", LORA))
    lora = findings.lora
    assert lora is not None
    assert (lora.matched, lora.expected, lora.ranks, lora.refusal) == (20, 20, (16,), None)
    assert lora.model == "the published 13B model"
    assert findings.opened_by == "HunyuanVideo Load LoRA"
    assert "20 of 20 layers are in the published 13B model" in str(findings)


def test_a_lora_for_another_model_is_opened_by_no_node(write):
    wan = {
        f"diffusion_model.blocks.{index}.self_attn.q.lora_{side}.weight": (shape, "bfloat16")
        for index in range(4)
        for side, shape in (("A", [16, 5120]), ("B", [5120, 16]))
    }
    findings = inspect(write("wan.safetensors", wan))
    assert findings.kind == "a LoRA for Wan"
    assert (findings.opened_by, findings.folder, findings.needs) == (None, "models/loras", ())
    assert "no node of this pack; such files belong in models/loras" in str(findings)
    assert "as fp8" not in findings.memory


def test_a_lora_of_text_encoders_alone_is_opened_by_no_node(write):
    names = [f"lora_te1_layers_0_mlp_fc1.lora_{side}.weight" for side in ("down", "up")]
    findings = inspect(write("words.safetensors", {name: ([8, 8], "bfloat16") for name in names}))
    assert findings.opened_by is None
    assert "changes" not in str(findings).replace("holds changes", "")
    assert "not applied:  2 tensors for text encoders" in str(findings)


def test_a_lora_that_widens_the_input_says_so(write):
    table = {
        "diffusion_model.img_in.proj.lora_A.weight": ([8, 32, 1, 2, 2], "bfloat16"),
        "diffusion_model.img_in.proj.lora_B.weight": ([3072, 8], "bfloat16"),
    }
    findings = inspect(write("keyframe.safetensors", table))
    assert findings.notes == ("widens the model's input from 16 to 32 latent channels",)
    assert inspect(write("style.safetensors", LORA)).notes == ()


def test_strays_of_a_lora_are_counted_and_named(write):
    strange = {
        "transformer.nothing.lora_A.weight": ([16, 8], "bfloat16"),
        "transformer.nothing.lora_B.weight": ([8, 16], "bfloat16"),
    }
    findings = inspect(write("style.safetensors", LORA | strange))
    assert findings.lora is not None
    assert (findings.lora.matched, findings.lora.expected) == (20, 21)
    assert set(findings.lora.strays) == set(strange)
    assert "transformer.nothing.lora_A.weight" in str(findings)


def test_a_lora_is_measured_against_a_file(write, manifest, tmp_path):
    model = write("plain.safetensors", manifest("hunyuanvideo_t2v_plain_transformer.official"))
    guidance = {
        f"transformer.guidance_in.mlp.0.lora_{side}.weight": (shape, "bfloat16")
        for side, shape in (("A", [16, 256]), ("B", [3072, 16]))
    }
    findings = inspect(write("style.safetensors", LORA | guidance), model_to_fit(model))
    assert findings.lora is not None
    assert findings.lora.model == "plain.safetensors"
    assert (findings.lora.matched, findings.lora.expected) == (20, 21)
    assert inspect(write("style.safetensors", LORA | guidance)).lora.matched == 21


def test_a_model_that_is_none_fits_no_lora(write, manifest):
    vae = write("vae.safetensors", manifest("hunyuanvideo_vae.official"))
    with pytest.raises(WrongModelError, match=r"vae\.safetensors is a HunyuanVideo VAE; expected a HunyuanVideo tran"):
        model_to_fit(vae)


def test_a_folder_of_shards_is_one_model(tmp_path):
    names = ["text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"]
    for index, name in enumerate(names):
        save_file({name: torch.zeros(9, 8)}, tmp_path / f"model-{index}.safetensors")
    findings = inspect(tmp_path)
    assert findings.container == "2 files that make one model"
    assert findings.kind == "a CLIP text encoder"


@pytest.mark.parametrize(
    "name", ["hunyuanvideo_t2v_plain_transformer.official", "hunyuanvideo_t2v_transformer.diffusers"]
)
def test_memory_with_fp8_made_on_load_counts_the_big_layers(name, manifest, write):
    """The 200 big layers of the blocks in one byte; modulation and all the rest in two."""
    findings = inspect(write("m.safetensors", manifest(name)))
    big = 20 * 2 * (9216 + 3072 + 2 * 12288) * 3072 + 40 * (21504 * 3072 + 3072 * 15360)
    assert findings.memory["made fp8 on load (fp8_scaled)"] == 2 * findings.num_parameters - big


def test_sizes_that_stay_ambiguous_are_described_and_asked_for(write):
    """A head size that no rope axes fit: the file's configuration has to name them."""
    shapes = {name: list(tensor.shape) for name, tensor in Transformer(tiny()).state_dict().items()}
    findings = inspect(write("m.safetensors", {name: (shape, "bfloat16") for name, shape in shapes.items()}))
    assert findings.variant == "64 wide, 2 double and 3 single blocks"
    assert "set rope_dim_list in the file's config metadata" in findings.problem
    assert findings.opened_by == "HunyuanVideo Load Model"


def test_types_of_a_gguf_file_are_counted_with_their_shares(tmp_path):
    weights = {name: tensor.float() for name, tensor in Transformer(tiny()).state_dict().items()}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "hyvid")
    writer.add_string("config", json.dumps({"rope_dim_list": [4, 6, 6]}))
    blocks = 0
    for name, tensor in weights.items():
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
            blocks += tensor.numel()
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    findings = inspect(tmp_path / "m.gguf")
    total = sum(tensor.numel() for tensor in weights.values())
    assert findings.problem is None
    assert findings.container == "GGUF"
    assert findings.stored == {"Q8_0": blocks, "fp32": total - blocks}
    assert findings.precision.startswith("GGUF Q8_0; Q8_0 ")
    # 34 bytes for each 32 weights
    assert findings.memory["as stored"] == blocks * 34 // 32 + 4 * (total - blocks)


def test_a_pickle_is_described_without_its_weights(tmp_path, monkeypatch):
    torch.save({"module": Transformer(tiny()).state_dict(), "config": {"rope_dim_list": [4, 6, 6]}}, tmp_path / "m.pt")

    def refuse(self):
        raise AssertionError("weights were opened")

    monkeypatch.setattr(PickleFile, "reading", refuse)
    findings = inspect(tmp_path / "m.pt")
    assert (findings.problem, findings.container, findings.precision) == (None, "PyTorch pickle", "fp32")


def test_a_pickle_that_would_run_code_is_a_finding(tmp_path):
    torch.save({"module": pathlib.PurePosixPath("x")}, tmp_path / "m.pt")
    assert "holds more than tensors" in inspect(tmp_path / "m.pt").problem


def test_a_language_model_of_another_vocabulary_is_told_apart(write, manifest):
    table = manifest("llama3_8b_text.LlamaModel")
    mistral = inspect(write("m.safetensors", table | {"embed_tokens.weight": ([32000, 4096], "float16")}))
    assert "Llama-3 8B" not in mistral.variant
    assert "its vocabulary is not Llama-3's (128256 to 128320 rows)" in mistral.notes[0]
    without_llava = inspect(write("m.safetensors", table | {"embed_tokens.weight": ([128256, 4096], "float16")}))
    assert "Llama-3 8B" in without_llava.variant
    assert without_llava.notes == ()


def test_nvfp4_is_counted_in_weights_and_not_in_bytes(t2v, write):
    """Two weights to a byte, and a scale for each sixteen."""
    table, layers, small = dict(t2v), {}, 0
    for name, (shape, _) in t2v.items():
        if "_blocks." in name and name.endswith(".weight") and len(shape) == 2:
            rows, columns = shape
            layer = name.removesuffix(".weight")
            layers[layer] = {"format": "nvfp4"}
            table[name] = ([rows, columns // 2], "uint8")
            table[f"{layer}.weight_scale"] = ([rows, columns // 16], "float8_e4m3fn")
            table[f"{layer}.weight_scale_2"] = ([], "float32")
            small += rows * columns
    findings = inspect(write("m.safetensors", table, {"_quantization_metadata": json.dumps({"layers": layers})}))
    assert findings.problem is None
    assert findings.precision.startswith("ComfyUI quantized: 320 layers nvfp4; nvfp4 97%")
    assert findings.stored == {"nvfp4": small, "bf16": NUM_13B - small}
    assert findings.num_parameters == NUM_13B
    assert findings.memory["as stored"] == small // 2 + small // 16 + 4 * 320 + 2 * (NUM_13B - small)
