"""Prompt to conditioning: what is cut, what is counted, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import ConditioningError, TokenizerError
from hyvideo_nodes.hyvideo_core.text_encoders import (
    IMAGE_TEMPLATE,
    LLAMA3,
    MAX_VIDEO_TOKENS,
    TEMPLATES,
    VIDEO_TEMPLATE,
    ClipTextEncoder,
    Conditioning,
    LlamaTextEncoder,
    PromptTemplate,
    PromptTokenizer,
    encode_pooled,
    encode_prompt,
    encode_states,
    gather_valid,
    read_tokenizer,
)
from tokenizers import Tokenizer, pre_tokenizers

LONG = "red " * 800
both_templates = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)


@pytest.fixture
def encoders(
    llm: LlamaTextEncoder,
    clip: ClipTextEncoder,
    llm_tokenizer: PromptTokenizer,
    clip_tokenizer: PromptTokenizer,
) -> dict:
    return {"llm": llm, "clip": clip, "llm_tokenizer": llm_tokenizer, "clip_tokenizer": clip_tokenizer}


@both_templates
def test_states_are_those_of_the_prompt_inside_its_template(template: PromptTemplate, encoders: dict) -> None:
    conditioning = encode_prompt("a red cat", template, **encoders)
    ids = encoders["llm_tokenizer"].encode(template.apply("a red cat")).ids
    crop = template.crop_length(encoders["llm_tokenizer"])
    assert torch.equal(conditioning.states, encoders["llm"](torch.tensor([ids]))[:, crop:])
    clip_ids = encoders["clip_tokenizer"].encode("a red cat").ids
    end_id = encoders["clip_tokenizer"].end_id
    assert torch.equal(conditioning.pooled, encoders["clip"](torch.tensor([clip_ids]), end_id))
    assert (conditioning.num_cut_tokens, conditioning.num_cut_clip_tokens) == (0, 0)


@both_templates
def test_an_empty_prompt_is_one_token(template: PromptTemplate, encoders: dict) -> None:
    conditioning = encode_prompt("  \n", template, **encoders)
    assert conditioning.states.shape == (1, 1, 32)
    assert conditioning.pooled.shape == (1, 32)
    assert conditioning.states.isfinite().all()


def test_the_template_matters(encoders: dict) -> None:
    video, image = (encode_prompt("a cat", template, **encoders) for template in (VIDEO_TEMPLATE, IMAGE_TEMPLATE))
    assert not torch.allclose(video.states, image.states)
    assert torch.equal(video.pooled, image.pooled)


def test_white_space_around_a_prompt_changes_nothing(encoders: dict) -> None:
    one, other = (encode_prompt(prompt, VIDEO_TEMPLATE, **encoders) for prompt in ("a cat", "\n a cat  "))
    assert torch.equal(one.states, other.states)
    assert torch.equal(one.pooled, other.pooled)


def test_a_long_prompt_is_cut_to_what_the_video_template_leaves(
    encoders: dict, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = encoders["llm_tokenizer"]
    crops = {t.name: t.crop_length(tokenizer) for t in TEMPLATES.values()}
    room = {"video": MAX_VIDEO_TOKENS, "image": MAX_VIDEO_TOKENS + crops["video"] - crops["image"]}
    for name, template in TEMPLATES.items():
        with caplog.at_level(logging.WARNING):
            conditioning = encode_prompt(LONG, template, **encoders)
        ids = tokenizer.encode(template.apply(LONG)).ids
        assert conditioning.states.shape[1] == room[name]
        assert conditioning.num_cut_tokens == len(ids) - crops["video"] - MAX_VIDEO_TOKENS > 0
        assert f"last {conditioning.num_cut_tokens} tokens were cut (room for {room[name]})" in caplog.text


def test_a_prompt_that_just_fits_is_whole_and_one_more_is_cut(encoders: dict) -> None:
    tokenizer, llm = encoders["llm_tokenizer"], encoders["llm"]
    fits = "1" * (MAX_VIDEO_TOKENS - 1)  # digits never merge, and the closing token is the last
    assert len(tokenizer.encode(VIDEO_TEMPLATE.apply(fits)).ids) == VIDEO_TEMPLATE.crop_length(tokenizer) + 256
    states, num_cut = encode_states(fits, VIDEO_TEMPLATE, llm, tokenizer)
    assert (states.shape[1], num_cut) == (256, 0)
    states, num_cut = encode_states(fits + "1", VIDEO_TEMPLATE, llm, tokenizer)
    assert (states.shape[1], num_cut) == (256, 1)


def test_clip_cuts_to_its_positions_and_keeps_the_end(encoders: dict, caplog: pytest.LogCaptureFixture) -> None:
    clip, tokenizer = encoders["clip"], encoders["clip_tokenizer"]
    whole = tokenizer.encode(LONG.strip()).ids
    with caplog.at_level(logging.WARNING):
        pooled, num_cut = encode_pooled(LONG, clip, tokenizer)
    kept = torch.tensor([[*whole[: clip.max_positions - 1], tokenizer.end_id]])
    assert torch.equal(pooled, clip(kept, tokenizer.end_id))
    assert num_cut == len(whole) - clip.max_positions
    assert f"last {num_cut} tokens were cut (room for 14)" in caplog.text


def test_a_prompt_of_usual_length_warns_of_nothing(encoders: dict, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encode_prompt("cat", VIDEO_TEMPLATE, **encoders)
    assert not caplog.records


def test_conditioning_made_in_inference_mode_can_be_trained_on(encoders: dict) -> None:
    with torch.inference_mode():
        conditioning = encode_prompt("a cat", VIDEO_TEMPLATE, **encoders)
    assert not conditioning.states.is_inference()
    assert not conditioning.pooled.is_inference()
    scale = torch.ones((), requires_grad=True)
    (scale * conditioning.states).square().sum().backward()
    assert scale.grad > 0


def test_no_graph_is_kept_of_an_encoder_in_training(encoders: dict) -> None:
    encoders["llm"].requires_grad_(True)
    assert not encode_prompt("a cat", VIDEO_TEMPLATE, **encoders).states.requires_grad


def test_a_model_without_pooled_state_needs_no_clip(encoders: dict) -> None:
    conditioning = encode_prompt("a cat", VIDEO_TEMPLATE, **{**encoders, "clip": None, "clip_tokenizer": None})
    assert isinstance(conditioning, Conditioning)
    assert conditioning.pooled is None


def test_clip_without_its_tokenizer_is_refused(encoders: dict) -> None:
    with pytest.raises(TokenizerError, match="expected both or neither"):
        encode_prompt("a cat", VIDEO_TEMPLATE, **{**encoders, "clip_tokenizer": None})


def test_a_tokenizer_without_an_end_token_is_not_for_clip(encoders: dict) -> None:
    with pytest.raises(TokenizerError, match="has no end token"):
        encode_pooled("a cat", encoders["clip"], encoders["llm_tokenizer"])


def test_a_tokenizer_that_merges_prompt_and_template_is_refused(
    toy_tokenizer: Tokenizer, llm: LlamaTextEncoder, tmp_path: Path
) -> None:
    merging = Tokenizer.from_str(toy_tokenizer.to_str())
    # this splitting takes the last of two newlines apart when a word follows
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merging.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json", LLAMA3)
    with pytest.raises(TokenizerError, match="merges the video template with the prompt"):
        encode_states("a cat", VIDEO_TEMPLATE, llm, tokenizer)


def test_valid_tokens_are_gathered_in_order() -> None:
    states = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]])
    first, second = gather_valid(states, mask)
    assert torch.equal(first, states[:1, :2])
    assert torch.equal(second, states[1:, [1, 3]])
    assert all(torch.equal(a, b) for a, b in zip(gather_valid(states, mask.bool()), (first, second), strict=True))


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (4,)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConditioningError, match=r"\[2, 4, 3\] with an attention mask"):
        gather_valid(torch.zeros(2, 4, 3), torch.ones(shape))


def test_a_sample_without_a_valid_token_is_refused() -> None:
    with pytest.raises(ConditioningError, match="hides every token"):
        gather_valid(torch.zeros(2, 4, 3), torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]))
