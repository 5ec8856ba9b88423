"""Nodes that use every socket type and option that ours may use; made for whichever `io` is given."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Speed(Enum):
    SLOW = "slow"
    FAST = "fast"


def probes(io: Any) -> list[Any]:
    """Node classes on a given `io`."""

    class ProbeWidgets(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            slider = io.NumberDisplay.slider
            inputs = [
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="the seed"),
                io.Int.Input("steps", display_name="Steps", default=4, min=1, max=9, step=1, display_mode=slider),
                io.Float.Input("cfg", default=1.0, min=0.0, max=2.0, step=0.1, round=0.01, display_mode=slider),
                io.Float.Input("shift", optional=True, lazy=True, force_input=True),
                io.String.Input("text", multiline=True, dynamic_prompts=True, placeholder="a cat"),
                io.String.Input("name", default="x", socketless=True),
                io.Boolean.Input("tiled", default=False, label_on="yes", label_off="no"),
                io.Combo.Input("kind", options=["a", "b"], default="b", extra_dict={"advanced": True}),
                io.Combo.Input("speed", options=Speed, default=Speed.FAST, optional=True),
                io.Combo.Input("file", options=[], optional=True),
            ]
            hidden = [io.Hidden.unique_id, io.Hidden.dynprompt]
            return io.Schema(
                node_id="ProbeWidgets",
                display_name="Probe",
                category="a/b",
                description="what it does",
                inputs=inputs,
                outputs=[
                    io.Int.Output("n", display_name="N", tooltip="a number"),
                    io.String.Output(is_output_list=True),
                ],
                hidden=hidden,
                is_experimental=True,
                is_deprecated=True,
                not_idempotent=True,
                search_aliases=["probe", "test"],
            )

        @classmethod
        def execute(cls, **kwargs: Any) -> Any:
            return io.NodeOutput(kwargs)

    class ProbeSockets(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            names = ["Image", "Mask", "Latent", "Conditioning", "Vae", "Video", "Sampler", "Sigmas", "Clip", "Model"]
            types = [getattr(io, name) for name in names] + [io.Custom("HYV_PROBE")]
            return io.Schema(
                node_id="ProbeSockets",
                inputs=[
                    socket.Input(f"in{i}", tooltip=f"socket {i}", optional=bool(i % 2), raw_link=bool(i % 3) or None)
                    for i, socket in enumerate(types)
                ],
                outputs=[socket.Output(f"out{i}") for i, socket in enumerate(types)],
                is_output_node=True,
            )

        @classmethod
        def execute(cls, **kwargs: Any) -> Any:
            return io.NodeOutput(*kwargs.values(), ui={"text": ["x"]})

    return [ProbeWidgets, ProbeSockets]
