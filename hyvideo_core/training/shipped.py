"""The model as it ships: its files through the loaders and the sampler that users have, judged by their pixels."""

from __future__ import annotations

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
from ..pipeline import SamplingOptions, StartLatents, sample_latents
from ..shapes import VideoShape
from ..text_encoders.clip import ClipTextEncoder
from ..text_encoders.conditioning import encode_prompt
from ..text_encoders.llm import LlamaTextEncoder
from ..text_encoders.templates import VIDEO_TEMPLATE
from ..text_encoders.tokenizers import CLIP, LLAMA3, PromptTokenizer, find_tokenizer
from ..vae.autoencoder import VideoAutoencoder
from .autoencoder import held_out_clips
from .export import EmbeddedFiles
from .inspection import judged_scenes, measure, save_contact_sheet
from .objectives import psnr

HOME = VideoShape(frames=17, height=64, width=64)


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
    def make(self, prompt: str, options: SamplingOptions, shape: VideoShape = HOME) -> Tensor:
        """The video (3, F, H, W) in -1..1 of a prompt."""
        conditioning = encode_prompt(
            prompt,
            VIDEO_TEMPLATE,
            llm=self.llm,
            llm_tokenizer=self.llm_tokenizer,
            clip=self.clip,
            clip_tokenizer=self.clip_tokenizer,
        )
        channels = self.transformer.config.in_channels
        start = StartLatents(samples=torch.zeros(shape.to_latent(channels).as_tuple(1)))
        latents, _ = sample_latents(self.transformer, start, [conditioning], [], options, device=torch.device("cpu"))
        return self.vae.decode(latents)[0].float().clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) through the encoder's mean and the decoder."""
        return torch.cat([self.vae.decode(self.vae.encode(clip[None]).chunk(2, dim=1)[0]) for clip in clips])


def quality_figures(
    files: EmbeddedFiles, prompts: int, *, steps: int, clips: int = 16, sheet: Path | None = None
) -> dict[str, float]:
    """Shares of prompts that the shipped files get right, by attribute, and the autoencoder's PSNR.

    Args:
        prompts: one-object prompts of the plain form, seen triples and held-out ones each this many.
        clips: held-out clips that the autoencoder is measured on.
        sheet: where to put a contact sheet of the first of both.
    """
    model = ShippedModel.load(files)
    figures: dict[str, float] = {}
    shown: list[tuple[str, Tensor]] = []
    for side, held_out in (("seen", False), ("held out", True)):
        scores, videos = measure(
            judged_scenes(prompts, held_out=held_out),
            lambda caption, seed: model.make(caption, SamplingOptions(steps=steps, seed=seed)),
        )
        figures |= {f"{side}: {name}": value for name, value in scores.items()}
        shown += videos[:12]
    originals = held_out_clips(clips)
    figures["autoencoder PSNR"] = psnr(model.reconstruct(originals).float(), originals)
    if sheet is not None:
        save_contact_sheet(shown, sheet)
    return figures
