"""Nodes that make the sampler skip work. Each names what it costs."""

from __future__ import annotations

from ..hyvideo_core.step_cache import TeaCache
from .host import io
from .sockets import HYVStepCache


class HYVTeaCache(io.ComfyNode):
    """TeaCache's options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVTeaCache",
            display_name="HunyuanVideo TeaCache",
            category="HunyuanVideo/step cache",
            description="Reuses the transformer's result in steps that change little: faster, with some loss. The "
            "sampler reports which steps were reused. Not connected, nothing changes.",
            search_aliases=["hunyuan", "hyvideo", "teacache", "speed", "step caching"],
            inputs=[
                io.Float.Input(
                    "rel_l1_thresh",
                    default=0.15,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much change may pass before a step is computed again. Published: 0.1 for 1.6 times, "
                    "0.15 for 2.1 times the speed. 0: every step is computed.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the steps that are always computed at the start, 0 to 1.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the steps after which all are computed, 0 to 1.",
                ),
            ],
            outputs=[HYVStepCache.Output("step_cache", tooltip="For the sampler's step_cache.")],
        )

    @classmethod
    def execute(cls, rel_l1_thresh: float, start_percent: float, end_percent: float) -> io.NodeOutput:
        """Checks the options and hands them on."""
        options = TeaCache(rel_l1_thresh=rel_l1_thresh, start_percent=start_percent, end_percent=end_percent)
        return io.NodeOutput(options)
