"""The model as it ships: its files through the loaders and the sampler that users have, judged by their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..loading import (
    build_clip_encoder,
    build_llama_encoder,
    build_transformer,
    build_vae,
    detect_clip,
    detect_llama,
    detect_transformer,
    detect_vae,
    open_checkpoint,
)
from ..model.transformer import Transformer
from ..pipeline import SamplingOptions, SamplingReport, StartLatents, sample_latents
from ..shapes import VideoShape
from ..step_cache import StepCache
from ..text_encoders.clip import ClipTextEncoder
from ..text_encoders.conditioning import Conditioning, encode_prompt
from ..text_encoders.llm import LlamaTextEncoder
from ..text_encoders.templates import VIDEO_TEMPLATE
from ..text_encoders.tokenizers import CLIP, LLAMA3, PromptTokenizer, find_tokenizer
from ..vae.autoencoder import VideoAutoencoder
from .autoencoder import held_out_clips
from .export import EmbeddedFiles
from .inspection import ONE_OBJECT, judged_scenes, measure, save_contact_sheet
from .objectives import psnr
from .scenes import Scene, SceneMix

HOME = VideoShape(frames=17, height=64, width=64)
SHOWN = 6  # of each kind, on a contact sheet


@dataclass(frozen=True, kw_only=True, slots=True)
class ShippedModel:
    """All parts, loaded from their files."""

    transformer: Transformer
    vae: VideoAutoencoder
    llm: LlamaTextEncoder
    llm_tokenizer: PromptTokenizer
    clip: ClipTextEncoder
    clip_tokenizer: PromptTokenizer

    @classmethod
    def load(cls, files: EmbeddedFiles, dtype: torch.dtype = torch.float32) -> ShippedModel:
        """Reads the files as any others of the family."""
        llama, clip = open_checkpoint(files.llama), open_checkpoint(files.clip)
        llama_config, clip_config = detect_llama(llama), detect_clip(clip)
        return cls(
            transformer=build_transformer(detect_transformer(open_checkpoint(files.transformer)), dtype=dtype),
            vae=build_vae(detect_vae(open_checkpoint(files.vae)), dtype=torch.float32),
            llm=build_llama_encoder(llama, llama_config, dtype=dtype),
            llm_tokenizer=find_tokenizer(LLAMA3, num_rows=llama_config.vocab_size, weights=files.llama),
            clip=build_clip_encoder(clip, clip_config, dtype=dtype),
            clip_tokenizer=find_tokenizer(CLIP, num_rows=clip_config.vocab_size, weights=files.clip),
        )

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """What the text encoders make of a prompt."""
        return encode_prompt(
            prompt,
            VIDEO_TEMPLATE,
            llm=self.llm,
            llm_tokenizer=self.llm_tokenizer,
            clip=self.clip,
            clip_tokenizer=self.clip_tokenizer,
        )

    def sample(
        self,
        conditioning: Conditioning,
        options: SamplingOptions,
        shape: VideoShape = HOME,
        step_cache: StepCache | None = None,
    ) -> tuple[Tensor, SamplingReport]:
        """Raw latents (1, C, T, H, W) of a conditioning, and what happened on the way."""
        start = StartLatents(samples=torch.zeros(shape.to_latent(self.transformer.config.in_channels).as_tuple(1)))
        device = torch.device("cpu")
        return sample_latents(
            self.transformer, start, [conditioning], [], options, device=device, step_cache=step_cache
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The video (3, F, H, W) in -1..1 of raw latents (1, C, T, H, W)."""
        return self.vae.decode(latents)[0].float().clamp(-1, 1)

    def make(self, prompt: str, options: SamplingOptions, shape: VideoShape = HOME) -> Tensor:
        """The video (3, F, H, W) in -1..1 of a prompt."""
        return self.decode(self.sample(self.encode(prompt), options, shape)[0])

    @torch.no_grad()
    def reconstruct(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) through the encoder's mean and the decoder."""
        return torch.cat([self.vae.decode(self.vae.encode(clip[None]).chunk(2, dim=1)[0]) for clip in clips])


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """Prompts of one kind: those of scenes of a mix, at a size, `share` of as many as of the first kind.

    Attributes:
        is_shown: its first videos go onto contact sheets.
    """

    name: str
    mix: SceneMix
    held_out: bool = False
    shape: VideoShape = HOME
    share: float = 1.0
    is_shown: bool = False

    def scenes(self, prompts: int) -> list[Scene]:
        """What is asked for."""
        return judged_scenes(max(1, round(prompts * self.share)), mix=self.mix, held_out=self.held_out)


LARGE = VideoShape(frames=33, height=96, width=96)
EXAMS = (
    Exam(name="one object, trained triples", mix=ONE_OBJECT, is_shown=True),
    Exam(name="one object, unseen triples", mix=ONE_OBJECT, held_out=True, is_shown=True),
    Exam(name="one object, 96 x 96 x 33", mix=ONE_OBJECT, shape=LARGE, share=0.25),
    Exam(name="moving camera", mix=SceneMix(moving_camera=1.0), share=0.5, is_shown=True),
    Exam(name="two objects", mix=SceneMix(two_objects=1.0), share=0.5),
)


def quality_table(
    model: ShippedModel, prompts: int, *, steps: int, exams: Sequence[Exam] = EXAMS, sheet: Path | None = None
) -> dict[str, dict[str, float]]:
    """For each kind of prompt the share that the model gets right, by attribute.

    Args:
        prompts: of the plain form, for exams with a share of 1; one seed each.
        sheet: where to put a contact sheet of the first prompts of each kind.
    """
    table: dict[str, dict[str, float]] = {}
    shown: list[tuple[str, Tensor]] = []
    for exam in exams:

        def make(caption: str, seed: int, shape: VideoShape = exam.shape) -> Tensor:
            return model.make(caption, SamplingOptions(steps=steps, seed=seed), shape)

        table[exam.name], videos = measure(exam.scenes(prompts), make)
        if exam.is_shown:
            shown += videos[:SHOWN]
    if sheet is not None:
        save_contact_sheet(shown, sheet)
    return table


def reconstruction_psnr(model: ShippedModel, clips: int) -> float:
    """PSNR in dB of held-out clips through the autoencoder and back, the mean over clips."""
    originals = held_out_clips(clips)
    return psnr(model.reconstruct(originals).float(), originals)
