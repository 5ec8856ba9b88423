"""Conditioning to latents in one readable place: what the sampler node and the tests call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .attention import AttentionBackend, sdpa
from .config import TransformerConfig
from .errors import ConditioningError, NonFiniteError, OptionError, ShapeError
from .model.chunks import DEFAULT, BlockSettings
from .model.modulation import BlockHold
from .model.modulation_table import ModulationTable
from .model.transformer import BlockRunner, Transformer, guidance_input, run_blocks
from .sampling.denoise import StepCallback, StepResult, denoise
from .sampling.guidance import NEGATIVE, POSITIVE, Guidance, choose_guidance
from .sampling.masking import KeptRegion, fit_mask, mix_noise
from .sampling.noise import make_noise
from .sampling.sigmas import TIMESTEP_SCALE, check_sigmas, partial_sigmas
from .shapes import LatentShape
from .step_cache import CacheReport, StepCache
from .text_encoders.conditioning import Conditioning

LATENT_SCALE = 0.476986
"""Raw VAE latents times this are what the transformer sees."""

SIGMA_ROUNDING = 1e-6
"""How far the first noise level of a full run may lie from 1."""

ATTENTION_PEAK = (2.4, 4.0)
"""Tensors of [tokens, hidden size] alive around a block's attention: always, and for heads that compute at once."""

FEED_FORWARD_PEAK = (2.4, 12.0)
"""The same around its feed-forward part: for all tokens, and for those of a chunk."""

