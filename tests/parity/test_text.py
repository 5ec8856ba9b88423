"""Text encoders against golden numbers; sizes and cases come from the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import ClipTextConfig, LlamaConfig
from hyvideo_nodes.hyvideo_core.text_encoders import build_clip, build_llama, gather_valid, load_clip, load_llama
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


class Golden(NamedTuple):
    meta: dict
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


def read(path: Path) -> Golden:
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    return Golden(meta, load_file(path))


@pytest.fixture(scope="module")
def llama_golden(golden_dir: Path) -> Golden:
    return read(golden_dir / "text_crop_t2v.safetensors")


@pytest.fixture(scope="module")
def encoded(llama_golden: Golden) -> dict[str, Tensor]:
    """States of every case, by `<case>.<template>`."""
    sizes = llama_golden.meta["llama"]
    config = LlamaConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["hidden"],
        ffn_size=sizes["ffn"],
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        num_kv_heads=sizes["kv_heads"],
        rope_theta=sizes["rope_theta"],
        rms_eps=sizes["rms_eps"],
    )
    encoder = build_llama(config, dtype=torch.float32, skip_layers=llama_golden.meta["hidden_state_skip_layer"])
    weights = llama_golden.under("llama.")
    weights.pop("final_layer_norm.weight", None)  # a second copy of the norm, for a mode that is not used
    load_llama(encoder, weights)
    tensors = llama_golden.tensors
    cases = [key.removesuffix(".embeds") for key in tensors if key.endswith(".embeds")]
    assert cases
    with torch.no_grad():
        return {case: encoder(tensors[f"{case}.input_ids"], tensors[f"{case}.attention_mask"]) for case in cases}


def crop_of(case: str, golden: Golden) -> int:
    return golden.meta[f"crop_start_{case.rpartition('.')[2]}"]


def test_padded_prompts_give_the_cropped_states(llama_golden: Golden, encoded: dict[str, Tensor]) -> None:
    for case, states in encoded.items():
        expected = llama_golden.tensors[f"{case}.embeds"]
        actual = states[:, crop_of(case, llama_golden) :]
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5, msg=lambda text, case=case: f"{case}: {text}")


def test_valid_tokens_alone_give_the_same_states(llama_golden: Golden, encoded: dict[str, Tensor]) -> None:
    for case, states in encoded.items():
        crop, tensors = crop_of(case, llama_golden), llama_golden.tensors
        expected = gather_valid(tensors[f"{case}.embeds"], tensors[f"{case}.mask"])
        actual = gather_valid(states[:, crop:], tensors[f"{case}.attention_mask"][:, crop:])
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_states_are_the_stored_hidden_states(llama_golden: Golden, encoded: dict[str, Tensor]) -> None:
    index = llama_golden.meta["llama"]["layers"] - llama_golden.meta["hidden_state_skip_layer"]
    stored = [case for case in encoded if f"{case}.hidden_states.{index}" in llama_golden.tensors]
    assert stored
    for case in stored:
        expected = llama_golden.tensors[f"{case}.hidden_states.{index}"]
        torch.testing.assert_close(encoded[case], expected, rtol=0, atol=2e-5)


def test_clip_pools_the_first_end_token(golden_dir: Path) -> None:
    golden = read(golden_dir / "clip_pooled.safetensors")
    sizes = golden.meta
    config = ClipTextConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["hidden"],
        ffn_size=sizes["ffn"],
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        max_positions=sizes["max_pos"],
        activation=sizes["act"],
        norm_eps=sizes["ln_eps"],
    )
    encoder = build_clip(config, dtype=torch.float32)
    load_clip(encoder, golden.under("clip."))
    ids, expected = golden.tensors["input_ids"], golden.tensors["pooled"]
    torch.testing.assert_close(encoder(ids, sizes["eos"]), expected, rtol=0, atol=1e-5)
    for i, row in enumerate(ids):
        unpadded = row[: int((row == sizes["eos"]).int().argmax()) + 1]
        pooled = encoder(unpadded[None], sizes["eos"])
        torch.testing.assert_close(pooled, expected[i : i + 1], rtol=0, atol=1e-5)
