import pytest
import torch
from hyvideo_nodes.hyvideo_core.text_encoders.templates import TEMPLATES
from hyvideo_nodes.hyvideo_core.text_encoders.tokenizers import CLIP, LLAMA3, PromptTokenizer, read_tokenizer
from hyvideo_nodes.hyvideo_core.training.readers import draw_readings
from hyvideo_nodes.hyvideo_core.training.vocabulary import (
    CLIP_SPECIALS,
    LLM_SPECIALS,
    learn_clip_tokenizer,
    learn_llm_tokenizer,
)
from tokenizers import Tokenizer

PROMPTS = ["a red circle moves left", "", "1 2 3", "A (Čeština) 一只小狗 \U0001f600", "\u00e9t\u00e9?!", ". dots"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return draw_readings(300, torch.Generator().manual_seed(0))[0]


@pytest.fixture(scope="module")
def llm(texts, tmp_path_factory) -> PromptTokenizer:
    path = tmp_path_factory.mktemp("llm") / "tokenizer.json"
    learn_llm_tokenizer([*texts, *[t.apply("") for t in TEMPLATES.values()] * 20]).save(str(path))
    return read_tokenizer(path, LLAMA3)


@pytest.fixture(scope="module")
def clip(texts, tmp_path_factory) -> PromptTokenizer:
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    learn_clip_tokenizer(texts).save(str(path))
    return read_tokenizer(path, CLIP)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_any_prompt_can_be_read_back(llm, prompt):
    assert llm.backend.decode(llm.encode(prompt).ids) == prompt


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_template_splits_the_same_before_any_prompt(llm, template, prompt):
    prefix = llm.encode(template.prefix).ids
    assert llm.encode(template.apply(prompt)).ids[: len(prefix)] == prefix


def test_words_of_captions_are_single_tokens(llm, clip):
    sentence = "a red circle moves left on a black background"
    assert len(llm.encode(sentence).ids) == 1 + 9
    assert len(clip.encode(sentence).ids) == 1 + 9 + 1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_clip_drops_no_character_but_spaces(clip, prompt):
    tokens = [clip.backend.id_to_token(i) for i in clip.encode(prompt).ids[1:-1]]
    letters = "".join(token.removesuffix("</w>") for token in tokens)
    assert len(letters) == len("".join(prompt.lower().split()).encode())


def test_special_tokens_come_last_and_the_end_token_is_the_highest(llm, clip):
    for tokenizer, specials in ((llm, LLM_SPECIALS), (clip, CLIP_SPECIALS)):
        backend: Tokenizer = tokenizer.backend
        ids = [backend.token_to_id(token) for token in specials]
        assert ids == list(range(tokenizer.num_ids - len(specials), tokenizer.num_ids))
    assert clip.end_id == clip.num_ids - 1
