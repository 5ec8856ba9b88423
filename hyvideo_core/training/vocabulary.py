"""Small tokenizers in the formats of Llama 3 and CLIP, learned from the captions of the drawn world."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLM_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "<pad>",
)
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")

# line ends stay apart from what follows them: the template before the prompt must split the same with any prompt
_LLM_UNITS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"
_CLIP_UNITS = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def learn_llm_tokenizer(sentences: Iterable[str], vocab_size: int = 640) -> Tokenizer:
    """A byte-level tokenizer whose special tokens are named as Llama 3's, and come after all others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLM_UNITS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _learn(tokenizer, sentences, _trainer(vocab_size - len(LLM_SPECIALS)), LLM_SPECIALS)


def learn_clip_tokenizer(sentences: Iterable[str], vocab_size: int = 720) -> Tokenizer:
    """A lower-case tokenizer of CLIP's kind: words end in `</w>`, and the end token has the highest id."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_UNITS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = _trainer(vocab_size - len(CLIP_SPECIALS), end_of_word_suffix="</w>")
    return _learn(tokenizer, sentences, trainer, CLIP_SPECIALS)


def _learn(
    tokenizer: Tokenizer, sentences: Iterable[str], trainer: trainers.BpeTrainer, specials: tuple[str, ...]
) -> Tokenizer:
    tokenizer.train_from_iterator((*sentences, _EVERY_LAST_BYTE), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def _trainer(vocab_size: int, **options: Any) -> trainers.BpeTrainer:
    """Every byte is in the alphabet, so that any prompt can be read, if not understood."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, **options)


_EVERY_LAST_BYTE = " ".join([chr(code) for code in range(33, 127)] + [chr(0x4E00 + code) for code in range(64)])
"""One-character words that end in each byte a word can end in: a suffixed byte is known only if it was met."""
