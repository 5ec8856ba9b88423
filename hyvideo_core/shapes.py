"""Video, latent and token sizes, and the arithmetic between them."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ShapeError

TIME_FACTOR = 4
SPATIAL_FACTOR = 8
SIZE_STEP = 16  # VAE factor 8 times patch 2

OFFICIAL_SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "720p": {
        "16:9": (1280, 720),
        "9:16": (720, 1280),
        "4:3": (1104, 832),
        "3:4": (832, 1104),
        "1:1": (960, 960),
    },
    "540p": {
        "16:9": (960, 544),
        "9:16": (544, 960),
        "4:3": (832, 624),
        "3:4": (624, 832),
        "1:1": (720, 720),
    },
}
"""(width, height) by class and aspect ratio, for which the model was trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentShape:
    """Size of one video in latents."""

    channels: int
    frames: int
    height: int
    width: int

    def as_tuple(self, batch: int) -> tuple[int, int, int, int, int]:
        """(B, C, T, H, W)."""
        return (batch, self.channels, self.frames, self.height, self.width)

    def num_tokens(self, patch_size: tuple[int, int, int] = (1, 2, 2)) -> int:
        """Image tokens that the transformer sees."""
        pt, ph, pw = patch_size
        return (self.frames // pt) * (self.height // ph) * (self.width // pw)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoShape:
    """Size of one video in frames and pixels.

    Raises:
        ShapeError: frames not 4k+1, or a side not divisible by 16.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.frames - 1) % TIME_FACTOR:
            low = max(1, (self.frames - 1) // TIME_FACTOR * TIME_FACTOR + 1)
            raise ShapeError(
                f"length {self.frames}: the model makes 4k+1 frames (1, 5, 9, ... 129); "
                f"use {low} or {low + TIME_FACTOR}"
            )
        for name, size in (("width", self.width), ("height", self.height)):
            if size < SIZE_STEP or size % SIZE_STEP:
                low = max(SIZE_STEP, size // SIZE_STEP * SIZE_STEP)
                raise ShapeError(
                    f"{name} {size}: sizes must be multiples of {SIZE_STEP} pixels; use {low} or {low + SIZE_STEP}"
                )

    def to_latent(self, channels: int = 16) -> LatentShape:
        """Size of the latents that decode to this video."""
        return LatentShape(
            channels=channels,
            frames=(self.frames - 1) // TIME_FACTOR + 1,
            height=self.height // SPATIAL_FACTOR,
            width=self.width // SPATIAL_FACTOR,
        )
