"""The transformer's data set: latents and text states of drawn clips, made once and drawn from at every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..text_encoders.clip import ClipTextEncoder
from ..text_encoders.llm import LlamaTextEncoder
from ..text_encoders.templates import VIDEO_TEMPLATE, PromptTemplate
from ..text_encoders.tokenizers import PromptTokenizer
from .captions import caption
from .codec import PatchCodec
from .drawing import draw
from .objectives import TextCondition
from .scenes import SceneMix, sample_scene

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
class ClipPlan:
    """Which clips make a data set."""

    count: int
    mix: SceneMix
    first_seed: int = 0
    frames: int = 17
    side: int = 64
    held_out: bool = False

    def scenes(self) -> Iterator[tuple[int, str, Tensor]]:
        """(seed, caption, clip) of each."""
        for seed in tqdm(range(self.first_seed, self.first_seed + self.count), desc="drawing"):
            scene = sample_scene(seed, self.mix, held_out=self.held_out)
            yield seed, caption(scene, seed), draw(scene, frames=self.frames, height=self.side, width=self.side)


def make_clips(plan: ClipPlan, codec: PatchCodec, reader: TextReader) -> ClipSet:
    """Draws, captions and encodes the clips of a plan; stored in bfloat16 to keep them in memory."""
    texts, latents = [], []
    for _, text, video in plan.scenes():
        texts.append(text)
        latents.append(codec.encode(video[None])[0].bfloat16())
    conditions = reader.read(texts)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, condition in enumerate(conditions):
        groups[condition.states.shape[1]].append(index)
    buckets = tuple(
        Bucket(
            torch.stack([latents[index] for index in members]),
            torch.cat([conditions[index].states for index in members]).bfloat16(),
            torch.cat([conditions[index].pooled for index in members]).bfloat16(),
        )
        for _, members in sorted(groups.items())
    )
    return ClipSet(buckets, reader.read([""])[0])
