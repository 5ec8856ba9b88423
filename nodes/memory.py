"""The node that says how much of a GPU a model may take."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..hyvideo_core.memory import AUTO, MODES, MemoryOptions
from . import host
from .host import io
from .recipes import ModelRecipe
from .sockets import HYVModel

logger = logging.getLogger(__name__)


class HYVMemory(io.ComfyNode):
    """Memory options onto HYV_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVMemory",
            display_name="HunyuanVideo Memory",
            category="HunyuanVideo/memory",
            description="How much GPU memory the model may take. Weights without room there are streamed from main "
            "memory while others compute. Without this node all of it is chosen by what is free. Where weights lie "
            "never changes the video.",
            search_aliases=["hunyuan", "hyvideo", "vram", "low vram", "block swap", "offload", "streaming"],
            inputs=[
                HYVModel.Input("model", tooltip="From HunyuanVideo Load Model or Load LoRA."),
                io.String.Input(
                    "budget",
                    default=AUTO,
                    tooltip="GB of GPU memory for the weights, for example 4.5, or auto for as much as is free beside "
                    "the run. 0 streams everything.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="low: attention's inputs are made for some heads at a time, which saves 40 % of the memory "
                    "beside the weights and costs little time.",
                ),
                io.Int.Input(
                    "prefetch",
                    default=2,
                    min=1,
                    max=8,
                    tooltip="Blocks that are fetched ahead while one computes. More takes more memory; 2 hides the "
                    "copies at all usual sizes.",
                ),
            ],
            outputs=[HYVModel.Output("model", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelRecipe, budget: str, mode: str, prefetch: int) -> io.NodeOutput:
        """Checks the options and hands on a recipe with them."""
        options = MemoryOptions(budget=MemoryOptions.read_budget(budget), mode=mode, prefetch=prefetch)
        if options.budget is not None and host.device_for("transformer").type == "cpu":
            logger.info("the memory budget has no effect on the CPU, where weights are never moved")
        return io.NodeOutput(replace(model, memory=options))
