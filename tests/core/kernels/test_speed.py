"""The options for speed: off is exactly PyTorch, on is the same video up to rounding."""

from __future__ import annotations

import sys

import pytest
import torch
from hyvideo_nodes.hyvideo_core.attention import CHOICES as ATTENTION_CHOICES
from hyvideo_nodes.hyvideo_core.attention import sdpa
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.kernels import SpeedOptions, choice, speed
from hyvideo_nodes.hyvideo_core.model.chunks import BlockSettings
from hyvideo_nodes.hyvideo_core.model.elementwise import PLAIN, modulated_norm
from hyvideo_nodes.hyvideo_core.model.transformer import Transformer, call_itself, walk_blocks
from hyvideo_nodes.hyvideo_core.pipeline import StartLatents, activation_bytes

CPU = torch.device("cpu")
CONFIG = tiny()


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    """No verdict of another test, and no library that happens to be installed."""
    for name in ("comfy_kitchen", "flash_attn", "flash_attn_interface", "sageattention", "triton"):
        monkeypatch.setitem(sys.modules, name, None)
    for cached in (speed._attention, speed._kernels, speed._compiled):
        cached.cache_clear()
    yield
    for cached in (speed._attention, speed._kernels, speed._compiled):
        cached.cache_clear()


def inputs():
    random = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(1, CONFIG.in_channels, 3, 8, 8, generator=random),
        "timesteps": torch.tensor([500.0]),
        "text": [torch.randn(1, 5, CONFIG.text_width, generator=random)],
        "pooled": torch.randn(1, CONFIG.pooled_width, generator=random),
        "guidance": torch.tensor([6000.0]),
    }


def test_auto_is_the_plain_attention_where_there_is_nothing_to_measure():
    assert SpeedOptions(attention="auto").on(CPU, torch.float32, CONFIG).attention is sdpa


def test_the_defaults_are_pytorchs_own_functions():
    found = SpeedOptions().on(CPU, torch.float32, CONFIG)
    assert found.attention is sdpa
    assert found.kernels is PLAIN
    assert found.call is call_itself


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION_CHOICES)
def test_every_choice_gives_the_same_video_up_to_rounding(attention):
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    fast = SpeedOptions(attention=attention, kernels="auto").on(CPU, model.dtype, CONFIG)
    settings = BlockSettings(kernels=fast.kernels)
    run = walk_blocks(lambda: None, call=fast.call)
    found = model(**inputs(), attention=fast.attention, settings=settings, run=run)
    assert torch.allclose(found, model(**inputs()), atol=1e-5)


@torch.no_grad()
def test_a_fused_kernel_is_what_the_blocks_call(monkeypatch):
    def kernel(x, affine):
        seen.append(tuple(x.shape))
        return modulated_norm(x, affine)

    seen: list[tuple[int, ...]] = []
    monkeypatch.setitem(sys.modules, "comfy_kitchen", type(sys)("comfy_kitchen"))
    monkeypatch.setitem(choice.CANDIDATES, "modulated_norm", (choice.Candidate(choice.KITCHEN, lambda: kernel),))
    model = Transformer(CONFIG)
    fast = SpeedOptions(kernels="comfy-kitchen").on(CPU, model.dtype, CONFIG)
    tries = len(seen)
    assert tries == 1
    assert torch.equal(model(**inputs(), settings=BlockSettings(kernels=fast.kernels)), model(**inputs()))
    assert len(seen) - tries == 2 * CONFIG.num_double_blocks + CONFIG.num_single_blocks


def test_eight_bits_ask_for_the_memory_of_their_copies():
    at_once = {name: SpeedOptions(attention=name).attention_copies for name in ATTENTION_CHOICES}
    assert {name: copies for name, copies in at_once.items() if copies} == {"int8": 0.5, "sage": 1.0}
    config = tiny(in_channels=16, out_channels=16)
    start = StartLatents(samples=torch.empty(1, 16, 33, 90, 160, device="meta"))
    unit = 33 * 45 * 80 * config.hidden_size * 2  # one tensor of the image tokens
    extra = activation_bytes(config, start, attention_copies=0.5) - activation_bytes(config, start)
    assert extra == pytest.approx(0.5 * 3 * unit)
    low = BlockSettings(heads_at_once=config.num_heads // 2)
    extra = activation_bytes(config, start, low, 0.5) - activation_bytes(config, start, low)
    assert extra == pytest.approx(0.5 * 3 * unit / 2)


def test_verdicts_are_kept_for_the_whole_process(monkeypatch):
    options = SpeedOptions(attention="flash", kernels="auto")
    one, other = (options.on(CPU, torch.float32, CONFIG) for _ in range(2))
    assert one.attention is other.attention
    assert one.kernels is other.kernels


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attention": "xformers"}, "attention 'xformers', expected one of sdpa"),
        ({"kernels": "apex"}, "kernels 'apex'"),
    ],
)
def test_what_there_is_not_is_refused_at_once(wrong, message):
    with pytest.raises(OptionError, match=message):
        SpeedOptions(**wrong)
