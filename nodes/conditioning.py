"""Nodes that turn prompts into conditioning."""

from __future__ import annotations

from ..hyvideo_core.memory import MemoryOptions
from ..hyvideo_core.text_encoders.conditioning import Conditioning, encode_pooled, encode_states
from ..hyvideo_core.text_encoders.templates import TEMPLATES
from .host import io
from .recipes import TextEncodersRecipe
from .sockets import HYVTextEncoders, write_conditioning

ENCODER_ACTIVATION_BYTES = 512 * 2**20
"""More than the 8B language model needs for its longest prompt."""


class HYVTextEncode(io.ComfyNode):
    """A prompt to CONDITIONING, the native socket."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVTextEncode",
            display_name="HunyuanVideo Text Encode",
            category="HunyuanVideo/conditioning",
            description="Encodes a prompt with the language model and CLIP. At most 256 tokens of the prompt are "
            "read; an empty prompt works.",
            search_aliases=["hunyuan", "hyvideo", "prompt", "clip text encode"],
            inputs=[
                HYVTextEncoders.Input("text_encoders", tooltip="From HunyuanVideo Load Text Encoders."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the video shows, in plain English sentences.",
                ),
                io.Combo.Input(
                    "template",
                    options=sorted(TEMPLATES, reverse=True),
                    default="video",
                    tooltip="How the language model is asked about the prompt: video for clips, image for one frame.",
                ),
            ],
            outputs=[io.Conditioning.Output("conditioning", tooltip="For our sampler, or native ones.")],
        )

    @classmethod
    def execute(cls, text_encoders: TextEncodersRecipe, prompt: str, template: str) -> io.NodeOutput:
        """Runs the language model, then CLIP."""
        # a prompt needs each layer once, so that keeping any on a GPU would only take room from the transformer
        with text_encoders.llm.open(ENCODER_ACTIVATION_BYTES, MemoryOptions(budget=0)) as llm:
            states, num_cut = encode_states(prompt, TEMPLATES[template], llm.model, text_encoders.llm_tokenizer)
        clip, _ = text_encoders.clip.place(ENCODER_ACTIVATION_BYTES)
        pooled, num_cut_clip = encode_pooled(prompt, clip, text_encoders.clip_tokenizer)
        conditioning = Conditioning(
            states=states, pooled=pooled, num_cut_tokens=num_cut, num_cut_clip_tokens=num_cut_clip
        )
        return io.NodeOutput(write_conditioning(conditioning, template))
