"""LoRA files of every layout, written from the official names by rules of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import TransformerConfig, tiny
from hyvideo_nodes.hyvideo_core.loading import open_checkpoint
from hyvideo_nodes.hyvideo_core.model import Transformer
from safetensors.torch import save_file
from torch import Tensor, nn

Rows = tuple[int, int]
# the name of each part of a layer, with its rows
Spell = Callable[[str, int, int], list[tuple[str, Rows]]]

COMFY = {
    "img_mod.linear": "img_mod.lin",
    "img_attn_qkv": "img_attn.qkv",
    "img_attn_proj": "img_attn.proj",
    "img_mlp.fc1": "img_mlp.0",
    "img_mlp.fc2": "img_mlp.2",
    "txt_mod.linear": "txt_mod.lin",
    "txt_attn_qkv": "txt_attn.qkv",
    "txt_attn_proj": "txt_attn.proj",
    "txt_mlp.fc1": "txt_mlp.0",
    "txt_mlp.fc2": "txt_mlp.2",
    "modulation.linear": "modulation.lin",
    "linear1": "linear1",
    "linear2": "linear2",
}
DIFFUSERS = {
    "img_mod.linear": ["norm1.linear"],
    "img_attn_qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn_proj": ["attn.to_out.0"],
    "img_mlp.fc1": ["ff.net.0.proj"],
    "img_mlp.fc2": ["ff.net.2"],
    "txt_mod.linear": ["norm1_context.linear"],
    "txt_attn_qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn_proj": ["attn.to_add_out"],
    "txt_mlp.fc1": ["ff_context.net.0.proj"],
    "txt_mlp.fc2": ["ff_context.net.2"],
    "modulation.linear": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}


def kohya(prefix: str = "lora_unet_") -> Spell:
    return lambda name, out, _: [(prefix + name.replace(".", "_"), (0, out))]


def dotted(prefix: str) -> Spell:
    return lambda name, out, _: [(prefix + name, (0, out))]


def comfy(prefix: str, joint: str = ".") -> Spell:
    def spell(name: str, out: int, _: int) -> list[tuple[str, Rows]]:
        part, index, rest = name.split(".", 2)
        return [(prefix + f"{part}.{index}.{COMFY[rest]}".replace(".", joint), (0, out))]

    return spell


def split(rows: int, width: int, count: int) -> list[Rows]:
    bounds = [0, rows] if count == 1 else [0, width, 2 * width, 3 * width, rows]
    return list(pairwise(bounds))[:count]


def diffusers(prefix: str, joint: str = ".") -> Spell:
    def spell(name: str, out: int, width: int) -> list[tuple[str, Rows]]:
        part, index, rest = name.split(".", 2)
        block = "transformer_blocks" if part == "double_blocks" else "single_transformer_blocks"
        names = [prefix + f"{block}.{index}.{tail}".replace(".", joint) for tail in DIFFUSERS[rest]]
        return list(zip(names, split(out, width, len(names)), strict=True))

    return spell


def omi(name: str, out: int, width: int) -> list[tuple[str, Rows]]:
    count = len(DIFFUSERS[name.split(".", 2)[2]])
    names = [f"transformer.{name}" + (f".{index}" if count > 1 else "") for index in range(count)]
    return list(zip(names, split(out, width, count), strict=True))


def omi_with_its_mlps(name: str, out: int, width: int) -> list[tuple[str, Rows]]:
    return [(base.replace("mlp.fc1", "mlp.fc0"), rows) for base, rows in omi(name, out, width)]


@dataclass(frozen=True)
class Layout:
    """How one trainer writes its files."""

    spell: Spell
    words: str
    down: str = ".lora_down.weight"
    up: str = ".lora_up.weight"
    has_alpha: bool = True
    has_modulation: bool = True


PEFT = {"down": ".lora_A.weight", "up": ".lora_B.weight", "has_alpha": False}
LAYOUTS = {
    "musubi": Layout(kohya(), "kohya names (musubi-tuner)", has_modulation=False),
    "kohya with modulation": Layout(kohya(), "kohya names (musubi-tuner)"),
    "diffusion-pipe": Layout(
        dotted("transformer."), "official names behind transformer. (PEFT, diffusion-pipe)", **PEFT
    ),
    "PEFT, diffusion_model": Layout(
        dotted("diffusion_model."), "official names behind diffusion_model. (PEFT)", **PEFT
    ),
    "PEFT, no prefix": Layout(dotted(""), "official names (PEFT)", **PEFT),
    "PEFT, adapter named": Layout(
        dotted("base_model.model."),
        "official names (PEFT)",
        down=".lora_A.default.weight",
        up=".lora_B.default.weight",
        has_alpha=False,
    ),
    "ComfyUI, down and up": Layout(comfy("diffusion_model."), "ComfyUI names", has_alpha=False),
    "ComfyUI, A and B": Layout(comfy("diffusion_model."), "ComfyUI names", **PEFT),
    "ComfyUI, kohya style": Layout(comfy("lora_unet_", "_"), "ComfyUI names, kohya style"),
    "Tencent I2V": Layout(kohya("Hunyuan_video_I2V_lora_"), "names of Tencent's image-to-video trainer"),
    "finetrainers": Layout(diffusers("transformer."), "diffusers names (finetrainers)", **PEFT),
    "diffusers, no prefix": Layout(diffusers(""), "diffusers names (finetrainers)", **PEFT),
    "OneTrainer": Layout(diffusers("lora_transformer_", "_"), "diffusers names, kohya style (OneTrainer)"),
    "OneTrainer omi": Layout(omi, "OneTrainer's omi names"),
    "OneTrainer omi, its MLPs": Layout(omi_with_its_mlps, "OneTrainer's omi names"),
}


def block_layers(config: TransformerConfig, has_modulation: bool = True) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of the blocks."""
    with torch.device("meta"):
        model = Transformer(config)
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("double_blocks.", "single_blocks."))
        and (has_modulation or "mod" not in name)
    }


