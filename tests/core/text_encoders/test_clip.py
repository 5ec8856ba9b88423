"""The CLIP text encoder: which state is pooled, the names its files use, strict loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import ClipTextConfig
from hyvideo_nodes.hyvideo_core.errors import ConditioningError, WrongModelError
from hyvideo_nodes.hyvideo_core.text_encoders import CLIP_LAYOUTS, ClipTextEncoder, build_clip, load_clip
from torch import Tensor

END = 40


def test_the_first_end_token_is_pooled_whatever_follows(clip: ClipTextEncoder) -> None:
    short = clip(torch.tensor([[1, 5, 9, END]]), END)
    padded = clip(torch.tensor([[1, 5, 9, END, END, 300, END]]), END)
    torch.testing.assert_close(short, padded, rtol=0, atol=2e-6)


def test_higher_ids_than_the_end_token_are_not_mistaken_for_it(clip: ClipTextEncoder) -> None:
    ids = torch.tensor([[1, 350, 9, END]])
    states = clip.model(input_ids=ids).last_hidden_state
    assert torch.equal(clip(ids, END), states[:, 3])


def test_samples_of_a_batch_are_pooled_where_each_ends(clip: ClipTextEncoder) -> None:
    batch = clip(torch.tensor([[1, 5, END, END], [1, 5, 9, END]]), END)
    singles = [clip(torch.tensor([ids]), END) for ids in ([1, 5, END], [1, 5, 9, END])]
    torch.testing.assert_close(batch, torch.cat(singles), rtol=0, atol=2e-6)


def test_ids_without_an_end_are_refused(clip: ClipTextEncoder) -> None:
    with pytest.raises(ConditioningError, match=f"end token {END}"):
        clip(torch.tensor([[1, 5, 9]]), END)


def layouts_of(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    one = torch.zeros(1)
    text = {f"text_model.{key}": value for key, value in state.items()}
    extra = ("vision_model.x", "text_projection.weight", "visual_projection.weight", "logit_scale")
    return {
        "text model": text,
        "bare": dict(state),
        "with positions": {**text, "text_model.embeddings.position_ids": torch.arange(16)[None]},
        "whole CLIP": {**text, **dict.fromkeys(extra, one)},
    }


@pytest.mark.parametrize("layout", list(layouts_of({})))
def test_every_known_layout_gives_the_same_state(
    layout: str, clip: ClipTextEncoder, clip_config: ClipTextConfig
) -> None:
    other = build_clip(clip_config, dtype=torch.float32)
    load_clip(other, layouts_of(clip.model.state_dict())[layout])
    ids = torch.tensor([[1, 5, 9, END]])
    assert torch.equal(clip(ids, END), other(ids, END))


def test_a_full_size_file_has_every_tensor_and_no_other(manifest_dir: Path) -> None:
    keys = json.loads((manifest_dir / "clip_l_text.CLIPTextModel.json").read_text())
    state = build_clip(ClipTextConfig(), dtype=torch.float16).model.state_dict()
    matched = CLIP_LAYOUTS.match(keys)
    assert {own: list(state[own].shape) for own in state} == {own: keys[key][0] for own, key in matched.items()}


def test_longer_position_tables_are_a_matter_of_configuration() -> None:
    encoder = build_clip(ClipTextConfig(num_layers=1, max_positions=248), dtype=torch.float32)
    assert encoder.max_positions == 248
    assert encoder.num_rows == 49408
    assert encoder.model.embeddings.position_ids.tolist() == [list(range(248))]
    assert encoder.weights_device.type == "meta"


def test_a_missing_tensor_is_named(clip: ClipTextEncoder, clip_config: ClipTextConfig) -> None:
    state = clip.model.state_dict()
    del state["final_layer_norm.bias"]
    with pytest.raises(WrongModelError, match=r"1 missing \(final_layer_norm\.bias\)"):
        load_clip(build_clip(clip_config, dtype=torch.float32), state)


def test_a_language_model_is_not_taken_for_clip(clip_config: ClipTextConfig) -> None:
    with pytest.raises(WrongModelError, match="no CLIP text encoder in this file"):
        load_clip(build_clip(clip_config, dtype=torch.float32), {"model.embed_tokens.weight": torch.zeros(1)})


def test_a_small_vocabulary_raises_no_complaint(clip_config: ClipTextConfig, capfd: pytest.CaptureFixture) -> None:
    build_clip(clip_config, dtype=torch.float32)
    assert capfd.readouterr().err == ""
