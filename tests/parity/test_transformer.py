"""The transformer against the official implementation's numbers, loaded through the product's own loader."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from hyvideo_nodes.hyvideo_core.loading import build_transformer, detect_transformer, open_checkpoint
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.linear import Linear
from hyvideo_nodes.hyvideo_core.model.rope import rope_table
from hyvideo_nodes.hyvideo_core.quantization import Fp8Linear
from safetensors import safe_open
from safetensors.torch import load_file


def load_model(golden_dir, dtype=torch.float32) -> Transformer:
    return build_transformer(detect_transformer(open_checkpoint(golden_dir / "dit_weights.safetensors")), dtype=dtype)


def with_config(model: Transformer, changed: dict[str, torch.Tensor] | None = None, **sizes) -> Transformer:
    """A model of another configuration with the same weights, except those that are changed or not there."""
    other = Transformer(replace(model.config, **sizes)).eval()
    weights = model.state_dict() | (changed or {})
    other.load_state_dict({key: weights[key] for key in other.state_dict()})
    return other


def sample(case: dict, index: int) -> dict:
    """One sample of a golden batch, its text cut to its real length."""
    one = slice(index, index + 1)
    valid = case["in.text_mask"][index].bool()
    return {
        "latents": case["in.x"][one],
        "timesteps": case["in.t"][one],
        "text": [case["in.text_states"][one][:, valid]],
        "pooled": case["in.text_states_2"][one],
        "guidance": case["in.guidance"][one] if "in.guidance" in case else None,
    }


@torch.no_grad()
def velocities(model: Transformer, case: dict) -> torch.Tensor:
    return torch.cat([model(**sample(case, index)) for index in range(len(case["in.x"]))])


def golden_meta(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("meta", "{}"))


def plain_cases(golden_dir) -> list[Path]:
    """Float32 forwards of the whole model as it is, with or without guidance; probes and formats have own tests."""
    special = ("weights", "eps_probe", "fp8", "bf16", "token_replace")
    return [path for path in sorted(golden_dir.glob("dit_*.safetensors")) if not any(s in path.name for s in special)]


def test_velocities_match_the_reference(golden_dir):
    cases = plain_cases(golden_dir)
    assert len(cases) >= 3
    for path in cases:
        case = load_file(path)
        model = load_model(golden_dir)
        if "in.guidance" not in case:
            model = with_config(model, has_guidance=False)
        if "weight.img_in.proj.weight" in case:  # latent concatenation: more input channels, the same forward
            widened = case["weight.img_in.proj.weight"]
            model = with_config(model, in_channels=widened.shape[1], changed={"img_in.proj.weight": widened})
        assert (velocities(model, case) - case["out.velocity"]).abs().max() <= 2e-5, path.name


def test_diffusers_names_give_the_same_weights_bit_for_bit(golden_dir):
    checkpoint = open_checkpoint(golden_dir / "dit_weights_diffusers.safetensors")
    reference = load_model(golden_dir)
    # diffusers' layout carries no head count in this file's metadata, the norms tell it
    given = open_checkpoint(golden_dir / "dit_weights.safetensors").config
    checkpoint = type(checkpoint)(path=checkpoint.path, tensors=checkpoint.tensors, config=given)
    model = build_transformer(detect_transformer(checkpoint), dtype=torch.float32)
    for key, weight in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], weight), key


def hook_stages(model: Transformer) -> dict[str, torch.Tensor]:
    """Outputs of the parts that have a golden counterpart, filled during a forward."""
    parts = {
        "img_in": model.img_in,
        "time_in": model.time_in,
        "vector_in": model.vector_in,
        "guidance_in": model.guidance_in,
        "txt_in": model.txt_in,
        "txt_in.t_embedder": model.txt_in.t_embedder,
        "txt_in.c_embedder": model.txt_in.c_embedder,
        "txt_in.input_embedder": model.txt_in.input_embedder,
        "final_layer": model.final_layer,
        "double0.img_attn": None,
    }
    for index, block in enumerate(model.txt_in.individual_token_refiner.blocks):
        parts[f"txt_in.refiner_block{index}"] = block
    seen: dict[str, torch.Tensor] = {}
    for name, module in parts.items():
        if module is not None:
            # clones: blocks may write into their inputs
            module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.clone()))
    for index, block in enumerate(model.double_blocks):

        def keep(_module, _inputs, out, index=index):
            seen[f"double{index}.img"], seen[f"double{index}.txt"] = out[0].clone(), out[1].clone()

        block.register_forward_hook(keep)
    for index, block in enumerate(model.single_blocks):
        block.register_forward_hook(lambda _m, _i, out, i=index: seen.__setitem__(f"single{i}", out.clone()))
    if len(model.double_blocks):
        block = model.double_blocks[0]
        block.img_attn_q_norm.register_forward_hook(
            lambda _m, _i, out: seen.__setitem__("double0.img_q_normed", out.clone())
        )
        block.img_attn_qkv.register_forward_pre_hook(
            lambda _m, inputs: seen.__setitem__("double0.img_modulated", inputs[0].clone())
        )
        for stream in ("img", "txt"):
            getattr(block, f"{stream}_attn_proj").register_forward_pre_hook(
                lambda _m, inputs, s=stream: seen.__setitem__(f"double0.{s}_attn", inputs[0].clone())
            )
    return seen


def valid_rows(golden: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
    """Golden rows without those of padding text tokens, which never exist in our forward."""
    if golden.ndim < 3 or golden.shape[0] == length:
        return golden
    tail = mask.shape[0]
    return torch.cat((golden[:, : golden.shape[1] - tail], golden[:, golden.shape[1] - tail :][:, mask]), dim=1)


@torch.no_grad()
def test_every_stage_matches_the_reference(golden_dir):
    case = load_file(golden_dir / "dit_t2v_cfgdistill.safetensors")
    model = load_model(golden_dir)
    compared = set()
    for index in range(len(case["in.x"])):
        seen = hook_stages(model)
        model(**sample(case, index))
        mask = case["in.text_mask"][index].bool()
        for name, value in seen.items():
            golden = case.get(f"stage.{name}")
            if golden is None:
                continue
            golden = golden[index : index + 1]
            if golden.ndim > 2 and golden.shape[1] != value.shape[1]:
                golden = valid_rows(golden, mask, value.shape[1])
            assert value.shape == golden.shape, name
            assert (value - golden).abs().max() <= (2e-5 if name[:6] in ("single", "final_") else 1e-5), name
            compared.add(name)
    stages = {name.removeprefix("stage.") for name in case if name.startswith("stage.")}
    # what no module of ours gives out by itself; the parts that use it are compared
    inner = {"vec", "txt_in.pooled_mean", "double0.img_mod", "double0.txt_mod"}
    assert compared == stages - inner


@torch.no_grad()
def test_norm_epsilons_match_the_reference(golden_dir):
    path = golden_dir / "dit_eps_probe.safetensors"
    case, rules = load_file(path), golden_meta(path)["scale_rules"]
    model = load_model(golden_dir)
    for key, weight in model.state_dict().items():
        factors = [factor for pattern, factor in rules.items() if re.search(pattern, key)]
        if factors:
            weight.mul_(factors[-1])
    seen = hook_stages(model)
    assert (velocities(model, case) - case["out.velocity"]).abs().max() <= 2e-5
    golden = valid_rows(case["stage.txt_in"], case["in.text_mask"][0].bool(), seen["txt_in"].shape[1])
    assert (seen["txt_in"] - golden).abs().max() <= 1e-6


@torch.no_grad()
def test_bfloat16_keeps_the_dtype_of_every_stage(golden_dir):
    case = load_file(golden_dir / "dit_t2v_cfgdistill_bf16_emulated.safetensors")
    model = load_model(golden_dir, torch.bfloat16)
    seen = hook_stages(model)
    result = velocities(model, case)
    for name, value in seen.items():
        if f"stage.{name}" in case:
            assert value.dtype == case[f"stage.{name}"].dtype, name
    reference = case["out.velocity"].float()
    assert result.dtype == torch.bfloat16
    assert (result.float() - reference).norm() / reference.norm() < 1e-2


@torch.no_grad()
def test_fp8_weights_with_scales_match_the_reference(golden_dir):
    case = load_file(golden_dir / "dit_fp8.safetensors")
    model = load_model(golden_dir)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear) and f"fp8.{name}.weight" in case:
            weight = case[f"fp8.{name}.weight"]
            small = Fp8Linear(
                layer.in_features,
                layer.out_features,
                has_bias=True,
                weight_dtype=weight.dtype,
                compute_dtype=torch.float32,
                scaled=True,
            )
            small.load_state_dict({"weight": weight, "bias": layer.bias, "scale": case[f"map.{name}"]}, assign=True)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, small)
    assert (velocities(model, case) - case["out.velocity"]).abs().max() <= 2e-5


def test_rope_tables_match_the_reference(golden_dir):
    case = load_file(golden_dir / "rope.safetensors")
    tiny_axes = load_model(golden_dir).config.rope_axes
    compared = 0
    for name in {key.rsplit(".", 1)[0] for key in case if key.endswith(".cos")}:
        kind, _, size = name.partition(".")
        grid = tuple(int(part) for part in (size or kind.removeprefix("grid")).split("x"))
        head_size = case[f"{name}.cos"].shape[-1]
        axes = tiny_axes if sum(tiny_axes) == head_size else tuple(head_size * part // 16 for part in (2, 7, 7))
        rope = rope_table(grid, axes, golden_meta(golden_dir / "rope.safetensors")["theta"])
        for table, golden in ((rope.cos, case[f"{name}.cos"]), (rope.sin, case[f"{name}.sin"])):
            rows = table[case[f"{name}.rows"]] if f"{name}.rows" in case else table
            assert (rows.repeat_interleave(2, dim=-1) - golden).abs().max() <= 1e-6, name
            compared += 1
    assert compared >= 10


def test_rotation_matches_the_reference(golden_dir):
    from hyvideo_nodes.hyvideo_core.model.elementwise import rotate_image

    path = golden_dir / "rope.safetensors"
    case = load_file(path)
    grid = tuple(int(part) for part in golden_meta(path)["apply_grid"].split("x"))
    rope = rope_table(grid, (16, 56, 56), 256.0)
    for name in ("q", "k"):
        assert (rotate_image(case[f"apply.{name}_in"], rope) - case[f"apply.{name}_out"]).abs().max() <= 1e-5


def test_head_norm_matches_the_reference(golden_dir):
    from hyvideo_nodes.hyvideo_core.model.elementwise import rms_norm

    case = load_file(golden_dir / "rmsnorm.safetensors")
    assert (rms_norm(case["x"], case["weight"]) - case["y"]).abs().max() <= 1e-6
    assert torch.equal(rms_norm(case["x_bf16"], case["weight_bf16"]), case["y_bf16"])


def test_timestep_embedding_matches_the_reference(golden_dir):
    from hyvideo_nodes.hyvideo_core.model.embeddings import ScalarEmbed, sinusoid

    case = load_file(golden_dir / "timestep_embedding.safetensors")
    for match in filter(None, (re.match(r"emb(\d+)", key) for key in case)):
        assert (sinusoid(case["t"], int(match[1])) - case[match.string]).abs().max() <= 1e-5
    width = case["mlp.mlp.2.weight"].shape[0]
    embed = ScalarEmbed(width)
    embed.load_state_dict({key.removeprefix("mlp."): value for key, value in case.items() if key.startswith("mlp.mlp")})
    assert (embed(case["t"]) - case["mlp_out"]).abs().max() <= 1e-5


def test_guidance_is_rounded_in_the_models_dtype(golden_dir):
    from hyvideo_nodes.hyvideo_core.model.transformer import guidance_input

    case = load_file(golden_dir / "timestep_embedding.safetensors")
    model = load_model(golden_dir, torch.bfloat16)
    for scale, golden in zip(case["guidance_bf16.in"].tolist(), case["guidance_bf16.times1000"], strict=True):
        assert guidance_input(scale, 1, model, torch.device("cpu"))[0] == golden
    assert guidance_input(6.0, 1, model, torch.device("cpu"))[0] == 6016
