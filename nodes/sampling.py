"""The sampler node."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..hyvideo_core.model.transformer import walk_blocks
from ..hyvideo_core.pipeline import (
    SamplingOptions,
    StartLatents,
    activation_bytes,
    check_request,
    sample_latents,
)
from ..hyvideo_core.quantization import describe_errors, on_load_errors
from ..hyvideo_core.sampling.denoise import StepCallback, StepResult
from ..hyvideo_core.step_cache import StepCache
from . import host
from .host import io
from .preview import LatentPreview, find_preview
from .recipes import ModelRecipe
from .sockets import HYVModel, HYVStepCache, Prompts, read_conditioning, read_latent, write_latent

logger = logging.getLogger(__name__)

MAX_SEED = 0xFFFFFFFFFFFFFFFF


class HYVSampler(io.ComfyNode):
    """A model, a prompt and latents to denoised latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the help page."""
        return io.Schema(
            node_id="HYVSampler",
            display_name="HunyuanVideo Sampler",
            category="HunyuanVideo/sampling",
            description="Denoises latents by flow matching with the Euler solver. Everything that does not fit is "
            "refused before weights are loaded.",
            search_aliases=["hunyuan", "hyvideo", "ksampler"],
            inputs=[
                HYVModel.Input("model", tooltip="From HunyuanVideo Load Model."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Latent.Input("latent", tooltip="The size, or the video to start from with denoise below 1."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Chooses the noise. The same seed gives the same video, on every device.",
                ),
                io.Int.Input(
                    "steps", default=30, min=1, max=1000, tooltip="Model calls per video; 20 to 50 are usual."
                ),
                io.Float.Input(
                    "embedded_guidance_scale",
                    default=6.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How closely a guidance-distilled model follows the prompt, at no cost. A guidance in the "
                    "conditioning wins. Models without it ignore this.",
                ),
                io.Float.Input(
                    "flow_shift",
                    default=7.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Above 1 spends more steps at high noise, where motion and layout are decided.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="True classifier-free guidance, at twice the time. Needs a negative prompt; 1 is off. For "
                    "models that are not guidance-distilled.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 starts from noise; less keeps more of the latents that came in.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What the video should not show; only used when cfg is not 1."
                ),
                HYVStepCache.Input("step_cache", optional=True, tooltip="For example HunyuanVideo TeaCache."),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels from a scheduler node, in place of steps, flow_shift and denoise.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="For a VAE decode, ours or native."),
                io.String.Output("report", tooltip="What happened, with the steps that a cache reused."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelRecipe,
        positive: Sequence[Any],
        latent: Mapping[str, Any],
        seed: int,
        steps: int,
        embedded_guidance_scale: float,
        flow_shift: float,
        cfg: float,
        denoise: float,
        negative: Sequence[Any] | None = None,
        step_cache: StepCache | None = None,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        """Checks, places the model, samples."""
        start = read_latent(latent)
        prompts = read_conditioning(positive, "positive")
        avoided = read_conditioning(negative, "negative").samples if negative is not None else []
        options = SamplingOptions(
            steps=steps,
            seed=seed,
            guidance_scale=embedded_guidance_scale if prompts.guidance is None else prompts.guidance,
            flow_shift=flow_shift,
            cfg=cfg,
            denoise=denoise,
            sigmas=sigmas,
        )
        check_request(model.detected.config, start, prompts.samples, avoided, options)
        log_choices(model, start, prompts, avoided, options, embedded_guidance_scale)
        needed = activation_bytes(model.detected.config, start, model.memory.settings, model.speed.attention_copies)
        with model.open(needed) as opened:
            speed = model.speed.on(opened.device, opened.model.dtype, opened.model.config)
            samples, report = sample_latents(
                opened.model,
                start,
                prompts.samples,
                avoided,
                options,
                device=opened.device,
                step_cache=step_cache,
                run=walk_blocks(host.check_interrupt, opened.hold, speed.call),
                attention=speed.attention,
                hold=opened.hold,
                settings=replace(model.memory.settings, kernels=speed.kernels),
                on_step=show_progress(
                    len(start.samples) * options.num_steps,
                    find_preview(model.detected.view.checkpoint, model.detected.config.out_channels),
                ),
            )
            told = "\n".join(filter(None, (str(report), *precision_report(opened.model))))
        return io.NodeOutput(write_latent(samples.to(host.device_for("intermediate")), latent), told)


def log_choices(
    model: ModelRecipe,
    start: StartLatents,
    prompts: Prompts,
    avoided: Sequence[Any],
    options: SamplingOptions,
    widget_guidance: float,
) -> None:
    """Says what might surprise: a guidance that wins, a template of the other kind, settings without effect."""
    if prompts.guidance is not None and prompts.guidance != widget_guidance:
        logger.info("guidance %s from the conditioning is used, not %s", prompts.guidance, widget_guidance)
    expected = "image" if start.samples.shape[2] == 1 else "video"
    if prompts.template not in (None, expected):
        logger.warning(
            "the prompt was encoded with the %s template but the latent is %s; set template to %s in the text encode",
            prompts.template,
            "one frame" if expected == "image" else "a video",
            expected,
        )
    if options.cfg != 1.0 and not avoided:
        logger.warning("cfg is %s but no negative prompt is connected, so it has no effect", options.cfg)
    if avoided and options.cfg == 1.0:
        logger.info("the negative prompt has no effect while cfg is 1")
    logger.info("transformer: %s, %s steps", model.detected.variant, options.num_steps)


def precision_report(transformer: nn.Module) -> list[str]:
    """Lines on weights that were made fp8 on loading: all of them, then each layer. None for other models."""
    errors = on_load_errors(transformer)
    each = [f"  {name}: {error:.2%}" for name, error in errors.items()]
    return [describe_errors(errors), *each] if errors else []


def show_progress(total: int, preview: LatentPreview | None) -> StepCallback:
    """A callback that moves the node's bar, shows the latents and lets the user stop."""
    bar = host.progress(total)

    def on_step(result: StepResult) -> None:
        host.check_interrupt()
        bar.update(result.done, None if preview is None else preview.draw(result.denoised))

    return on_step
