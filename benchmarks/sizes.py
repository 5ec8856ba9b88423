"""The videos that benchmarks are about, and the formulas for the work that the 13B transformer does on them.

S tokens, image and text; D hidden size. Each token meets 12 D^2 weights in every block, double or single.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyvideo_nodes.hyvideo_core.config import HYVIDEO_T2_CFGDISTILL, TransformerConfig
from hyvideo_nodes.hyvideo_core.shapes import VideoShape

TEXT_TOKENS = 256
GB = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One video with its text.

    Args:
        frames, height, width: of the video.
        text_tokens: how many follow the image tokens.
        config: the transformer's sizes.
    """

    frames: int
    height: int
    width: int
    text_tokens: int = TEXT_TOKENS
    config: TransformerConfig = HYVIDEO_T2_CFGDISTILL

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"

    def with_config(self, **changes: int) -> Workload:
        """The same video for a model of other sizes."""
        return replace(self, config=replace(self.config, **changes))

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Latents over time, height and width."""
        latents = VideoShape(frames=self.frames, height=self.height, width=self.width).to_latent()
        return latents.frames, latents.height, latents.width

    @property
    def grid(self) -> tuple[int, int, int]:
        """Image tokens over time, height and width."""
        (frames, height, width), (pt, ph, pw) = self.latent_size, self.config.patch_size
        return frames // pt, height // ph, width // pw

    @property
    def image_tokens(self) -> int:
        """Their number."""
        frames, rows, columns = self.grid
        return frames * rows * columns

    @property
    def tokens(self) -> int:
        """S: image and text."""
        return self.image_tokens + self.text_tokens

    @property
    def unit(self) -> int:
        """u: bytes of one bf16 activation [S, D]."""
        return self.tokens * self.config.hidden_size * 2

    @property
    def block_attention_flops(self) -> int:
        """4 S^2 D, of a block of either kind."""
        return 4 * self.tokens**2 * self.config.hidden_size

    @property
    def block_linear_flops(self) -> int:
        """24 D^2 S, of a block of either kind, its modulation not counted, which is that of one token."""
        return 24 * self.config.hidden_size**2 * self.tokens

    @property
    def block_flops(self) -> int:
        """Attention and linear layers of one block."""
        return self.block_attention_flops + self.block_linear_flops

    @property
    def step_flops(self) -> int:
        """All blocks; what is around them is less than 0.1 % of it."""
        return (self.config.num_double_blocks + self.config.num_single_blocks) * self.block_flops


WORKLOADS = (
    Workload(height=320, width=512, frames=61),
    Workload(height=480, width=848, frames=73),
    Workload(height=544, width=960, frames=129),
    Workload(height=720, width=1280, frames=129),
)
SMALLEST, LARGEST = WORKLOADS[0], WORKLOADS[-1]

SMALL_CONFIG = TransformerConfig(
    hidden_size=256,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=4,
    rope_axes=(16, 56, 56),
    text_width=128,
    pooled_width=64,
    has_guidance=True,
)
SMALL_WORKLOADS = tuple(
    Workload(height=256, width=256, frames=frames, text_tokens=64, config=SMALL_CONFIG) for frames in (5, 13, 29)
)
"""Heads as large as the real ones, and 512, 1024 and 2048 image tokens."""
