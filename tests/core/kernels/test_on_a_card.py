"""On an NVIDIA card: fused kernels and compiled blocks compute what the plain blocks compute."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.kernels import CHOICES, CompiledBlocks, choose_kernels
from hyvideo_nodes.hyvideo_core.kernels.self_check import SAMPLES, Site, check
from hyvideo_nodes.hyvideo_core.model.elementwise import PLAIN
from hyvideo_nodes.hyvideo_core.model.transformer import Transformer, walk_blocks

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", CHOICES)
def test_kernels_at_the_models_own_sizes(choice, dtype):
    site = Site(torch.device("cuda"), dtype, 3072, 24, 128)
    kernels = choose_kernels(choice, site)
    for function in SAMPLES:
        check(function, getattr(kernels, function), getattr(PLAIN, function), site)


@torch.inference_mode()
def test_compiled_blocks():
    torch.manual_seed(0)
    config, device = tiny(), torch.device("cuda")
    model = Transformer(config).to(device)
    given = {
        "latents": torch.randn(1, config.in_channels, 3, 8, 8, device=device),
        "timesteps": torch.tensor([500.0], device=device),
        "text": [torch.randn(1, 5, config.text_width, device=device)],
        "pooled": torch.randn(1, config.pooled_width, device=device),
        "guidance": torch.tensor([6000.0], device=device),
    }
    run = walk_blocks(lambda: None, call=CompiledBlocks(device))
    expected = model(**given)
    assert (model(**given, run=run) - expected).norm() / expected.norm() < 1e-4
