"""Tiny text encoders that learn to read the captions of the drawn world.

The language model learns to continue captions, and to say the whole caption loudly in its last token and in the mean
of all. The pooled encoder learns colours and backgrounds and is taught to ignore the rest, so that what moves where can
only come through the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ClipTextConfig, LlamaConfig
from ..text_encoders.clip import ClipTextEncoder, build_clip
from ..text_encoders.llm import HIDDEN_STATE_SKIP, build_llama
from ..text_encoders.templates import PromptTemplate
from ..text_encoders.tokenizers import PromptTokenizer
from .captions import caption, picture_caption
from .scenes import BACKGROUNDS, CAMERAS, HUES, MOTIONS, SHAPES, Scene, SceneMix, sample_scene

EMBEDDED_LLAMA = LlamaConfig(
    vocab_size=640, hidden_size=96, ffn_size=256, num_layers=4, num_heads=4, num_kv_heads=2, max_positions=512
)
EMBEDDED_CLIP = ClipTextConfig(vocab_size=720, hidden_size=64, ffn_size=256, num_layers=2, num_heads=4)

READING_MIX = SceneMix(two_objects=0.4, moving_camera=0.3)
"""What the encoders read: more of the rare kinds than is drawn."""
PICTURE_SHARE = 0.15
BLUR = 0.5

_CHOICES = (len(HUES) + 1, len(SHAPES) + 1, len(MOTIONS) + 1) * 2 + (len(BACKGROUNDS), len(CAMERAS))
ALL_ATTRIBUTES = tuple(range(len(_CHOICES)))
POOLED_ATTRIBUTES = (0, 3, 6)  # both colours and the background


def attribute_targets(scenes: Sequence[Scene]) -> Tensor:
    """What a reader should know of each scene, (B, 8) indices; a missing second object is one past the last choice."""
    return torch.tensor([_attributes(scene) for scene in scenes])


def _attributes(scene: Scene) -> list[int]:
    row: list[int] = []
    for thing in scene.things:
        row += [list(HUES).index(thing.colour), SHAPES.index(thing.shape), MOTIONS.index(thing.motion)]
    if len(scene.things) == 1:
        row += [len(HUES), len(SHAPES), len(MOTIONS)]
    return [*row, list(BACKGROUNDS).index(scene.background), CAMERAS.index(scene.camera)]


class AttributeHeads(nn.Module):
    """Linear readers of attributes from a vector; thrown away after training."""

    def __init__(self, width: int, attributes: Sequence[int]) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.readers = nn.ModuleList(nn.Linear(width, _CHOICES[index]) for index in self.attributes)

    def loss(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of vectors (B, width) against `attribute_targets` (B, 8)."""
        losses = [
            F.cross_entropy(reader(vectors).float(), targets[:, index])
            for index, reader in zip(self.attributes, self.readers, strict=True)
        ]
        return torch.stack(losses).mean()

    def accuracy(self, vectors: Tensor, targets: Tensor) -> float:
        """Share of attributes read rightly, the worst attribute's."""
        shares = [
            float((reader(vectors).argmax(dim=-1) == targets[:, index]).float().mean())
            for index, reader in zip(self.attributes, self.readers, strict=True)
        ]
        return min(shares)


def draw_readings(count: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """Random captions and what should be read from each, (B, 8); some are of still pictures and know no motion."""
    seeds = torch.randint(2**40, (count,), generator=generator).tolist()
    scenes = [sample_scene(seed, READING_MIX) for seed in seeds]
    targets = attribute_targets(scenes)
    is_picture = torch.rand(count, generator=generator) < PICTURE_SHARE
    texts = [
        picture_caption(scene, seed) if still else caption(scene, seed)
        for scene, seed, still in zip(scenes, seeds, is_picture.tolist(), strict=True)
    ]
    for attribute, nothing in ((2, len(MOTIONS)), (5, len(MOTIONS)), (7, CAMERAS.index("static"))):
        targets[is_picture, attribute] = nothing
    return texts, targets


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids (B, L) padded on the right to the longest row, and the real lengths (B)."""
    longest = max(map(len, rows))
    padded = [[*row, *[pad_id] * (longest - len(row))] for row in rows]
    return torch.tensor(padded), torch.tensor([len(row) for row in rows])


class LanguageReader(nn.Module):
    """The language model in training: all its layers, a final norm, and attribute heads on the layer that is used."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        # an encoder leaves out its last layers and its norm: asked for as if two more existed, it keeps all of them
        taller = replace(config, num_layers=config.num_layers + HIDDEN_STATE_SKIP)
        encoder = build_llama(taller, dtype=torch.float32, device="cpu")
        self.model = encoder.model.requires_grad_(True)
        for weight in self.model.parameters():
            if weight.ndim == 2:  # the usual 0.02 suits thousands of channels, not a hundred
                nn.init.normal_(weight, std=config.hidden_size**-0.5)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_eps)
        self.heads = AttributeHeads(config.hidden_size, ALL_ATTRIBUTES)
        self.mean_heads = AttributeHeads(config.hidden_size, ALL_ATTRIBUTES)
        self.state_index = -1 - HIDDEN_STATE_SKIP

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What a prompt's transformer gets to see, and the normed states after the last layer, both (B, L, D)."""
        output = self.model(input_ids=ids, output_hidden_states=True, use_cache=False)
        return output.hidden_states[self.state_index], self.norm(output.last_hidden_state)


