"""The whole denoising transformer: latents in, velocity out.

Shapes: B batch, C channels, T latent frames, H and W latent sides, L tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import AttentionBackend, sdpa
from ..config import TransformerConfig
from ..errors import ConditioningError, ShapeError
from .blocks import DoubleStreamBlock, SingleStreamBlock
from .chunks import DEFAULT, BlockSettings, assembled
from .elementwise import Rope, affine, modulated_norm
from .embeddings import PatchEmbed, PooledEmbed, ScalarEmbed
from .linear import Linear
from .modulation import BlockHold, ModulationFactory, ModulationSource, VectorModulation
from .rope import rope_table
from .token_refiner import TokenRefiner


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """What enters the blocks. The blocks own `img` and `txt` and write to them when grad is off.

    Attributes:
        joint: the memory in which `img` and `txt` are neighbours, image first; None where they are not.
    """

    img: Tensor
    txt: Tensor
    rope: Rope
    modulation: ModulationSource
    attention: AttentionBackend
    settings: BlockSettings = DEFAULT
    joint: Tensor | None = None

    def together(self, img: Tensor, txt: Tensor) -> Tensor:
        """Both streams as one, [B, L, D]: without a copy where double-stream blocks wrote their results in place."""
        if self.joint is None or torch.is_grad_enabled():
            return torch.cat((img, txt), dim=1)
        return self.joint


BlockRunner = Callable[["Transformer", BlockInputs], Tensor]
"""How the blocks are walked: resident, streamed, skipped by a step cache. Returns image tokens [B, L_img, D]."""


BlockCall = Callable[[nn.Module], Callable[..., Any]]
"""A block to what computes it on the same inputs: itself, or a compiled form that all blocks of its kind share."""


def call_itself(block: nn.Module) -> Callable[..., Any]:
    """The block, which computes as it is written."""
    return block


def walk_blocks(
    before_block: Callable[[], None], hold: BlockHold = nullcontext, call: BlockCall = call_itself
) -> BlockRunner:
    """A runner that walks all blocks in order.

    Args:
        before_block: called before each block; may raise to stop a step that takes minutes.
        hold: brings a block's weights, without its modulation, to the compute device for as long as they are needed.
        call: gives what computes a block.
    """

    def run(model: Transformer, inputs: BlockInputs) -> Tensor:
        img, txt, modulation = inputs.img, inputs.txt, inputs.modulation
        shared = inputs.rope, inputs.attention, inputs.settings
        for index, double in enumerate(model.double_blocks):
            before_block()
            with hold(double):
                img, txt = call(double)(img, txt, modulation.double(index, double), *shared)
        joint = inputs.together(img, txt)
        for index, single in enumerate(model.single_blocks):
            before_block()
            with hold(single):
                joint = call(single)(joint, modulation.single(index, single), *shared)
        return joint[:, : img.shape[1]]

    return run


run_blocks = walk_blocks(lambda: None)


def first_modulated_input(model: Transformer, inputs: BlockInputs) -> Tensor:
    """What the first block's attention sees of the image, [B, L_img, D] float32: the signal of step caches."""
    if len(model.double_blocks):
        modulation = inputs.modulation.double(0, model.double_blocks[0]).img_attn
    else:
        modulation = inputs.modulation.single(0, model.single_blocks[0])
    own, length = affine(modulation.shift, modulation.scale), inputs.img.shape[1]
    return assembled((modulated_norm(inputs.img[:, c], own) for c in inputs.settings.chunks(length)), length)


class FinalLayer(nn.Module):
    """Image tokens to patches of velocity."""

    def __init__(self, hidden_size: int, out_width: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, out_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(hidden_size, 2 * hidden_size))

    def forward(self, img: Tensor, vec: Tensor, settings: BlockSettings = DEFAULT) -> Tensor:
        """Tokens [B, L, D] and vector [B, D] to [B, L, channels * patch volume]."""
        own = affine(*self.adaLN_modulation(vec).unsqueeze(1).chunk(2, dim=-1))
        length = img.shape[1]
        patches = (self.linear(modulated_norm(img[:, chunk], own)) for chunk in settings.chunks(length))
        return assembled(patches, length)


