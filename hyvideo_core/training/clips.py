"""The transformer's data sets, one for each size: latents and text states of drawn clips, made once."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..shapes import VideoShape
from ..text_encoders.clip import ClipTextEncoder
from ..text_encoders.llm import LlamaTextEncoder
from ..text_encoders.templates import VIDEO_TEMPLATE, PromptTemplate
from ..text_encoders.tokenizers import PromptTokenizer
from .captions import caption, picture_caption
from .codec import PatchCodec
from .drawing import draw, draw_at
from .objectives import TextCondition
from .scenes import Scene, SceneMix, sample_scene

ENCODE_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TextReader:
    """Both text encoders with their tokenizers, on texts of equal length at a time."""

    llm: LlamaTextEncoder
    llm_tokenizer: PromptTokenizer
    clip: ClipTextEncoder
    clip_tokenizer: PromptTokenizer
    template: PromptTemplate = VIDEO_TEMPLATE

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[TextCondition]:
        """Conditions of one text each, (1, L, D) and (1, P), in the order of the texts."""
        crop = self.template.crop_length(self.llm_tokenizer)
        rows = [self.llm_tokenizer.encode(self.template.apply(text)).ids for text in texts]
        states = _by_length(rows, lambda ids: self.llm(ids)[:, crop:])
        end = self.clip_tokenizer.end_id
        assert end is not None
        pooled = _by_length([self.clip_tokenizer.encode(text).ids for text in texts], lambda ids: self.clip(ids, end))
        return [TextCondition(s[None], p[None]) for s, p in zip(states, pooled, strict=True)]


def _by_length(rows: Sequence[tuple[int, ...]], encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Encodes rows of ids in batches of one length, so that nothing is padded; one result per row, in order."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[len(row)].append(index)
    results: dict[int, Tensor] = {}
    for members in groups.values():
        for start in range(0, len(members), ENCODE_BATCH):
            part = members[start : start + ENCODE_BATCH]
            encoded = encode(torch.tensor([rows[index] for index in part]))
            results.update(zip(part, encoded.clone(), strict=True))
    return [results[index] for index in range(len(rows))]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Clips whose captions have the same number of tokens: latents (N, C, T, H, W), states (N, L, D), pooled (N, P)."""

    latents: Tensor
    states: Tensor
    pooled: Tensor


@dataclass(frozen=True, slots=True)
class ClipSet:
    """Clips by caption length, since the transformer knows no padding; and the condition of the empty prompt."""

    buckets: tuple[Bucket, ...]
    empty: TextCondition

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, TextCondition]:
        """Latents and text of a batch from one bucket, chosen by its size."""
        weights = torch.tensor([float(len(bucket.latents)) for bucket in self.buckets])
        bucket = self.buckets[int(torch.multinomial(weights, 1, generator=generator))]
        chosen = torch.randint(len(bucket.latents), (batch,), generator=generator)
        text = TextCondition(bucket.states[chosen].float(), bucket.pooled[chosen].float())
        return bucket.latents[chosen].float(), text

    def text_deviation(self) -> float:
        """Standard deviation of all text states."""
        return float(torch.cat([bucket.states.float().flatten() for bucket in self.buckets]).std())

    def save(self, path: Path) -> None:
        """Writes all buckets as one file."""
        tensors = {"empty.states": self.empty.states, "empty.pooled": self.empty.pooled}
        for index, bucket in enumerate(self.buckets):
            tensors |= {f"{index}.{name}": getattr(bucket, name) for name in Bucket.__slots__}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> ClipSet:
        """What `save` wrote."""
        with safe_open(path, "pt") as file:
            count = len({name.split(".")[0] for name in file.keys()}) - 1  # noqa: SIM118
            buckets = tuple(
                Bucket(*(file.get_tensor(f"{index}.{name}") for name in Bucket.__slots__)) for index in range(count)
            )
            empty = TextCondition(file.get_tensor("empty.states"), file.get_tensor("empty.pooled"))
        return cls(buckets, empty)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipKind:
    """Clips of one size.

    Attributes:
        frames: 1 makes still pictures, each from any moment of its scene.
        count, held_out_count: clips to train on, and clips to judge by.
        batch: clips per step of training.
    """

    name: str
    frames: int
    height: int
    width: int
    count: int
    held_out_count: int
    batch: int

    def draw(self, scene: Scene, seed: int) -> tuple[str, Tensor]:
        """(caption, clip) of a scene; half of the still pictures have a caption without motion."""
        if self.frames > 1:
            return caption(scene, seed), draw(scene, frames=self.frames, height=self.height, width=self.width)
        rng = random.Random(seed)  # noqa: S311
        text = picture_caption(scene, seed) if rng.random() < 0.5 else caption(scene, seed)
        return text, draw_at(scene, [rng.random()], height=self.height, width=self.width)


def make_clips(
    kind: ClipKind, mix: SceneMix, codec: PatchCodec, reader: TextReader, *, held_out: bool = False
) -> ClipSet:
    """Draws, captions and encodes the clips of a kind; stored in bfloat16 to keep them in memory."""
    count = kind.held_out_count if held_out else kind.count
    # one block for all: small tensors kept between large ones that are freed would hold on to far more memory
    shape = VideoShape(frames=kind.frames, height=kind.height, width=kind.width).to_latent()
    latents = torch.empty(shape.as_tuple(count), dtype=torch.bfloat16)
    texts = []
    for seed in tqdm(range(count), desc=f"drawing {kind.name}"):
        text, video = kind.draw(sample_scene(seed, mix, held_out=held_out), seed)
        texts.append(text)
        latents[seed] = codec.encode(video[None])[0]
    conditions = reader.read(texts)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, condition in enumerate(conditions):
        groups[condition.states.shape[1]].append(index)
    buckets = tuple(
        Bucket(
            latents[members],
            torch.cat([conditions[index].states for index in members]).bfloat16(),
            torch.cat([conditions[index].pooled for index in members]).bfloat16(),
        )
        for _, members in sorted(groups.items())
    )
    return ClipSet(buckets, reader.read([""])[0])