WORKSPACE_BYTES = 2**28
"""What libraries and small tensors take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """What a run is asked for.

    Args:
        steps: model calls per sample.
        seed: of sample 0; see sampling.noise.
        guidance_scale: embedded guidance, for models that have it.
        flow_shift: see sampling.sigmas.
        cfg: true classifier-free guidance; 1 is off.
        denoise: 1 starts from pure noise.
        sigmas: noise levels in place of those that steps, flow_shift and denoise give.
    Raises:
        OptionError: a value outside its range.
    """

    steps: int = 50
    seed: int = 0
    guidance_scale: float = 6.0
    flow_shift: float = 7.0
    cfg: float = 1.0
    denoise: float = 1.0
    sigmas: Tensor | None = None

    def __post_init__(self) -> None:
        check_sigmas(self.schedule())
        if not (0 <= self.guidance_scale < math.inf and 0 <= self.cfg < math.inf):
            raise OptionError(
                f"embedded_guidance_scale {self.guidance_scale} and cfg {self.cfg}: expected 0 or more, and finite; "
                "6.0 and 1.0 are the model's own"
            )

    def schedule(self) -> Tensor:
        """Noise levels of the run, (num_steps + 1,) float32."""
        if self.sigmas is not None:
            return self.sigmas.float().cpu()
        return partial_sigmas(self.steps, self.flow_shift, self.denoise)

    @property
    def num_steps(self) -> int:
        """Model calls per sample."""
        return len(self.schedule()) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StartLatents:
    """What a run starts from.

    Attributes:
        samples: [B, C, T, H, W] raw VAE latents; with denoise 1 and no mask only their shape is used.
        noise_mask: any size, 1 samples and 0 keeps; see sampling.masking.fit_mask.
        batch_index: numbers of the samples in the batch they came from.
    """

    samples: Tensor
    noise_mask: Tensor | None = None
    batch_index: Sequence[int] | None = None


@dataclass(slots=True)
class SamplingReport:
    """What happened in a run: reused steps by sample and branch."""

    caches: dict[str, CacheReport] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"step cache, {name}: {report}" for name, report in self.caches.items()]
        return "\n".join(lines) or "every step was computed"


def sample_latents(
    model: Transformer,
    start: StartLatents,
    positive: Sequence[Conditioning],
    negative: Sequence[Conditioning],
    options: SamplingOptions,
    *,
    device: torch.device,
    step_cache: StepCache | None = None,
    run: BlockRunner = run_blocks,
    hold: BlockHold = nullcontext,
    attention: AttentionBackend = sdpa,
    settings: BlockSettings = DEFAULT,
    on_step: StepCallback | None = None,
) -> tuple[Tensor, SamplingReport]:
    """Denoised latents, one sample after the other, so that a batch equals its singles bit for bit.

    Args:
        positive, negative: one conditioning for all samples, or one for each; `negative` may be empty.
        device: where the model computes.
        run: how its blocks are walked in each step.
        hold: brings the weights that make modulation to the device, before the first step; see model.modulation.
        settings: how blocks compute.
        on_step: called after each step of each sample; may raise to stop the run.
    Returns:
        [B, C, T, H, W] raw VAE latents, float32 on the CPU, and what happened.
    Raises:
        ShapeError, ConditioningError, NonFiniteError: see check_request and sampling.denoise.
    """
    check_request(model.config, start, positive, negative, options)
    sigmas = options.schedule()
    noise = make_noise(tuple(start.samples.shape), options.seed, start.batch_index)
    guidance = choose_guidance(options.cfg, bool(negative))
    mask = None if start.noise_mask is None else fit_mask(start.noise_mask, tuple(start.samples.shape))
    scale = guidance_input(options.guidance_scale, 1, model, device)
    report = SamplingReport()
    finished = []
    with torch.no_grad():
        prompts = {POSITIVE: positive, NEGATIVE: negative}
        used = [prompt for branch in guidance.branches for prompt in prompts[branch]]
        table = _modulation_table(model, used, scale, sigmas, device, hold)
        call = partial(model, attention=attention, modulation=table, settings=settings)
        for index in range(len(noise)):
            own_prompts = {POSITIVE: _pick(positive, index), NEGATIVE: _pick(negative, index)}
            runners = {}
            for branch in guidance.branches:
                runners[branch] = _attach_cache(
                    run, step_cache, len(sigmas) - 1, report, f"sample {index + 1}, {branch}"
                )
            guided = _GuidedModel(call, guidance, own_prompts, runners, scale, device)
            latents, kept = _starting_point(start, noise, mask, index, sigmas, options, device)
            velocity = guided if kept is None else kept.guard(guided)
            latents = denoise(velocity, latents, sigmas, on_step=_count_samples(on_step, index, len(noise)))
            finished.append((latents / LATENT_SCALE).cpu())
    return torch.cat(finished), report


def check_request(
    config: TransformerConfig,
    start: StartLatents,
    positive: Sequence[Conditioning],
    negative: Sequence[Conditioning],
    options: SamplingOptions,
) -> None:
    """Refuses what cannot be sampled; needs no weights, so that nothing heavy is loaded for it.

    Raises:
        ShapeError: latents that this model cannot take.
        ConditioningError: text states of another width or number, or a model that needs an image.
        NonFiniteError: NaN in latents that would be used.
    """
    shape = tuple(start.samples.shape)
    if config.in_channels != config.out_channels:
        raise ConditioningError(
            f"this model takes {config.in_channels} latent channels and gives {config.out_channels}: it makes video "
            "from an image, which this sampler does not do; load a text-to-video model"
        )
    if len(shape) != 5 or shape[1] != config.in_channels:
        raise ShapeError(
            f"latents of shape {list(shape)}, expected [batch, {config.in_channels}, frames, height/8, width/8]; "
            "connect HunyuanVideo Empty Latent or a HunyuanVideo VAE encode"
        )
    if any(size % patch for size, patch in zip(shape[2:], config.patch_size, strict=True)):
        raise ShapeError(
            f"latents of shape {list(shape)} are {shape[4] * 8} x {shape[3] * 8} pixels, expected multiples of 16; "
            "change width and height"
        )
    if not starts_from_noise(start, options) and not bool(torch.isfinite(start.samples).all()):
        raise NonFiniteError(
            "the latents to start from hold NaN or infinity, expected finite numbers; "
            "check the node that made them (a VAE in float16 is a usual cause)"
        )
    if start.noise_mask is not None and not 2 <= start.noise_mask.ndim <= 5:
        raise ShapeError(
            f"the noise mask is {list(start.noise_mask.shape)}, expected [..., height, width]; connect a MASK"
        )
    if start.batch_index is not None and len(start.batch_index) != shape[0]:
        raise ShapeError(f"batch_index has {len(start.batch_index)} entries for {shape[0]} latents, expected as many")
    for name, prompts in ((POSITIVE, positive), (NEGATIVE, negative)):
        for prompt in prompts:
            _check_prompt(config, name, prompt)
        if len(prompts) not in ((1, shape[0]) if name == POSITIVE else (0, 1, shape[0])):
            raise ConditioningError(
                f"{len(prompts)} {name} prompts for {shape[0]} latents, expected one for all or one for each"
            )


def starts_from_noise(start: StartLatents, options: SamplingOptions) -> bool:
    """Whether only the shape of the latents matters: the first noise level is pure noise and nothing is kept."""
    return float(options.schedule()[0]) > 1.0 - SIGMA_ROUNDING and start.noise_mask is None


def activation_bytes(
    config: TransformerConfig,
    start: StartLatents,
    settings: BlockSettings = DEFAULT,
    attention_copies: float = 0.0,
) -> int:
    """About the peak of what one model call needs besides the weights, in 16 bits.

    Args:
        attention_copies: what attention takes beside its result, as a part of its inputs.
    """
    _, channels, frames, height, width = start.samples.shape
    shape = LatentShape(channels=channels, frames=frames, height=height, width=width)
    tokens = shape.num_tokens(config.patch_size)
    heads = min(settings.heads_at_once or config.num_heads, config.num_heads) / config.num_heads
    attention = (ATTENTION_PEAK[0] + (ATTENTION_PEAK[1] + 3 * attention_copies) * heads) * tokens
    feed_forward = FEED_FORWARD_PEAK[0] * tokens + FEED_FORWARD_PEAK[1] * min(tokens, settings.chunk_tokens)
    return int(max(attention, feed_forward) * config.hidden_size * 2) + WORKSPACE_BYTES


def _check_prompt(config: TransformerConfig, name: str, prompt: Conditioning) -> None:
    if prompt.states.ndim != 3 or prompt.states.shape[1] < 1:
        raise ConditioningError(
            f"the {name} text states are {list(prompt.states.shape)}, expected [1, tokens, {config.text_width}]; "
            "connect a text encode, which gives at least one token"
        )
    if not bool(torch.isfinite(prompt.states).all()):
        raise NonFiniteError(
            f"the {name} text states hold NaN or infinity, expected finite numbers; encode the prompt again with the "
            "text encoders in bf16 or fp32"
        )
    width = prompt.states.shape[-1]
    if width != config.text_width:
        raise ConditioningError(
            f"the {name} text states are {width} wide, this model takes {config.text_width}; "
            "encode the prompt with the text encoders that belong to this model"
        )
    if config.pooled_width is None:
        return
    pooled = "no pooled vector" if prompt.pooled is None else f"a pooled vector of width {prompt.pooled.shape[-1]}"
    if prompt.pooled is None or prompt.pooled.shape[-1] != config.pooled_width:
        raise ConditioningError(
            f"the {name} conditioning has {pooled}, this model takes one of width {config.pooled_width}; "
            "encode the prompt with the CLIP that belongs to this model"
        )


class _GuidedModel:
    """The model with its prompts: latents and a noise level to one velocity."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        guidance: Guidance,
        prompts: Mapping[str, Conditioning | None],
        runners: Mapping[str, BlockRunner],
        scale: Tensor | None,
        device: torch.device,
    ) -> None:
        self._model, self._guidance, self._scale, self._runners = model, guidance, scale, runners
        self._inputs = {}
        for branch in guidance.branches:
            prompt = prompts[branch]
            if prompt is None:
                raise ConditioningError(f"the guidance needs a {branch} prompt and none is connected; connect one")
            self._inputs[branch] = (prompt.states.to(device), _pooled(prompt, device))

    def __call__(self, latents: Tensor, sigma: float) -> Tensor:
        timesteps = _timesteps(sigma, latents.device)
        velocities = {}
        for branch, (states, pooled) in self._inputs.items():
            velocities[branch] = self._model(
                latents, timesteps, [states], pooled, self._scale, run=self._runners[branch]
            )
        return self._guidance.combine(velocities)


