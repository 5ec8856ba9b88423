"""Tokenizers: where they are found, what they must hold, CLIP's units, cutting to length."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hyvideo_nodes.hyvideo_core.errors import TokenizerError
from hyvideo_nodes.hyvideo_core.text_encoders import (
    CLIP,
    LLAMA3,
    PromptTokenizer,
    TokenIds,
    find_tokenizer,
    read_tokenizer,
)
from tokenizers import Tokenizer, processors

ROWS = 352


def test_begin_and_end_are_put_around_a_text(llm_tokenizer: PromptTokenizer, clip_tokenizer: PromptTokenizer) -> None:
    body = llm_tokenizer.backend.encode("a cat", add_special_tokens=False).ids
    assert llm_tokenizer.encode("a cat").ids == (llm_tokenizer.begin_id, *body)
    assert clip_tokenizer.encode("a cat").ids == (clip_tokenizer.begin_id, *body, clip_tokenizer.end_id)


def test_a_file_that_adds_its_own_begin_token_gives_the_same_ids(
    toy_tokenizer: Tokenizer, llm_tokenizer: PromptTokenizer, tmp_path: Path
) -> None:
    adding = Tokenizer.from_str(toy_tokenizer.to_str())
    adding.post_processor = processors.TemplateProcessing(
        single=f"{LLAMA3.begin} $A", special_tokens=[(LLAMA3.begin, llm_tokenizer.begin_id)]
    )
    adding.enable_truncation(3)
    adding.enable_padding(length=64)
    adding.save(str(tmp_path / "tokenizer.json"))
    text = "Describe the video: a red cat"
    assert read_tokenizer(tmp_path / "tokenizer.json", LLAMA3).encode(text) == llm_tokenizer.encode(text)


def test_cutting_is_on_the_right_and_counted(llm_tokenizer: PromptTokenizer) -> None:
    whole = llm_tokenizer.encode("one two three four").ids
    assert llm_tokenizer.encode("one two three four", 5) == TokenIds(whole[:5], len(whole) - 5)
    assert llm_tokenizer.encode("one two three four", len(whole)) == TokenIds(whole, 0)


def test_cutting_keeps_the_end_token_last(clip_tokenizer: PromptTokenizer) -> None:
    whole = clip_tokenizer.encode("one two three four").ids
    expected = TokenIds((*whole[:4], clip_tokenizer.end_id), len(whole) - 5)
    assert clip_tokenizer.encode("one two three four", 5) == expected


@pytest.mark.parametrize("rows", [100, 325, 2 * 326])
def test_an_embedding_of_another_vocabulary_is_refused(rows: int, llm_tokenizer: PromptTokenizer) -> None:
    assert llm_tokenizer.num_ids == 326
    with pytest.raises(TokenizerError, match=f"up to 325, but the text encoder has {rows} rows"):
        llm_tokenizer.check_rows(rows)


@pytest.mark.parametrize("rows", [326, 384])
def test_an_embedding_may_have_a_few_rows_more(rows: int, llm_tokenizer: PromptTokenizer) -> None:
    llm_tokenizer.check_rows(rows)


def test_the_file_named_after_the_weights_comes_first(tokenizer_json: Path, tmp_path: Path) -> None:
    weights, other = tmp_path / "llm.v1.safetensors", tmp_path / "other"
    other.mkdir()
    last = shutil.copy(tokenizer_json, other / "tokenizer.json")
    middle = shutil.copy(tokenizer_json, tmp_path / "tokenizer.json")
    first = shutil.copy(tokenizer_json, tmp_path / "llm.v1.tokenizer.json")
    for expected in (first, middle, last):
        found = find_tokenizer(LLAMA3, num_rows=ROWS, weights=weights, places=[tmp_path / "absent", other])
        assert found.source == expected
        expected.unlink()


def test_a_folder_of_weights_and_a_named_file_are_places_too(tokenizer_json: Path) -> None:
    assert find_tokenizer(LLAMA3, num_rows=ROWS, weights=tokenizer_json.parent).source == tokenizer_json
    assert find_tokenizer(LLAMA3, num_rows=ROWS, places=[tokenizer_json]).source == tokenizer_json


def test_the_tokenizer_of_another_encoder_is_passed_over(tokenizer_json: Path, tmp_path: Path) -> None:
    clip_only = Tokenizer.from_file(str(tokenizer_json)).to_str().replace("<|eot_id|>", "<|another|>")
    (tmp_path / "tokenizer.json").write_text(clip_only, encoding="utf-8")
    weights = tmp_path / "llm.safetensors"
    found = find_tokenizer(LLAMA3, num_rows=ROWS, weights=weights, places=[tokenizer_json.parent])
    assert found.source == tokenizer_json


def test_nothing_found_lists_every_place_and_what_to_do(tokenizer_json: Path, tmp_path: Path) -> None:
    weights = tmp_path / "llm.safetensors"
    with pytest.raises(TokenizerError) as caught:
        find_tokenizer(LLAMA3, num_rows=1000, weights=weights, places=[tokenizer_json, tmp_path / "more"])
    message = str(caught.value)
    for path in (tmp_path / "llm.tokenizer.json", tmp_path / "tokenizer.json", tmp_path / "more" / "tokenizer.json"):
        assert f"{path.parent.name}/{path.name}: not there" in message
    assert str(tmp_path) not in message
    given = f"{tokenizer_json.parent.name}/tokenizer.json"
    assert f"{given} gives token ids up to 325, but the text encoder has 1000 rows" in message
    assert "beside llm.safetensors, as llm.tokenizer.json" in message


def test_no_place_at_all_is_said() -> None:
    with pytest.raises(TokenizerError, match=r"its vocab\.json and merges\.txt.*no place was given"):
        find_tokenizer(CLIP, num_rows=ROWS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is broken, or no tokenizer.json"),
        (b"\xff\xfe", "cannot be read as text"),
        (b'{"version": "1.0"', "is broken, or no tokenizer.json"),
        (b'{"hidden_size": 4096}', "is broken, or no tokenizer.json"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(path, LLAMA3)


def test_a_missing_special_token_is_named(toy_tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(toy_tokenizer.to_str().replace("<|eot_id|>", "<|end|>"), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"no special token <\|eot_id\|>, so it is no LLaMA-3 tokenizer"):
        read_tokenizer(path, LLAMA3)


def test_a_special_token_that_would_be_split_is_refused(toy_tokenizer: Tokenizer, tmp_path: Path) -> None:
    layout = json.loads(toy_tokenizer.to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] != "<|eot_id|>"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(layout), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"no special token <\|eot_id\|>"):
        read_tokenizer(path, LLAMA3)


# CLIP as vocab.json and merges.txt

MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "' s</w>", "Ã ©</w>", "1 2</w>"]


@pytest.fixture
def clip_pair(tmp_path: Path) -> Path:
    """A CLIP vocabulary of single letters, their word-final forms, and seven merges."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789'!?.,", "Ã", "©"]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += [merge.replace(" ", "") for merge in MERGES] + list(CLIP.special)
    vocab = {token: i for i, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", encoding="utf-8")
    return tmp_path / "vocab.json"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("cat dog", ["cat</w>", "dog</w>"]),
        ("  CAT \n\t Dog ", ["cat</w>", "dog</w>"]),
        ("cat's", ["cat</w>", "'s</w>"]),
        ("cat,dog!?", ["cat</w>", ",</w>", "dog</w>", "!", "?</w>"]),
        ("12", ["1</w>", "2</w>"]),
        ("cats", ["ca", "t", "s</w>"]),
        ("\u00e9", ["Ã©</w>"]),
        ("e\u0301", ["Ã©</w>"]),
        ("", []),
    ],
    ids=["words", "case and space", "contraction", "punctuation", "digits", "inner", "bytes", "composed", "empty"],
)
def test_clip_splits_as_it_was_trained(text: str, tokens: list[str], clip_pair: Path) -> None:
    tokenizer = read_tokenizer(clip_pair, CLIP)
    ids = tokenizer.encode(text).ids
    assert [tokenizer.backend.id_to_token(i) for i in ids] == [CLIP.begin, *tokens, CLIP.end]


