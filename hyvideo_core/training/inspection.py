"""Looking at what a model in training makes: samples, contact sheets, and scores by the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..model.transformer import Transformer
from ..sampling.denoise import denoise
from ..sampling.noise import make_noise
from ..sampling.sigmas import flow_sigmas
from .captions import plain_caption
from .judge import score
from .objectives import TextCondition, guided_velocity, velocity
from .scenes import LOW_CONTRAST, Scene, SceneMix, sample_scene

CAPTION_HEIGHT = 12
ENLARGE = 2
ONE_OBJECT = SceneMix(moving_camera=0.0)  # and a resting camera


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How clips are sampled for inspection.

    Attributes:
        guidance: scale given to the model's own guidance input, or used with two forwards where `plain` is set.
        plain: the model is not distilled yet and needs the empty prompt beside the caption.
    """

    steps: int = 20
    shift: float = 7.0
    guidance: float = 6.0
    plain: TextCondition | None = None
    latent_shape: tuple[int, int, int, int] = (16, 5, 8, 8)

    @torch.no_grad()
    def sample(self, model: Transformer, text: TextCondition, seed: int) -> Tensor:
        """Latents (1, C, T, H, W) as the model sees them."""
        scale = torch.tensor([self.guidance])

        def flow(latents: Tensor, sigma: float) -> Tensor:
            level = torch.tensor([sigma])
            if self.plain is None:
                return velocity(model, latents, level, text, scale)
            return guided_velocity(model, latents, level, text, self.plain, scale)

        noise = make_noise((1, *self.latent_shape), seed)
        return denoise(flow, noise, flow_sigmas(self.steps, self.shift))


def judged_scenes(
    count: int, *, mix: SceneMix = ONE_OBJECT, held_out: bool = False, first_seed: int = 10_000_000
) -> list[Scene]:
    """Scenes of a mix, plain ones unless told, whose objects all have enough contrast to be judged."""
    seed = first_seed
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(seed, mix, held_out=held_out)
        seed += 1
        if all((thing.colour, scene.background) not in LOW_CONTRAST for thing in scene.things):
            scenes.append(scene)
    return scenes


def measure(
    scenes: Sequence[Scene], make: Callable[[str, int], Tensor]
) -> tuple[dict[str, float], list[tuple[str, Tensor]]]:
    """Scores by attribute over the plain captions of scenes, and the (caption, video) pairs.

    Args:
        make: (caption, seed) to a video (3, F, H, W) in -1..1.
    """
    videos = [(plain_caption(scene), make(plain_caption(scene), index)) for index, scene in enumerate(scenes)]
    results = [score(video, scene) for (_, video), scene in zip(videos, scenes, strict=True)]
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}, videos


def save_contact_sheet(clips: Sequence[tuple[str, Tensor]], path: Path, *, frames: int = 5, columns: int = 2) -> None:
    """A PNG with a row of evenly spaced frames and the caption for each (caption, video (3, F, H, W) in -1..1)."""
    pictures = [_strip(caption, video, frames) for caption, video in clips]
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * columns, height * rows))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index // rows * width, index % rows * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _strip(caption: str, video: Tensor, frames: int) -> Image.Image:
    chosen = torch.linspace(0, video.shape[1] - 1, frames).round().long()
    between = video.new_zeros(3, video.shape[2], 1)  # a gray line, or two frames look like one
    row = torch.cat([part for index in chosen.tolist() for part in (video[:, index], between)], dim=2)
    pixels = ((row.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * ENLARGE, picture.height * ENLARGE), Image.Resampling.NEAREST)
    strip = Image.new("RGB", (picture.width, picture.height + CAPTION_HEIGHT), "#202020")
    strip.paste(picture, (0, CAPTION_HEIGHT))
    ImageDraw.Draw(strip).text((2, 0), caption, fill="white")
    return strip
