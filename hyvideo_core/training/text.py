"""Tokenizers and tiny text encoders that read the captions of the drawn world.

The language model learns to continue captions, and to have the whole caption at hand in its last token. The pooled
encoder learns colours and backgrounds and is taught to ignore the rest, so that what moves where can only come
through the language model.
"""
from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from .captions import caption
from .scenes import BACKGROUNDS, CAMERAS, HUES, MOTIONS, SHAPES, Scene, SceneMix, sample_scene

LLM_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "<pad>",
)
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")

READING_MIX = SceneMix(two_objects=0.4, moving_camera=0.3)
"""What the text encoders read: more of the rare kinds than is drawn."""


def train_llm_tokenizer(sentences: Iterable[str], vocab_size: int = 640) -> Tokenizer:
    """A byte-level tokenizer with Llama 3's special tokens, which puts `<|begin_of_text|>` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train_bpe(tokenizer, sentences, vocab_size - len(LLM_SPECIALS), suffix=None)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLM_SPECIALS])
    start = LLM_SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    return tokenizer


def train_clip_tokenizer(sentences: Iterable[str], vocab_size: int = 512) -> Tokenizer:
    """A lower-case tokenizer of CLIP's kind: words end in `</w>`, and the end token has the highest id."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=CLIP_SPECIALS[1]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    _train_bpe(tokenizer, sentences, vocab_size - len(CLIP_SPECIALS), suffix="</w>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CLIP_SPECIALS])
    start, end = ((token, tokenizer.token_to_id(token)) for token in CLIP_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start[0]} $A {end[0]}", special_tokens=[start, end]
    )
    return tokenizer


def _train_bpe(tokenizer: Tokenizer, sentences: Iterable[str], vocab_size: int, suffix: str | None) -> None:
    """Every byte is in the alphabet, so that any prompt can be read, if not understood."""
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)


def attribute_targets(scenes: Sequence[Scene]) -> Tensor:
    """What a reader should know of each scene: (B, 8) indices; a missing second object is one past the end."""
    rows = []
    for scene in scenes:
        row: list[int] = []
        for index in range(2):
            thing = scene.things[index] if index < len(scene.things) else None
            row += [len(HUES), len(SHAPES), len(MOTIONS)] if thing is None else [
                list(HUES).index(thing.colour),
                SHAPES.index(thing.shape),
                MOTIONS.index(thing.motion),
            ]
        rows.append([*row, list(BACKGROUNDS).index(scene.background), CAMERAS.index(scene.camera)])
    return torch.tensor(rows)


_SIZES = (len(HUES) + 1, len(SHAPES) + 1, len(MOTIONS) + 1) * 2 + (len(BACKGROUNDS), len(CAMERAS))
ALL_ATTRIBUTES = tuple(range(len(_SIZES)))
POOLED_ATTRIBUTES = (0, 3, 6)  # the colours and the background


class AttributeHeads(nn.Module):
    """Linear readers of attributes from a vector; thrown away after training."""

    def __init__(self, width: int, attributes: Sequence[int]) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.readers = nn.ModuleList(nn.Linear(width, _SIZES[index]) for index in self.attributes)

    def logits(self, vectors: Tensor) -> list[Tensor]:
        """(B, width) to one (B, choices) per attribute."""
        return [reader(vectors) for reader in self.readers]

    def loss(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of vectors (B, width) against `attribute_targets` (B, 8)."""
        losses = [
            F.cross_entropy(logits.float(), targets[:, index])
            for index, logits in zip(self.attributes, self.logits(vectors), strict=True)
        ]
        return torch.stack(losses).mean()

    def accuracy(self, vectors: Tensor, targets: Tensor) -> float:
        """Share of attributes read rightly."""
        right = [
            (logits.argmax(dim=-1) == targets[:, index]).float().mean()
            for index, logits in zip(self.attributes, self.logits(vectors), strict=True)
        ]
        return float(torch.stack(right).mean())


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """Token ids (B, L), padded on the right; real lengths (B); attribute targets (B, 8)."""

    ids: Tensor
    lengths: Tensor
    targets: Tensor


def draw_scenes(count: int, generator: torch.Generator) -> list[tuple[Scene, str]]:
    """Random scenes with captions."""
    seeds = torch.randint(2**40, (count,), generator=generator).tolist()
    return [(scene := sample_scene(seed, READING_MIX), caption(scene, seed))[:2] for seed in seeds]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids (B, L) padded on the right to the longest, and lengths (B)."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


class LanguageReader(nn.Module):
    """The language model in training: predicts the next token, and every attribute from its last one."""

    def __init__(self, encoder: nn.Module, width: int, skip_layers: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = AttributeHeads(width, ALL_ATTRIBUTES)
        self.state_index = -1 - skip_layers

    def forward(self, batch: ReadBatch, prefix: int) -> tuple[Tensor, Tensor]:
        """Next-token loss over the prompt, and the states (B, width) of each last token."""
        output = self.encoder(batch.ids, output_hidden_states=True)
        hidden = output.last_hidden_state[:, prefix - 1 : -1]
        logits = F.linear(hidden, self.encoder.get_input_embeddings().weight)
        following = batch.ids[:, prefix:]
        positions = torch.arange(prefix, batch.ids.shape[1])
        labels = following.masked_fill(positions >= batch.lengths[:, None], -100)
        next_token = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return next_token, last_states(output.hidden_states[self.state_index], batch.lengths)


def last_states(states: Tensor, lengths: Tensor) -> Tensor:
    """The state of each row's last real token, (B, D) from (B, L, D)."""
    return states[torch.arange(len(states)), lengths - 1]


class PooledReader(nn.Module):
    """The pooled encoder in training: knows colours and background, and gives equal vectors where those agree."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = AttributeHeads(width, POOLED_ATTRIBUTES)

    def forward(self, batch: ReadBatch) -> Tensor:
        """Pooled vectors (B, width)."""
        return self.encoder(batch.ids).pooler_output


def repaint(scene: Scene, seed: int) -> Scene:
    """Another scene with the same colours in the same order on the same background."""
    rng = random.Random(seed)  # noqa: S311
    while True:
        other = sample_scene(rng.randrange(2**40), SceneMix(two_objects=float(len(scene.things) == 2), moving_camera=0.3))
        if len(other.things) == len(scene.things):
            break
    from dataclasses import replace

    things = tuple(
        replace(mine, colour=theirs.colour) for mine, theirs in zip(other.things, scene.things, strict=True)
    )
    return replace(other, things=things, background=scene.background)