class Transformer(nn.Module):
    """HunyuanVideo's transformer. Knows no masks: text enters at its real length.

    Args:
        config: all sizes; `pooled_width` None or `has_guidance` False leave those inputs out.
    Source: Kong et al. 2024, "HunyuanVideo", sec. 4.2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        pt, ph, pw = config.patch_size
        self.img_in = PatchEmbed(config.in_channels, width, config.patch_size)
        self.txt_in = TokenRefiner(config)
        self.time_in = ScalarEmbed(width)
        self.vector_in = None if config.pooled_width is None else PooledEmbed(config.pooled_width, width)
        self.guidance_in = ScalarEmbed(width) if config.has_guidance else None
        self.double_blocks: Sequence[DoubleStreamBlock] = nn.ModuleList(  # type: ignore[assignment]
            DoubleStreamBlock(config) for _ in range(config.num_double_blocks)
        )
        self.single_blocks: Sequence[SingleStreamBlock] = nn.ModuleList(  # type: ignore[assignment]
            SingleStreamBlock(config) for _ in range(config.num_single_blocks)
        )
        self.final_layer = FinalLayer(width, config.out_channels * pt * ph * pw)

    @property
    def dtype(self) -> torch.dtype:
        """What the blocks compute in; stored weights may be smaller."""
        return self.img_in.proj.weight.dtype

    def embed_vector(self, timesteps: Tensor, pooled: Tensor | None, guidance: Tensor | None) -> Tensor:
        """Timestep, pooled text and guidance as one vector [B, D].

        Raises:
            ConditioningError: an input that this model needs is missing.
        """
        vec = self.time_in(timesteps)
        if self.vector_in is not None:
            vec = vec + self.vector_in(_given(pooled, "a pooled text vector", "encode the prompt with CLIP too"))
        if self.guidance_in is not None:
            vec = vec + self.guidance_in(_given(guidance, "a guidance value", "set embedded_guidance_scale"))
        return vec

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Sequence[Tensor],
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        run: BlockRunner = run_blocks,
        attention: AttentionBackend = sdpa,
        modulation: ModulationFactory = VectorModulation,
        settings: BlockSettings = DEFAULT,
    ) -> Tensor:
        """Velocity of the latents at a timestep, in the model's dtype.

        Args:
            latents: [B, C, T, H, W], scaled; H and W multiples of the patch.
            timesteps: [B], sigma * 1000.
            text: one tensor [B, L, text width] for each token source (one here), without padding.
            pooled: [B, pooled width].
            guidance: [B], scale * 1000.
            run: how the blocks are walked.
            modulation: where they get it from; a ModulationTable has it ready.
            settings: how they compute.
        Returns:
            [B, out channels, T, H, W].
        Raises:
            ShapeError, ConditioningError: what does not fit this model's configuration.
        """
        grid = self.token_grid(latents)
        vec = self.embed_vector(timesteps, pooled, guidance)
        txt = torch.cat([refine(states, timesteps, attention) for refine, states in self._sources(text)], dim=1)
        rope = rope_table(grid, self.config.rope_axes, self.config.rope_theta, latents.device)
        joint = torch.cat((self.img_in(latents), txt), dim=1)
        img, txt = joint.split((math.prod(grid), txt.shape[1]), dim=1)
        img = run(self, BlockInputs(img, txt, rope, modulation(vec), attention, settings, joint))
        return self.unpatchify(self.final_layer(img, vec, settings), grid)

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Image tokens per axis (frames, rows, columns) of latents [B, C, T, H, W]."""
        config, (_, channels, *sizes) = self.config, latents.shape
        if channels != config.in_channels:
            raise ShapeError(
                f"latents have {channels} channels, this model takes {config.in_channels}; "
                "use the latents and the VAE that belong to it"
            )
        if any(size % patch for size, patch in zip(sizes, config.patch_size, strict=True)):
            raise ShapeError(
                f"latents of {'x'.join(map(str, sizes))} (frames x height x width) are not whole patches of "
                f"{'x'.join(map(str, config.patch_size))}; choose sides that are multiples of 16 pixels"
            )
        frames, rows, columns = (size // patch for size, patch in zip(sizes, config.patch_size, strict=True))
        return frames, rows, columns

    def unpatchify(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, L, channels * patch volume], channels slowest, to [B, C, T, H, W]."""
        (t, h, w), (pt, ph, pw) = grid, self.config.patch_size
        pattern = "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)"
        return rearrange(patches, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)

    def _sources(self, text: Sequence[Tensor]) -> list[tuple[TokenRefiner, Tensor]]:
        if len(text) != 1 or text[0].shape[-1] != self.config.text_width:
            widths = ", ".join(str(states.shape[-1]) for states in text) or "none"
            raise ConditioningError(
                f"text states of width {widths}, this model takes one source of width {self.config.text_width}; "
                "encode the prompt with the text encoders that belong to this model"
            )
        return [(self.txt_in, text[0])]


def _given(value: Tensor | None, what: str, remedy: str) -> Tensor:
    if value is None:
        raise ConditioningError(f"this model needs {what} and got none; {remedy}")
    return value


def guidance_input(scale: float, batch: int, like: Transformer, device: torch.device) -> Tensor | None:
    """Embedded guidance as the model takes it: [batch] in its dtype, times 1000 in that dtype; None without guidance.

    In bfloat16 a scale of 6.0 becomes 6016: that rounding is part of what the model was trained with.
    """
    if not like.config.has_guidance:
        return None
    return torch.full((batch,), scale, dtype=like.dtype, device=device) * 1000.0
