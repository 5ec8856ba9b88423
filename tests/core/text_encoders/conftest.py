"""Small tokenizers and encoders, made here, that have the special tokens of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hyvideo_nodes.hyvideo_core.config import ClipTextConfig, LlamaConfig
from hyvideo_nodes.hyvideo_core.text_encoders import (
    CLIP,
    LLAMA3,
    TEMPLATES,
    ClipTextEncoder,
    LlamaTextEncoder,
    PromptTokenizer,
    build_clip,
    build_llama,
    read_tokenizer,
)
from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

SPECIAL = tuple(dict.fromkeys((*LLAMA3.special, *CLIP.special)))
# newlines and words stay apart, as in Llama-3, so that a prompt never merges with what stands before it
LLAMA_UNITS = r"\s*[\r\n]+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def train_tokenizer(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """A byte-level BPE of 320 tokens and the special ones, trained on the templates."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_UNITS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=320 + len(special),
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([template.text for template in TEMPLATES.values()], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def published() -> dict:
    """The published templates with their token ids: of the one real vocabulary, whatever the golden folder."""
    path = Path(__file__).parents[2] / "golden" / "text_templates.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def toy_tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_json(toy_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "tokenizer.json"
    toy_tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def llm_tokenizer(tokenizer_json: Path) -> PromptTokenizer:
    return read_tokenizer(tokenizer_json, LLAMA3)


@pytest.fixture(scope="session")
def clip_tokenizer(tokenizer_json: Path) -> PromptTokenizer:
    return read_tokenizer(tokenizer_json, CLIP)


@pytest.fixture
def llama_config() -> LlamaConfig:
    return LlamaConfig(vocab_size=352, hidden_size=32, ffn_size=48, num_layers=4, num_heads=4, num_kv_heads=2)


@pytest.fixture
def clip_config() -> ClipTextConfig:
    return ClipTextConfig(vocab_size=352, hidden_size=32, ffn_size=48, num_layers=2, num_heads=4, max_positions=16)


@pytest.fixture
def llm(llama_config: LlamaConfig) -> LlamaTextEncoder:
    return build_llama(llama_config, dtype=torch.float32, device="cpu")


@pytest.fixture
def clip(clip_config: ClipTextConfig) -> ClipTextEncoder:
    return build_clip(clip_config, dtype=torch.float32, device="cpu")
