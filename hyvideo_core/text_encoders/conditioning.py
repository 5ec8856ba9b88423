"""A prompt to the states that condition the transformer, cut to their real length.

Shapes: B batch, L tokens, D width of the language model, P width of the pooled state.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConditioningError, TokenizerError
from .clip import ClipTextEncoder
from .llm import LlamaTextEncoder
from .templates import VIDEO_TEMPLATE, PromptTemplate
from .tokenizers import PromptTokenizer, shown

logger = logging.getLogger(__name__)

MAX_VIDEO_TOKENS = 256
"""Tokens after the video template, its closing token included. The reference sizes every template's text by
the video template's length, which leaves a picture 351 - 36 = 315."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """Text states of one prompt, every token valid, so that no mask goes with them.

    Attributes:
        states: [1, L, D].
        pooled: [1, P], or None for a model without one.
        num_cut_tokens: what the language model did not see of a prompt that was too long.
        num_cut_clip_tokens: the same of the CLIP encoder.
    """

    states: Tensor
    pooled: Tensor | None
    num_cut_tokens: int = 0
    num_cut_clip_tokens: int = 0


def encode_prompt(
    prompt: str,
    template: PromptTemplate,
    *,
    llm: LlamaTextEncoder,
    llm_tokenizer: PromptTokenizer,
    clip: ClipTextEncoder | None,
    clip_tokenizer: PromptTokenizer | None,
) -> Conditioning:
    """Conditioning of one prompt, on the encoders' devices and in their dtypes.

    An empty prompt is allowed: it gives the template's one closing token.

    Args:
        clip, clip_tokenizer: both None for a model without pooled conditioning.
    Raises:
        TokenizerError: a tokenizer that does not fit the template, or CLIP without one.
    """
    states, num_cut = encode_states(prompt, template, llm, llm_tokenizer)
    pooled, num_cut_clip = None, 0
    if clip is not None:
        if clip_tokenizer is None:
            raise TokenizerError("a CLIP encoder without a tokenizer: expected both or neither; find its tokenizer")
        pooled, num_cut_clip = encode_pooled(prompt, clip, clip_tokenizer)
    return Conditioning(states=states, pooled=pooled, num_cut_tokens=num_cut, num_cut_clip_tokens=num_cut_clip)


# conditioning is kept and may be trained on, which tensors born in inference mode can never be
@torch.inference_mode(False)
@torch.no_grad()
def encode_states(
    prompt: str, template: PromptTemplate, llm: LlamaTextEncoder, tokenizer: PromptTokenizer
) -> tuple[Tensor, int]:
    """The language model's states [1, L, D] of the prompt alone, and how many tokens were too many for it."""
    crop = template.crop_length(tokenizer)
    max_tokens = VIDEO_TEMPLATE.crop_length(tokenizer) + MAX_VIDEO_TOKENS
    ids, num_cut = tokenizer.encode(template.apply(prompt), max_tokens)
    if ids[:crop] != tokenizer.encode(template.prefix).ids:
        raise TokenizerError(
            f"{shown(tokenizer.source)} merges the {template.name} template with the prompt, so that the template "
            "cannot be cut away; use the tokenizer that was published with the text encoder"
        )
    if num_cut:
        logger.warning(
            "the prompt is too long for the language model: its last %d tokens were cut (room for %d)",
            num_cut,
            max_tokens - crop,
        )
    states = llm(torch.tensor([ids], device=llm.weights_device))
    return states[:, crop:].clone(), num_cut


@torch.inference_mode(False)
@torch.no_grad()
def encode_pooled(prompt: str, clip: ClipTextEncoder, tokenizer: PromptTokenizer) -> tuple[Tensor, int]:
    """CLIP's pooled state [1, P] of the bare prompt, and how many tokens were too many for it."""
    if tokenizer.end_id is None:
        raise TokenizerError(f"{shown(tokenizer.source)} has no end token, which CLIP pools at; use a CLIP tokenizer")
    ids, num_cut = tokenizer.encode(prompt.strip(), clip.max_positions)
    if num_cut:
        logger.warning(
            "the prompt is too long for CLIP: its last %d tokens were cut (room for %d); the language model "
            "reads more of it",
            num_cut,
            clip.max_positions - 2,
        )
    return clip(torch.tensor([ids], device=clip.weights_device), tokenizer.end_id), num_cut


def gather_valid(states: Tensor, mask: Tensor) -> list[Tensor]:
    """Padded states of a batch, each sample cut to its valid tokens in their order.

    Args:
        states: [B, L, D].
        mask: [B, L], nonzero for valid tokens.
    Returns:
        B tensors [1, L_i, D].
    Raises:
        ConditioningError: shapes that do not belong together, or a sample without a valid token.
    """
    if states.ndim != 3 or mask.shape != states.shape[:2]:
        raise ConditioningError(
            f"text states {list(states.shape)} with an attention mask {list(mask.shape)}: expected [B, L, D] with "
            "[B, L]; connect a CONDITIONING whose mask was made with its states"
        )
    is_valid = mask.to(device=states.device) != 0
    if not bool(is_valid.any(dim=1).all()):
        raise ConditioningError(
            "the attention mask hides every token of a sample: expected at least one valid token; "
            "connect a CONDITIONING from a text encoder, an empty prompt included"
        )
    return [sample[valid][None] for sample, valid in zip(states, is_valid, strict=True)]
