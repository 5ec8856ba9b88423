"""Text to token ids, read from tokenizer files with the `tokenizers` library alone.

transformers' own tokenizer classes change their ids between versions, and look things up online.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ..errors import TokenizerError

logger = logging.getLogger(__name__)

VOCAB_NAME, MERGES_NAME = "vocab.json", "merges.txt"

# CLIP's units: English contractions, runs of letters, single digits, runs of anything else but space
_CLIP_UNITS = r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerKind:
    """What one encoder needs of its tokenizer.

    `begin` and `end` are put around every text; every name in `special` must be one token.
    """

    label: str
    begin: str
    end: str | None
    special: tuple[str, ...]
    has_vocab_pair: bool


LLAMA3 = TokenizerKind(
    label="LLaMA-3",
    begin="<|begin_of_text|>",
    end=None,
    special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    has_vocab_pair=False,
)
CLIP = TokenizerKind(
    label="CLIP",
    begin="<|startoftext|>",
    end="<|endoftext|>",
    special=("<|startoftext|>", "<|endoftext|>"),
    has_vocab_pair=True,
)


def shown(path: Path) -> str:
    """A file with the folder it is in: messages never show where a user keeps things."""
    return f"{path.parent.name}/{path.name}"


class TokenIds(NamedTuple):
    """Ids of one text, and how many more it had before it was cut to length."""

    ids: tuple[int, ...]
    num_cut: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokenizer:
    """A tokenizer with its begin and end tokens, and the file it came from.

    `num_ids` is one more than the highest id that it can give.
    """

    backend: Tokenizer
    begin_id: int
    end_id: int | None
    num_ids: int
    source: Path

    def encode(self, text: str, max_tokens: int | None = None) -> TokenIds:
        """Ids of `text` between the begin token and the end token, if there is one.

        A text of more than `max_tokens` loses tokens on its right; the end token stays the last.
        """
        # what a file's own post-processor adds differs, so that begin and end are always added here
        body = self.backend.encode(text, add_special_tokens=False).ids
        end = () if self.end_id is None else (self.end_id,)
        room = len(body) if max_tokens is None else max_tokens - 1 - len(end)
        return TokenIds((self.begin_id, *body[:room], *end), max(0, len(body) - room))

    def check_rows(self, num_rows: int) -> None:
        """Raise TokenizerError unless an embedding of `num_rows` rows can belong to this vocabulary.

        Embeddings are often padded with a few rows that no token uses, never with as many as are used.
        """
        if not self.num_ids <= num_rows < 2 * self.num_ids:
            raise TokenizerError(
                f"{shown(self.source)} gives token ids up to {self.num_ids - 1}, but the text encoder has {num_rows} "
                "rows; use the tokenizer that was published with these weights"
            )


def read_tokenizer(path: Path, kind: TokenizerKind) -> PromptTokenizer:
    """The tokenizer in a tokenizer.json, or for CLIP in a vocab.json with merges.txt beside it.

    Raises:
        TokenizerError: not such a file, or without the special tokens of this kind.
    """
    backend = _read_clip_pair(path, kind) if path.name == VOCAB_NAME else _read_json(path)
    backend.no_truncation()
    backend.no_padding()
    special = {name: _special_id(backend, name, path, kind) for name in kind.special}
    return PromptTokenizer(
        backend=backend,
        begin_id=special[kind.begin],
        end_id=None if kind.end is None else special[kind.end],
        num_ids=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        source=path,
    )


def find_tokenizer(
    kind: TokenizerKind, *, num_rows: int, weights: Path | None = None, places: Sequence[Path] = ()
) -> PromptTokenizer:
    """The first tokenizer that fits an encoder, or an error that lists every place looked at.

    Args:
        num_rows: rows of the encoder's embedding.
        weights: the encoder's file (or folder); looked at first are `<stem>.tokenizer.json` and
            tokenizer.json beside it.
        places: further files or folders, in this order.
    Raises:
        TokenizerError: none fits.
    """
    tried = []
    for path in dict.fromkeys(_candidates(kind, weights, places)):
        if not path.is_file():
            tried.append(f"{shown(path)}: not there")
            continue
        try:
            tokenizer = read_tokenizer(path, kind)
            tokenizer.check_rows(num_rows)
        except TokenizerError as error:
            # a folder of several encoders holds the tokenizers of others too
            logger.info("%s tokenizer: passed over %s", kind.label, error)
            tried.append(str(error))
        else:
            logger.info("%s tokenizer: %s", kind.label, shown(path))
            return tokenizer
    files = "tokenizer.json" + (f" (or its {VOCAB_NAME} and {MERGES_NAME})" if kind.has_vocab_pair else "")
    home = f"beside {weights.name}" if weights else "into the folder of the text encoder"
    wish = f", as {weights.stem}.tokenizer.json" if weights and not weights.is_dir() else ""
    raise TokenizerError(
        f"no {kind.label} tokenizer for a text encoder of {num_rows} rows. Put the {files} that was published with "
        f"the weights {home}{wish}. Looked at: " + ("; ".join(tried) or "nothing, no place was given")
    )


def _candidates(kind: TokenizerKind, weights: Path | None, places: Sequence[Path]) -> Iterator[Path]:
    if weights is not None and not weights.is_dir():
        yield weights.with_name(f"{weights.stem}.tokenizer.json")
    folders = [] if weights is None else [weights if weights.is_dir() else weights.parent]
    for place in (*folders, *places):
        if place.suffix == ".json":
            yield place
        else:
            yield place / "tokenizer.json"
            if kind.has_vocab_pair:
                yield place / VOCAB_NAME


def _read_json(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise TokenizerError(f"{shown(path)} cannot be read as text ({error}); copy the file again") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # all that the library raises for a wrong layout
        raise TokenizerError(f"{shown(path)} is broken, or no tokenizer.json ({error}); copy it again") from error


def _read_clip_pair(path: Path, kind: TokenizerKind) -> Tokenizer:
    merges = path.with_name(MERGES_NAME)
    if not kind.has_vocab_pair or not merges.is_file():
        raise TokenizerError(f"{shown(path)} has no {MERGES_NAME} of a CLIP tokenizer beside it; both are needed")
    try:
        model = BPE.from_file(str(path), str(merges), end_of_word_suffix="</w>", unk_token=kind.end)
    except Exception as error:  # all that the library raises for a wrong layout
        raise TokenizerError(f"{shown(path)} and {MERGES_NAME} are no CLIP vocabulary ({error}); copy both") from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # what lies between two units is white space, and carries no token
            pre_tokenizers.Split(Regex(_CLIP_UNITS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # only those that the vocabulary has: adding others would hide that they are missing
    tokenizer.add_special_tokens([name for name in kind.special if model.token_to_id(name) is not None])
    return tokenizer


def _special_id(backend: Tokenizer, name: str, path: Path, kind: TokenizerKind) -> int:
    token_id = backend.token_to_id(name)
    if token_id is None or backend.encode(name, add_special_tokens=False).ids != [token_id]:
        raise TokenizerError(
            f"{shown(path)} has no special token {name}, so it is no {kind.label} tokenizer; choose one"
        )
    return token_id
