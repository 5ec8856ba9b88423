"""Files that are damaged, foreign, or only partly for this model: told apart, counted, named; never dropped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.config import HYVIDEO_T2_CFGDISTILL, tiny
from hyvideo_nodes.hyvideo_core.doctor import inspect
from hyvideo_nodes.hyvideo_core.errors import CorruptFileError, HyVideoError, WrongModelError
from hyvideo_nodes.hyvideo_core.loading import open_checkpoint
from hyvideo_nodes.hyvideo_core.loading.checkpoint import TensorInfo
from hyvideo_nodes.hyvideo_core.loading.safetensors_file import SafetensorsFile
from hyvideo_nodes.hyvideo_core.lora import (
    Attached,
    load_lora,
    open_lora,
    recognise_lora,
    with_loras,
)
from hyvideo_nodes.hyvideo_core.model import Transformer
from safetensors.torch import save_file

BASE = "lora_unet_double_blocks_0_img_attn_proj"


def pair(base: str, out: int = 64, width: int = 64, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{base}.lora_down.weight": torch.randn(rank, width), f"{base}.lora_up.weight": torch.randn(out, rank)}


def header(shapes: dict[str, tuple[int, ...]], **metadata: str) -> SafetensorsFile:
    infos = {name: TensorInfo(shape, torch.float32) for name, shape in shapes.items()}
    return SafetensorsFile(path=Path("some.safetensors"), tensors=infos, metadata=metadata)


def pairs(bases: list[str], out: int = 3072, width: int = 3072) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for base in bases:
        shapes |= {f"{base}.lora_down.weight": (8, width), f"{base}.lora_up.weight": (out, 8)}
    return shapes


def test_strays_are_counted_and_named(config, write):
    tensors = pair(BASE) | pair("lora_unet_double_blocks_9_img_attn_proj") | {"lora_unet_what": torch.zeros(1)}
    coverage = open_lora(write(tensors), config).coverage
    assert (coverage.matched, coverage.expected, len(coverage.stray)) == (1, 2, 3)
    assert not coverage.is_complete
    assert "1 of 2 layers matched, 3 stray tensors (lora_unet_double_blocks_9_img_attn_proj.lora_down" in str(coverage)
    assert "lora_unet_what" in str(coverage)


def test_text_encoder_layers_are_reported_as_not_applied(config, write):
    tensors = pair(BASE) | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1") | pair("lora_te2_layers_0_mlp_up_proj")
    coverage = open_lora(write(tensors), config).coverage
    assert (coverage.matched, coverage.expected, coverage.stray, len(coverage.text_encoder)) == (1, 1, (), 4)
    assert "1 of 1 layers matched, 0 stray tensors, 4 tensors (lora_te1_text_model" in str(coverage)
    assert str(coverage).endswith(") for text encoders, not applied")


def test_a_lora_for_text_encoders_alone_is_refused(config, write):
    with pytest.raises(WrongModelError, match="holds changes for text encoders only"):
        open_lora(write(pair("lora_te1_text_model_encoder_layers_0_mlp_fc1")), config)


def test_a_file_that_is_no_lora_is_named(model, config, write):
    with pytest.raises(WrongModelError, match="is a HunyuanVideo transformer; expected a LoRA"):
        open_lora(write(dict(model.state_dict())), config)


UNAPPLIED = {
    "OFT or BOFT": {"oft_blocks": (4, 16, 16), "alpha": ()},
    "BOFT": {"boft_R.": (1, 4, 16, 16), "boft_s": (64, 1)},
    "OFT": {"oft_R.default.weight": (4, 120)},
    "GLoRA": {f"{part}.weight": (4, 4) for part in ("a1", "a2", "b1", "b2")} | {"alpha": ()},
    "IA3": {"weight": (64, 1), "on_input": ()},
    "VeRA": {"vera_lambda_b": (64,), "vera_lambda_d": (4,)},
}


def of_kind(kind: str, base: str) -> dict[str, torch.Tensor]:
    return {f"{base}.{part}".rstrip("."): torch.ones(shape) for part, shape in UNAPPLIED[kind].items()}


@pytest.mark.parametrize("kind", list(UNAPPLIED))
def test_a_kind_of_change_that_is_not_applied_is_refused_by_its_name(kind, config, write):
    file = write(of_kind(kind, BASE))
    with pytest.raises(
        WrongModelError, match=f"is a file of {kind}, a kind of change that no node applies; expected a"
    ):
        open_lora(file, config)
    findings = inspect(file.path)
    assert findings.kind == f"a file of {kind}, a kind of change that no node applies"
    assert findings.opened_by is None and findings.folder == "models/loras"


@pytest.mark.parametrize("kind", list(UNAPPLIED))
def test_layers_of_another_kind_in_a_lora_are_strays_by_its_name(kind, config, write):
    other = of_kind(kind, "lora_unet_double_blocks_1_img_attn_proj")
    coverage = open_lora(write(pair(BASE) | other), config).coverage
    assert (coverage.matched, coverage.expected, set(coverage.stray)) == (1, 2, set(other))
    assert f"among them {kind}, which is not applied" in str(coverage)


def test_a_layer_of_two_kinds_keeps_its_own_scale(config, write):
    tensors = pair(BASE) | {f"{BASE}.oft_blocks": torch.ones(4, 16, 16), f"{BASE}.alpha": torch.tensor(6.0)}
    lora = open_lora(write(tensors), config)
    assert lora.coverage.stray == (f"{BASE}.oft_blocks",)
    assert load_lora(lora, dtype=torch.float32)[lora.entries[0]].factor.scale == 3.0


@pytest.mark.parametrize("num_others", [1, 2, 9, 11])
def test_what_the_doctor_calls_a_lora_opens_however_much_else_it_holds(num_others, config, write):
    file = write(pair(BASE) | {f"x.y{index}.weird": torch.ones(1) for index in range(num_others)})
    if inspect(file.path).kind == "a LoRA":
        assert len(open_lora(file, config).coverage.stray) == num_others
    else:
        with pytest.raises(WrongModelError, match="is something unknown"):
            open_lora(file, config)


@pytest.mark.parametrize("part", ["lora_A.mine.weight", "set_weight", "lora_up"])
def test_the_doctor_knows_every_spelling_that_opens(part, config, write):
    tensors = {f"{BASE}.{part}": torch.zeros(64, 64)}
    if part.startswith("lora"):
        tensors[f"{BASE}.{part.replace('lora_A', 'lora_B').replace('lora_up', 'lora_down')}"] = torch.zeros(64, 64)
    file = write(tensors)
    assert open_lora(file, config).coverage.is_complete
    assert inspect(file.path).opened_by == "HunyuanVideo Load LoRA" or "another size" in str(inspect(file.path))


FOREIGN = {
    "Wan": pairs([f"diffusion_model.blocks.{i}.self_attn.q" for i in range(3)], 5120, 5120),
    "LTX Video": pairs([f"transformer.transformer_blocks.{i}.attn1.to_q" for i in range(3)], 2048, 2048),
    "SDXL": pairs(["lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"], 640, 640),
    "Qwen-Image": pairs(["transformer.transformer_blocks.0.img_mod.1"], 18432, 3072),
    "Lumina": pairs(["diffusion_model.layers.0.attention.qkv"], 3840, 3840),
    "Mochi": pairs(["transformer.blocks.0.attn.qkv_x"], 3072, 3072),
}


@pytest.mark.parametrize("family", list(FOREIGN))
def test_loras_of_other_models_are_refused_by_name(family):
    file = header(FOREIGN[family])
    with pytest.raises(WrongModelError, match=rf"is a LoRA for .*{family}.* in names with .*: 0 of \d+ layers"):
        open_lora(file, HYVIDEO_T2_CFGDISTILL)
    kind = recognise_lora(file)
    assert family in kind.family and not kind.fits and kind.coverage.matched == 0


def test_a_lora_of_hunyuanvideo_15_is_known_by_its_width_or_its_split_attention():
    split = header(pairs([f"lora_unet_double_blocks_0_img_attn_{p}" for p in "qkv"], 2048, 2048))
    fused = header(pairs(["diffusion_model.double_blocks.0.img_attn_qkv"], 6144, 2048))
    for file in (split, fused):
        with pytest.raises(
            WrongModelError, match=r"is a LoRA for HunyuanVideo 1.5 .* x 2048, double_blocks.0.img_attn_qkv "
        ):
            open_lora(file, HYVIDEO_T2_CFGDISTILL)


def test_split_attention_of_hunyuanvideos_own_width_is_its_own():
    split = header(pairs([f"lora_unet_double_blocks_0_img_attn_{p}" for p in "qkv"]))
    assert open_lora(split, HYVIDEO_T2_CFGDISTILL).family is None


def flux_shapes(num_double: int, num_single: int) -> dict[str, tuple[int, ...]]:
    doubles = [f"lora_unet_double_blocks_{i}_img_attn_proj" for i in range(num_double)]
    return pairs(doubles) | pairs(
        [f"lora_unet_single_blocks_{i}_modulation_lin" for i in range(num_single)], 9216, 3072
    )


def test_flux_in_diffusers_names_is_refused_too():
    bases = [f"transformer.transformer_blocks.{i}.attn.to_q" for i in range(19)]
    bases += [f"transformer.single_transformer_blocks.{i}.attn.to_q" for i in range(38)]
    with pytest.raises(WrongModelError, match="is a LoRA for Flux"):
        open_lora(header(pairs(bases)), HYVIDEO_T2_CFGDISTILL)
    assert open_lora(header(pairs(bases[:-1])), HYVIDEO_T2_CFGDISTILL).family is None


def test_flux_is_told_by_the_number_of_its_blocks_and_by_its_metadata():
    assert "Flux" in recognise_lora(header(flux_shapes(19, 38))).family
    with pytest.raises(WrongModelError, match=r"is a LoRA for Flux \(19 double and 38 single blocks, of the same"):
        open_lora(header(flux_shapes(19, 38)), HYVIDEO_T2_CFGDISTILL)
    assert recognise_lora(header(flux_shapes(20, 40))).family is None
    marked = header(flux_shapes(20, 40), **{"modelspec.architecture": "flux-1-dev/lora"})
    with pytest.raises(WrongModelError, match="is a LoRA for Flux"):
        open_lora(marked, HYVIDEO_T2_CFGDISTILL)


def test_a_lora_for_another_size_names_both_sizes(config, write):
    with pytest.raises(
        WrongModelError, match=r"is for a model of another size: 1 of 1 .* of 96 x 96, .* takes 64 x 64"
    ):
        open_lora(write(pair(BASE, 96, 96)), config)
    kind = recognise_lora(write(pair(BASE, 96, 96)), config)
    assert kind.coverage.matched == 0 and len(kind.coverage.stray) == 2 and "64 x 64" in kind.refusal


def test_no_lora_is_nothing_to_recognise(model, write):
    assert recognise_lora(write(dict(model.state_dict()))) is None
    assert recognise_lora(header({f"text_encoders.llama.layers.{i}.weight": (4, 4) for i in range(9)})) is None


def test_a_file_for_blocks_that_the_model_lacks_names_its_layout(config):
    file = header(pairs([f"lora_unet_double_blocks_{i}_img_mlp_fc2" for i in range(5, 9)], 64, 256))
    with pytest.raises(WrongModelError, match=r"is a LoRA in kohya names \(musubi-tuner\): 0 of 4 layers have a place"):
        open_lora(file, config)


def test_a_lora_whose_names_nobody_knows_says_how_they_are_written(config):
    shapes = {f"net.part{i}.x.lora_{side}.weight": (8, 8) for i in range(3) for side in "AB"}
    words = r"in names with dots behind net.part, lora_A and lora_B \(PEFT\): 0 of 3 layers .*net.part0.x.lora_A.weight"
    with pytest.raises(WrongModelError, match=words):
        open_lora(header(shapes), config)


DAMAGED = {
    "has down but no up": {f"{BASE}.lora_down.weight": torch.zeros(2, 64)},
    "has up but no down": {f"{BASE}.lora_up.weight": torch.zeros(64, 2)},
    r"its up is \[64, 3\], expected rank 2": pair(BASE) | {f"{BASE}.lora_up.weight": torch.zeros(64, 3)},
    "expected a matrix": pair(BASE) | {f"{BASE}.lora_down.weight": torch.zeros(64)},
    "expected one number": pair(BASE) | {f"{BASE}.alpha": torch.zeros(2)},
    "nothing to scale": {f"{BASE}.alpha": torch.zeros(1)},
    "a DoRA scale and no factors": {f"{BASE}.dora_scale": torch.zeros(64, 1), f"{BASE}.diff_b": torch.zeros(64)},
    r"its magnitude is \[3, 1\]": pair(BASE) | {f"{BASE}.dora_scale": torch.zeros(3, 1)},
    r"no hada_w2_b": {
        f"{BASE}.hada_w1_a": torch.zeros(64, 2),
        f"{BASE}.hada_w1_b": torch.zeros(2, 64),
        f"{BASE}.hada_w2_a": torch.zeros(64, 2),
    },
    "no lokr_w2_b": {f"{BASE}.lokr_w1": torch.zeros(8, 8), f"{BASE}.lokr_w2_a": torch.zeros(8, 2)},
    r"its diff_b is \[64\], expected \[1\]": {
        f"{BASE}.set_weight": torch.zeros(1, 64),
        f"{BASE}.diff_b": torch.zeros(64),
    },
    "a second time": pair(BASE) | {f"{BASE}.lora_A.weight": torch.zeros(2, 64)},
    "changes double_blocks.0.img_attn_proj twice": pair(BASE) | pair("transformer.double_blocks.0.img_attn_proj"),
    "factors for a norm": pair("diffusion_model.double_blocks.0.img_attn_q_norm", 16, 1),
    "changes a bias that": {"double_blocks.0.img_attn_q_norm.diff_b": torch.zeros(16)},
    "impossible sizes": {},
}


@pytest.mark.parametrize("words", list(DAMAGED))
def test_damaged_files_say_what_is_wrong(words, config, write):
    huge = {f"{BASE}.lokr_w1_a": (2**40, 1), f"{BASE}.lokr_w1_b": (1, 2**40), f"{BASE}.lokr_w2": (1, 1)}
    file = header(huge) if words == "impossible sizes" else write(DAMAGED[words])
    with pytest.raises(CorruptFileError, match=words):
        open_lora(file, config)
    assert not recognise_lora(file, config).fits


@pytest.mark.parametrize("part", ["lora_up.weight", "alpha"])
def test_numbers_that_are_not_finite_are_refused_when_factors_load(part, config, write):
    tensors = pair(BASE) | {f"{BASE}.alpha": torch.tensor(1.0)}
    tensors[f"{BASE}.{part}"] = torch.full_like(tensors[f"{BASE}.{part}"], float("nan"))
    lora = open_lora(write(tensors), config)
    with pytest.raises(CorruptFileError, match=rf"lora\.safetensors: {BASE}.*(is nan|holds NaN or infinity)"):
        load_lora(lora, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_whole_numbers_in_place_of_factors_are_refused(dtype, config, write):
    tensors = pair(BASE) | {f"{BASE}.alpha": torch.tensor(2, dtype=torch.int64)}
    open_lora(write(tensors), config)
    tensors[f"{BASE}.lora_down.weight"] = torch.ones(2, 64, dtype=dtype)
    words = f"the down of {BASE} is stored as {str(dtype).removeprefix('torch.')}, which is not read"
    with pytest.raises(WrongModelError, match=words):
        open_lora(write(tensors), config)


PARTS = ["lora_down.weight", "lora_up.weight", "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_mid.weight"]
PARTS += ["alpha", "dora_scale", "diff", "diff_b", "set_weight", "reshape_weight", "hada_w1_a", "hada_w1_b"]
PARTS += ["hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_t2"]
PARTS += ["lokr_w2_a", "lokr_w2_b", "oft_blocks", "weight"]
BASES = [BASE, "transformer.single_blocks.0.linear1", "transformer.transformer_blocks.0.attn.to_q"]
BASES += ["img_in.proj", "transformer.norm_out.linear", "lora_te1_x", "unknown", "double_blocks.0.img_attn_q_norm"]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 8, 16, 64, 128]), max_size=5).map(tuple)
FITTING = st.sampled_from([(2, 64), (64, 2), (64, 64), (), (1,), (8, 8)])
SOUND = [
    {"lora_down.weight": (2, 64), "lora_up.weight": (64, 2), "alpha": (), "dora_scale": (1, 64), "diff_b": (64,)},
    {"lora_A.weight": (3, 64), "lora_mid.weight": (3, 3), "lora_B.weight": (64, 3)},
    {"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64), "alpha": (1,)},
    {"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8), "dora_scale": (64, 1)},
    {"set_weight": (64, 64), "diff_b": (64,)},
    {"diff": (64, 64), "reshape_weight": (2,)},
]
TINY = tiny()
MODEL = Transformer(TINY).requires_grad_(False)


@st.composite
def nearly_sound(draw):
    """A file that could be applied, with one part lost, misshapen, or added."""
    base, parts = draw(st.sampled_from(BASES)), dict(draw(st.sampled_from(SOUND)))
    match draw(st.integers(0, 3)):
        case 0:
            parts.pop(draw(st.sampled_from(list(parts))))
        case 1:
            parts[draw(st.sampled_from(list(parts)))] = draw(SHAPES)
        case 2:
            parts[draw(st.sampled_from(PARTS))] = draw(FITTING)
    return {(base, part): shape for part, shape in parts.items()}


@settings(max_examples=200)
@given(
    st.dictionaries(st.tuples(st.sampled_from(BASES), st.sampled_from(PARTS)), SHAPES | FITTING, min_size=1, max_size=6)
    | nearly_sound()
)
def test_any_mixture_of_parts_is_applied_or_refused_as_ours(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    if any(math.prod(shape) > 2**20 for shape in parts.values()):
        return
    tensors = {f"{base}.{part}": torch.ones(shape) for (base, part), shape in parts.items()}
    save_file(tensors, path)
    try:
        file = open_checkpoint(path)
        recognise_lora(file, TINY)
        lora = open_lora(file, TINY)
        view = with_loras(MODEL, [Attached(lora=lora, weights=load_lora(lora, dtype=torch.float32))])
    except HyVideoError:
        return
    counted = len(lora.coverage.stray) + len(lora.coverage.text_encoder)
    assert counted + sum(len(entry.parts) for entry in lora.entries) == len(tensors)
    channels = view.config.in_channels
    text, pooled = [torch.zeros(1, 2, TINY.text_width)], torch.zeros(1, TINY.pooled_width)
    view(torch.zeros(1, channels, 1, 2, 2), torch.zeros(1), text, pooled, torch.zeros(1))
