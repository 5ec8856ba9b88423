"""The node that says what a file is."""

from __future__ import annotations

import logging

from ..hyvideo_core.doctor import inspect
from . import host
from .host import io
from .recipes import ModelRecipe, fingerprint
from .sockets import HYVModel

logger = logging.getLogger(__name__)

FOLDERS = ("diffusion_models", "vae", "text_encoders", "loras", "clip_vision", "vae_approx")


class HYVInspectFile(io.ComfyNode):
    """A file's name to a description of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        files = [f"{folder}/{name}" for folder in FOLDERS for name in host.model_files(folder)]
        return io.Schema(
            node_id="HYVInspectFile",
            display_name="HunyuanVideo Inspect File",
            category="HunyuanVideo/loaders",
            description="Says what a weight file is, which variant, how it is stored, what else it needs and which "
            "node opens it. Reads the header only, so that the largest file takes no time.",
            search_aliases=["hunyuan", "hyvideo", "doctor", "what is this file", "model info"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files,
                    default=files[0] if files else None,
                    tooltip="A file from the model folders; the folder stands in front of its name.",
                ),
                HYVModel.Input(
                    "model",
                    optional=True,
                    tooltip="For a LoRA: the model that it is to fit. Without it the published 13B model is taken.",
                ),
            ],
            outputs=[io.String.Output("text", tooltip="The description, one fact in each line.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, model: ModelRecipe | None = None) -> tuple[object, ...]:  # noqa: ARG003
        """Changes when the file does."""
        return fingerprint(host.resolve(*_place(file)))

    @classmethod
    def execute(cls, file: str, model: ModelRecipe | None = None) -> io.NodeOutput:
        """Reads the header and shows what it says."""
        text = str(inspect(host.resolve(*_place(file)), model.detected if model else None))
        logger.info("%s", text)
        host.show_text(text)
        return io.NodeOutput(text, ui={"text": [text]})


def _place(file: str) -> tuple[str, str]:
    """Folder and name of a choice."""
    folder, _, name = file.partition("/")
    return (folder, name) if folder in FOLDERS else (FOLDERS[0], file)
