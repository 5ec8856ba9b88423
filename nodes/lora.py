"""The node that puts a LoRA on a model."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..hyvideo_core.errors import OptionError
from ..hyvideo_core.loading import open_checkpoint
from ..hyvideo_core.lora import (
    Attached,
    LoraFile,
    describe_blocks,
    load_lora,
    merge_loras,
    open_lora,
    parse_blocks,
)
from ..hyvideo_core.lora.blocks import ALL
from ..hyvideo_core.lora.targets import Layer
from ..hyvideo_core.memory import transformer_layout
from ..hyvideo_core.model import Transformer
from . import host
from .host import io
from .loaders import CATEGORY, NAMES, file_input
from .recipes import FP8_MATMUL, MADE_FP8, LoraRecipe, ModelRecipe, choose_dtype, fingerprint, share_weights
from .sockets import HYVModel

logger = logging.getLogger(__name__)

SIDE_PATH, MERGED = "side path", "merged"


class HYVLoadLora(io.ComfyNode):
    """A LoRA file onto HYV_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVLoadLora",
            display_name="HunyuanVideo Load LoRA",
            category=CATEGORY,
            description="Puts a LoRA of any trainer's layout on a model of any precision and reports how much of it "
            "fits. Only the header is read here. Several of these nodes in a row add up.",
            search_aliases=["hunyuan", "hyvideo", "lora loader", "loha", "lokr", "dora"],
            inputs=[
                HYVModel.Input("model", tooltip="From HunyuanVideo Load Model, or another Load LoRA."),
                file_input("lora", "loras", "A file from models/loras.", *NAMES),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the LoRA acts: 1 as it was trained, 0 not at all.",
                ),
                io.String.Input(
                    "blocks",
                    default=ALL,
                    optional=True,
                    tooltip='Where it acts. all, or for example "double 0-9, single all" or "all, not single 30-39".',
                ),
                io.Combo.Input(
                    "mode",
                    options=[SIDE_PATH, MERGED],
                    default=SIDE_PATH,
                    optional=True,
                    tooltip="side path: beside the weights, exact, on every precision, changed without a reload. "
                    "merged: in a copy of bf16, fp16 or fp32 weights, somewhat faster, read anew when it changes.",
                ),
            ],
            outputs=[
                HYVModel.Output("model", tooltip="For the sampler, or another Load LoRA."),
                io.String.Output("report", tooltip="What the file is, and how much of it fits the model."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_widgets: object) -> tuple[object, ...]:
        """Changes when the file does."""
        return fingerprint(host.resolve("loras", lora))

    @classmethod
    def execute(
        cls, model: ModelRecipe, lora: str, strength: float, blocks: str = ALL, mode: str = SIDE_PATH
    ) -> io.NodeOutput:
        """Reads the header and hands on a recipe with the LoRA in it."""
        opened = open_lora(open_checkpoint(host.resolve("loras", lora)), model.detected.config)
        chosen = parse_blocks(blocks, model.detected.config)
        layers = [layer for layer in opened.layers if layer in chosen]
        if strength != 0 and layers:
            put_on = add_side_path if mode == SIDE_PATH else add_merged
            model = put_on(model, opened, strength, blocks)
        report = report_coverage(opened, layers, strength, mode)
        host.show_text(report)
        return io.NodeOutput(model, report, ui={"text": [report]})


def report_coverage(lora: LoraFile, layers: list[Layer], strength: float, mode: str) -> str:
    """What is known of a LoRA on its model; warns of everything in the file that does nothing."""
    lines = [str(lora)]
    if lora.in_channels != lora.config.in_channels:
        lines.append(f"the model's input is widened from {lora.config.in_channels} to {lora.in_channels} channels")
    if strength == 0 or not layers:
        lines.append(
            "no effect: " + ("strength is 0" if strength == 0 else "the chosen blocks hold none of its layers")
        )
    else:
        lines.append(f"{mode} at strength {strength:g} on {len(layers)} layers: {describe_blocks(layers)}")
    if lora.family is not None:
        lines.append(f"it looks like a LoRA for {lora.family.words}; expect noise if it is one")
    report = "\n".join(lines)
    is_doubtful = lora.family is not None or (strength != 0 and not layers)
    logger.log(logging.WARNING if is_doubtful else logging.INFO, "%s", report)
    lost = (*lora.coverage.stray, *lora.coverage.text_encoder)
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        logger.warning(
            "%s: %s of its tensors %s not applied:\n%s", lora.checkpoint.name, len(lost), verb, "\n".join(lost)
        )
    return report


def add_side_path(model: ModelRecipe, lora: LoraFile, strength: float, blocks: str) -> ModelRecipe:
    """The model with a LoRA beside its weights."""
    base = model.detected.view.checkpoint
    dtype = choose_dtype(model.precision, base, host.device_for("transformer"), torch.bfloat16)
    # what factors mean depends on the model, by its sizes alone
    weights = share_weights(
        "transformer", lora.checkpoint, str(dtype), lambda: load_lora(lora, dtype=dtype), lora.config
    )
    recipe = LoraRecipe(lora=lora, strength=strength, blocks=blocks, weights=weights)
    return replace(model, detected=replace(model.detected, config=lora.widened), loras=(*model.loras, recipe))


def add_merged(model: ModelRecipe, lora: LoraFile, strength: float, blocks: str) -> ModelRecipe:
    """The model with weights of its own, into which a LoRA is merged when they load.

    Raises:
        OptionError: weights that the LoRA changes are not stored as plain floats.
    """
    check_plain(model, lora)
    below = model.weights

    def build() -> Transformer:
        weights = load_lora(lora, dtype=torch.float32)
        return merge_loras(below.build(), [Attached(lora=lora, weights=weights, strength=strength, blocks=blocks)])

    merged = (*model.merged, (fingerprint(lora.checkpoint.path), strength, blocks))
    weights = share_weights(
        "transformer", model.detected.view.checkpoint, model.precision, build, *merged, layout=transformer_layout
    )
    return replace(model, detected=replace(model.detected, config=lora.widened), weights=weights, merged=merged)


def check_plain(model: ModelRecipe, lora: LoraFile) -> None:
    """Refuses weights into which nothing can be merged.

    Raises:
        OptionError: says how they are stored.
    """
    policy, how = model.detected.policy, None
    if model.precision in (MADE_FP8, FP8_MATMUL):
        how = f"are made fp8 on loading (precision {model.precision})"
    with torch.device("meta"):
        for layer in lora.layers:
            if how is None and not layer.is_norm and not layer.kernel:
                key = f"{layer.name}.weight"
                stored = policy.layer(key, layer.shape, has_bias=layer.has_bias, compute_dtype=torch.bfloat16)
                how = None if stored is None else f"are stored as {policy.label}"
    if how is not None:
        raise OptionError(
            f"{model.detected.view.checkpoint.name}: its weights {how}, into which no LoRA can be merged; "
            f'set mode to "{SIDE_PATH}", which works on every precision, or load a bf16 file'
        )
