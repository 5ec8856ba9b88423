"""Prompt to conditioning: language model, CLIP, their tokenizers and the prompt templates."""

from __future__ import annotations

from .clip import CLIP_LAYOUTS, ClipTextEncoder, build_clip, load_clip
from .conditioning import (
    MAX_VIDEO_TOKENS,
    Conditioning,
    encode_pooled,
    encode_prompt,
    encode_states,
    gather_valid,
)
from .llm import HIDDEN_STATE_SKIP, LlamaTextEncoder, build_llama, llama_layouts, load_llama
from .templates import IMAGE_TEMPLATE, TEMPLATES, VIDEO_TEMPLATE, PromptTemplate
from .tokenizers import CLIP, LLAMA3, PromptTokenizer, TokenIds, TokenizerKind, find_tokenizer, read_tokenizer
from .weights import KeyLayouts

__all__ = [
    "CLIP",
    "CLIP_LAYOUTS",
    "HIDDEN_STATE_SKIP",
    "IMAGE_TEMPLATE",
    "LLAMA3",
    "MAX_VIDEO_TOKENS",
    "TEMPLATES",
    "VIDEO_TEMPLATE",
    "ClipTextEncoder",
    "Conditioning",
    "KeyLayouts",
    "LlamaTextEncoder",
    "PromptTemplate",
    "PromptTokenizer",
    "TokenIds",
    "TokenizerKind",
    "build_clip",
    "build_llama",
    "encode_pooled",
    "encode_prompt",
    "encode_states",
    "find_tokenizer",
    "gather_valid",
    "llama_layouts",
    "load_clip",
    "load_llama",
    "read_tokenizer",
]
