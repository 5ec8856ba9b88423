"""On an NVIDIA card: every choice, whatever is installed there, gives attention."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.attention import CHOICES, ChosenAttention
from hyvideo_nodes.hyvideo_core.attention.self_check import LOSSY_ERROR, relative_error, rows_in_float32

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_agrees_with_float32_on_rows_of_a_real_length(name, dtype):
    random = torch.Generator("cuda").manual_seed(0)
    buffer = torch.randn(1, 4197, 3, 24, 128, generator=random, device="cuda").to(dtype)
    q, k, v = buffer.unbind(2)
    with torch.no_grad():
        out = ChosenAttention(name)(q, k, v)
    rows = torch.linspace(0, q.shape[1] - 1, 64, device="cuda").long()
    limit = LOSSY_ERROR if any(kernel.is_lossy for kernel in CHOICES[name]) else 1e-2
    assert relative_error(out[:, rows].float().cpu(), rows_in_float32(q, k, v)) < limit
