"""The instructions that wrap a prompt for the language model: interface constants of the trained model."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TokenizerError
from .tokenizers import PromptTokenizer, shown

PLACEHOLDER = "{}"
_LLAMA3_MIN_IDS = 128_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """A text with one `{}` for the prompt.

    `llama3_crop` is the length of the part before it in tokens of the Llama-3 vocabulary, which the
    published models were trained with.
    """

    name: str
    text: str
    llama3_crop: int

    @property
    def prefix(self) -> str:
        """What stands before the prompt."""
        return self.text.partition(PLACEHOLDER)[0]

    def apply(self, prompt: str) -> str:
        """The whole text for the language model; white space around the prompt is dropped."""
        prefix, _, suffix = self.text.partition(PLACEHOLDER)
        return prefix + prompt.strip() + suffix

    def crop_length(self, tokenizer: PromptTokenizer) -> int:
        """Tokens before the prompt, the begin token included: their states are cut away.

        Raises:
            TokenizerError: a Llama-3 vocabulary that splits the template otherwise than it should.
        """
        length = len(tokenizer.encode(self.prefix).ids)
        if tokenizer.num_ids >= _LLAMA3_MIN_IDS and length != self.llama3_crop:
            raise TokenizerError(
                f"{shown(tokenizer.source)} splits the {self.name} template into {length} tokens, expected "
                f"{self.llama3_crop}; use the tokenizer.json of LLaVA-Llama-3-8B"
            )
        return length


VIDEO_TEMPLATE = PromptTemplate(
    name="video",
    text=(
        "<|start_header_id|>system<|end_header_id|>\n\n"
        "Describe the video by detailing the following aspects: "
        "1. The main content and theme of the video."
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
        "4. background environment, light, style and atmosphere."
        "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    ),
    llama3_crop=95,
)
IMAGE_TEMPLATE = PromptTemplate(
    name="image",
    text=(
        "<|start_header_id|>system<|end_header_id|>\n\n"
        "Describe the image by detailing the color, shape, size, texture, quantity, text, "
        "spatial relationships of the objects and background:<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    ),
    llama3_crop=36,
)
TEMPLATES = {template.name: template for template in (VIDEO_TEMPLATE, IMAGE_TEMPLATE)}
"""By name, as widgets offer them: video first."""