def _modulation_table(
    model: Transformer,
    prompts: Sequence[Conditioning],
    scale: Tensor | None,
    sigmas: Tensor,
    device: torch.device,
    hold: BlockHold,
) -> ModulationTable:
    """Modulation of every call that a run will make."""
    vecs = [
        model.embed_vector(_timesteps(sigma, device), _pooled(prompt, device), scale)
        for prompt in prompts
        for sigma in sigmas[:-1].tolist()
    ]
    return ModulationTable(model.double_blocks, model.single_blocks, vecs, hold)


def _timesteps(sigma: float, device: torch.device) -> Tensor:
    return torch.full((1,), sigma * TIMESTEP_SCALE, dtype=torch.float32, device=device)


def _pooled(prompt: Conditioning, device: torch.device) -> Tensor | None:
    return None if prompt.pooled is None else prompt.pooled.to(device)


def _starting_point(
    start: StartLatents,
    noise: Tensor,
    mask: Tensor | None,
    index: int,
    sigmas: Tensor,
    options: SamplingOptions,
    device: torch.device,
) -> tuple[Tensor, KeptRegion | None]:
    own_noise = noise[index : index + 1].to(device)
    if starts_from_noise(start, options):
        return own_noise, None
    clean = start.samples[index : index + 1].to(device, torch.float32) * LATENT_SCALE
    latents = mix_noise(clean, own_noise, float(sigmas[0]))
    return latents, None if mask is None else KeptRegion(mask[index : index + 1].to(device), clean, own_noise)


def _attach_cache(
    run: BlockRunner, step_cache: StepCache | None, num_steps: int, report: SamplingReport, name: str
) -> BlockRunner:
    if step_cache is None:
        return run
    state = step_cache.start(num_steps)
    report.caches[name] = state.report
    return state.wrap(run)


def _count_samples(on_step: StepCallback | None, index: int, num_samples: int) -> StepCallback | None:
    """The callback with steps counted over the whole batch."""
    if on_step is None or num_samples == 1:
        return on_step

    def report(result: StepResult) -> None:
        done, total = index * result.total + result.done, num_samples * result.total
        on_step(StepResult(done, total, result.sigma, result.denoised))

    return report


def _pick(prompts: Sequence[Conditioning], index: int) -> Conditioning | None:
    """The prompt of one sample: a single one serves all."""
    return prompts[0 if len(prompts) == 1 else index] if prompts else None