def factors(layout: Layout, config: TransformerConfig, rank: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's random tensors, and what they add to each weight, made dense."""
    tensors, dense = {}, {}
    for name, (out, width) in block_layers(config, layout.has_modulation).items():
        dense[name] = torch.zeros(out, width)
        for number, (base, (first, last)) in enumerate(layout.spell(name, out, width)):
            # parts of one fused layer differ in rank and alpha
            size, alpha = rank + number, float(2 + number)
            down, up = torch.randn(size, width) * 0.05, torch.randn(last - first, size) * 0.05
            tensors |= {base + layout.down: down, base + layout.up: up}
            if layout.has_alpha:
                tensors[base + ".alpha"] = torch.tensor(alpha)
            dense[name][first:last] = up @ down * (alpha / size if layout.has_alpha else 1.0)
    return tensors, dense


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture
def layouts() -> dict[str, Layout]:
    return LAYOUTS


@pytest.fixture
def make_factors() -> Callable:
    return factors


@pytest.fixture
def layers_of_blocks() -> Callable:
    return block_layers


@pytest.fixture
def config() -> TransformerConfig:
    return tiny()


@pytest.fixture
def model(config) -> Transformer:
    """A model whose every tensor is random: its norms and biases too."""
    model = Transformer(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return model.requires_grad_(False).eval()


@pytest.fixture
def inputs(config) -> tuple:
    return (
        torch.randn(1, config.in_channels, 2, 4, 6),
        torch.tensor([400.0]),
        [torch.randn(1, 5, config.text_width)],
        torch.randn(1, config.pooled_width),
        torch.tensor([6000.0]),
    )


@pytest.fixture
def write(tmp_path: Path):
    """Tensors to an opened file."""

    def write(tensors: dict[str, Tensor], name: str = "lora.safetensors", **metadata: str):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata or None)
        return open_checkpoint(tmp_path / name)

    return write