@dataclass(frozen=True, slots=True)
class LanguageTask:
    """Next token and attributes of captions inside the prompt template."""

    tokenizer: PromptTokenizer
    template: PromptTemplate
    batch: int = 24

    def loss(self, reader: LanguageReader, generator: torch.Generator) -> Tensor:
        """Next-token loss over the prompt, plus the attributes read through noise from its last token and mean."""
        ids, lengths, targets = self._read(generator)
        states, final = reader.states(ids)
        crop = self.template.crop_length(self.tokenizer)
        logits = F.linear(final[:, crop - 1 : -1], reader.model.embed_tokens.weight)
        is_padding = torch.arange(crop, ids.shape[1]) >= lengths[:, None]
        labels = ids[:, crop:].masked_fill(is_padding, -100)
        next_token = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        last = blurred(last_states(states, lengths), generator)
        mean = blurred(mean_states(states, crop, lengths), generator)
        return next_token + reader.heads.loss(last, targets) + reader.mean_heads.loss(mean, targets)

    def evaluate(self, reader: LanguageReader) -> dict[str, float]:
        """Share of captions of which the worst-read attribute is right."""
        ids, lengths, targets = self._read(torch.Generator().manual_seed(-1))
        states, crop = reader.states(ids)[0], self.template.crop_length(self.tokenizer)
        return {
            "last": reader.heads.accuracy(last_states(states, lengths), targets),
            "mean": reader.mean_heads.accuracy(mean_states(states, crop, lengths), targets),
        }

    def _read(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        texts, targets = draw_readings(self.batch, generator)
        rows = [self.tokenizer.encode(self.template.apply(text)).ids for text in texts]
        return *pad_ids(rows, 0), targets


def last_states(states: Tensor, lengths: Tensor) -> Tensor:
    """The state of each row's last real token, (B, D) from (B, L, D)."""
    return states[torch.arange(len(states)), lengths - 1]


def mean_states(states: Tensor, crop: int, lengths: Tensor) -> Tensor:
    """The mean over each row's real tokens after the template's, (B, D) from (B, L, D)."""
    positions = torch.arange(states.shape[1], device=states.device)
    weight = ((positions >= crop) & (positions < lengths[:, None])).to(states.dtype)
    return (states * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)


def blurred(states: Tensor, generator: torch.Generator) -> Tensor:
    """States with noise of half their size: what is to be read through it must be said loudly.

    A faint attribute is as legible to a linear reader as a loud one, but a transformer in training finds it late.
    """
    noise = torch.randn(states.shape, generator=generator).to(states.device)
    return states + BLUR * states.detach().square().mean().sqrt() * noise


class PooledReader(nn.Module):
    """The pooled encoder in training: heads for what it should know, and the codes that it should give."""

    codes: Tensor

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.encoder: ClipTextEncoder = build_clip(config, dtype=torch.float32, device="cpu").requires_grad_(True)
        self.heads = AttributeHeads(config.hidden_size, POOLED_ATTRIBUTES)
        choices = max(_CHOICES[index] for index in POOLED_ATTRIBUTES)
        codes = torch.randn(len(POOLED_ATTRIBUTES), choices, config.hidden_size)
        self.register_buffer("codes", codes / len(POOLED_ATTRIBUTES) ** 0.5)

    def target_vectors(self, targets: Tensor) -> Tensor:
        """One vector (B, P) for each choice of colours and background, whatever else the caption says."""
        columns = enumerate(POOLED_ATTRIBUTES)
        return torch.stack([self.codes[row, targets[:, index]] for row, index in columns]).sum(dim=0)


@dataclass(frozen=True, slots=True)
class PooledTask:
    """Colours and background in the pooled vector, and nothing else: it is led to a fixed code of those three."""

    tokenizer: PromptTokenizer
    batch: int = 64

    def loss(self, reader: PooledReader, generator: torch.Generator) -> Tensor:
        """Squared distance to the code, plus the attribute loss, which learns faster at first."""
        vectors, targets = self._read(reader, generator)
        return F.mse_loss(vectors, reader.target_vectors(targets)) + reader.heads.loss(vectors, targets)

    def evaluate(self, reader: PooledReader) -> dict[str, float]:
        """How often the worst-read attribute is right, and the distance to the codes."""
        vectors, targets = self._read(reader, torch.Generator().manual_seed(-1))
        distance = F.mse_loss(vectors, reader.target_vectors(targets))
        return {"accuracy": reader.heads.accuracy(vectors, targets), "distance": float(distance)}

    def _read(self, reader: PooledReader, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pooled vectors (B, P) and attribute targets of fresh captions."""
        assert self.tokenizer.end_id is not None
        texts, targets = draw_readings(self.batch, generator)
        ids, _ = pad_ids([self.tokenizer.encode(text).ids for text in texts], self.tokenizer.end_id)
        return reader.encoder(ids, self.tokenizer.end_id), targets


def round_to(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with the values that its file will hold, still computing in float32."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.to(dtype))
    return module
