"""Prompt templates against the published strings, and how much of them is cut away."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hyvideo_nodes.hyvideo_core.errors import TokenizerError
from hyvideo_nodes.hyvideo_core.text_encoders import (
    IMAGE_TEMPLATE,
    TEMPLATES,
    VIDEO_TEMPLATE,
    PromptTemplate,
    PromptTokenizer,
)

PUBLISHED = {"dit-llm-encode-video": VIDEO_TEMPLATE, "dit-llm-encode": IMAGE_TEMPLATE}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_text_and_crop_are_the_published_ones(name: str, published: dict) -> None:
    assert PUBLISHED[name].text == published["templates"][name]["template"]
    assert PUBLISHED[name].llama3_crop == published["templates"][name]["crop_start"]


def test_templates_are_found_by_their_name() -> None:
    assert {name: template.name for name, template in TEMPLATES.items()} == {"video": "video", "image": "image"}


@pytest.mark.parametrize("prompt", ["a cat", "", "braces {} and {0} stay", "%s \\n"])
def test_a_prompt_goes_in_unchanged(prompt: str) -> None:
    text = IMAGE_TEMPLATE.apply(prompt)
    assert text == IMAGE_TEMPLATE.prefix + prompt + "<|eot_id|>"


def test_white_space_around_a_prompt_is_dropped() -> None:
    assert VIDEO_TEMPLATE.apply(" \n a cat \t") == VIDEO_TEMPLATE.apply("a cat")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_crop_counts_the_tokens_before_the_prompt(template: PromptTemplate, llm_tokenizer: PromptTokenizer) -> None:
    crop = template.crop_length(llm_tokenizer)
    ids = llm_tokenizer.encode(template.apply("")).ids
    assert len(ids) == crop + 1
    assert ids[0] == llm_tokenizer.begin_id
    assert ids[crop] == llm_tokenizer.backend.token_to_id("<|eot_id|>")


def test_a_vocabulary_of_llama_3s_size_must_give_its_crop(llm_tokenizer: PromptTokenizer) -> None:
    real_size = replace(llm_tokenizer, num_ids=128_256)
    with pytest.raises(TokenizerError, match=f"{VIDEO_TEMPLATE.crop_length(llm_tokenizer)} tokens, expected 95"):
        VIDEO_TEMPLATE.crop_length(real_size)
