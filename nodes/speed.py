"""The node that makes a model compute faster where the machine can."""

from __future__ import annotations

from dataclasses import replace

from ..hyvideo_core.attention import AUTO
from ..hyvideo_core.attention import CHOICES as ATTENTION_CHOICES
from ..hyvideo_core.kernels import AUTO as AUTO_KERNELS
from ..hyvideo_core.kernels import CHOICES as KERNEL_CHOICES
from ..hyvideo_core.kernels import SpeedOptions
from .host import io
from .recipes import ModelRecipe
from .sockets import HYVModel


class HYVSpeed(io.ComfyNode):
    """Attention, fused kernels and compilation onto HYV_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVSpeed",
            display_name="HunyuanVideo Speed",
            category="HunyuanVideo/sampling",
            description="Chooses what computes the model: kernels of attention, fused kernels, torch.compile. Each is "
            "tried on a tiny input first; what does not work on this machine is replaced by the next best and named "
            "in the log. Without this node PyTorch's own functions compute.",
            search_aliases=[
                "hunyuan",
                "hyvideo",
                "attention",
                "sage attention",
                "flash attention",
                "int8",
                "torch compile",
                "triton",
            ],
            inputs=[
                HYVModel.Input("model", tooltip="From HunyuanVideo Load Model, Load LoRA or Memory."),
                io.Combo.Input(
                    "attention",
                    options=list(ATTENTION_CHOICES),
                    default=AUTO,
                    tooltip="auto: the fastest exact one, measured on this card. sdpa: what PyTorch takes by itself. "
                    "int8 (comfy-kitchen) and sage (SageAttention) compute in 8 bits: faster, with small "
                    "differences in the video.",
                ),
                io.Combo.Input(
                    "fused_kernels",
                    options=list(KERNEL_CHOICES),
                    default=AUTO_KERNELS,
                    tooltip="Several small steps in one pass over memory, by comfy-kitchen or by our Triton kernels. "
                    "The same numbers up to rounding.",
                ),
                io.Boolean.Input(
                    "torch_compile",
                    default=False,
                    tooltip="Compiles one block of each kind, which takes about a minute in the first run of a size. "
                    "The same numbers up to rounding. Needs a compiler: Triton on GPUs.",
                ),
            ],
            outputs=[HYVModel.Output("model", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelRecipe, attention: str, fused_kernels: str, torch_compile: bool) -> io.NodeOutput:
        """Checks the options and hands on a recipe with them."""
        options = SpeedOptions(attention=attention, kernels=fused_kernels, compiled=torch_compile)
        return io.NodeOutput(replace(model, speed=options))