def test_clip_is_found_as_a_pair_but_its_json_comes_first(clip_pair: Path, tokenizer_json: Path) -> None:
    places = [clip_pair.parent]
    num_rows = read_tokenizer(clip_pair, CLIP).num_ids
    assert find_tokenizer(CLIP, num_rows=num_rows, places=places).source == clip_pair
    shutil.copy(tokenizer_json, clip_pair.parent / "tokenizer.json")
    assert find_tokenizer(CLIP, num_rows=ROWS, places=places).source == clip_pair.with_name("tokenizer.json")


def test_a_vocabulary_without_its_merges_is_refused(clip_pair: Path) -> None:
    clip_pair.with_name("merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"no merges\.txt"):
        read_tokenizer(clip_pair, CLIP)


def test_broken_merges_are_refused(clip_pair: Path) -> None:
    clip_pair.with_name("merges.txt").write_text("nothere nobody\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match="are no CLIP vocabulary"):
        read_tokenizer(clip_pair, CLIP)


def test_a_vocabulary_without_clips_special_tokens_is_refused(clip_pair: Path) -> None:
    vocab = json.loads(clip_pair.read_text(encoding="utf-8"))
    clip_pair.write_text(json.dumps({k: v for k, v in vocab.items() if k != CLIP.begin}), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"no special token <\|startoftext\|>"):
        read_tokenizer(clip_pair, CLIP)


# the real vocabularies, where they are at hand


@pytest.fixture
def real_llama() -> PromptTokenizer:
    path = os.environ.get("HYV_LLAMA_TOKENIZER")
    if not path:
        pytest.skip("ids of the real Llama-3 vocabulary: set HYV_LLAMA_TOKENIZER to its tokenizer.json")
    return read_tokenizer(Path(path), LLAMA3)


def test_llama_3_ids_are_the_published_ones(real_llama: PromptTokenizer, published: dict) -> None:
    for name, token_id in published["special_ids"].items():
        if not name.startswith(("<image", "<pad")):  # those two are LLaVA's
            assert real_llama.backend.token_to_id(name) == token_id
    for template in published["templates"].values():
        if "<image>" in template["template"]:
            continue
        for example in template["examples"]:
            text = template["template"].replace("{}", example["prompt"])
            assert list(real_llama.encode(text).ids) == example["ids_unpadded"]


@pytest.fixture
def real_clip() -> PromptTokenizer:
    folder = os.environ.get("HYV_CLIP_TOKENIZER")
    if not folder:
        pytest.skip("ids of the real CLIP vocabulary: set HYV_CLIP_TOKENIZER to a folder of vocab.json and merges.txt")
    return find_tokenizer(CLIP, num_rows=49408, places=[Path(folder)])


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat",
        "A cat's 1234 toys -- don't!!! <3 it'll I'D",
        "  Caf\u00e9 e\u0301te\u0301 \u00c9\n\tna\u00efve  ",
        "\u4e00\u53ea\u5c0f\u72d7\u5728\u8349\u5730\u4e0a\u5954\u8dd1\u3002",
        "\U0001f600\u200d x\u00a0y \u2019s 'S ''s <|endoftext|> after",
        "",
    ],
)
def test_clip_ids_are_those_of_the_usual_tokenizer(text: str, real_clip: PromptTokenizer) -> None:
    from transformers import CLIPTokenizerFast

    usual = CLIPTokenizerFast.from_pretrained(real_clip.source.parent, local_files_only=True)
    assert list(real_clip.encode(text).ids) == usual(text)["input_ids"]


def test_clip_ids_of_a_cat_are_the_known_ones(real_clip: PromptTokenizer) -> None:
    assert real_clip.encode("a photo of a cat").ids == (49406, 320, 1125, 539, 320, 2368, 49407)
