"""What a file is in truth, told from its first bytes, for files that are not what their name says."""

from __future__ import annotations

import re
from pathlib import Path

PICKLE, GGUF, SAFETENSORS = "a PyTorch pickle", "a GGUF file", "a safetensors file"
NUM_BYTES = 64
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\Z"), "empty", "download it again"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer", "run 'git lfs pull' or download the file itself"),
    (
        re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE),
        "a web page, saved in place of the file",
        "download the file itself",
    ),
    (re.compile(rb"PK\x03\x04|\x80[\x02-\x05]"), PICKLE, "rename it to .pt"),
    (re.compile(rb"GGUF"), GGUF, "rename it to .gguf"),
    # the length of the header in eight bytes, the highest of them 0, then JSON
    (re.compile(rb"[\x00-\xff]{7}\x00\s*\{"), SAFETENSORS, "rename it to .safetensors"),
)


def what_it_is(path: Path, expected: str) -> str | None:
    """What a file is instead, and what to do about it; None if its first bytes tell nothing else.

    Args:
        expected: PICKLE, GGUF or SAFETENSORS: what the file's name says.
    """
    with path.open("rb") as file:
        start = file.read(NUM_BYTES)
    for pattern, kind, advice in _KINDS:
        if pattern.match(start):
            return None if kind == expected else f"it is {kind}; {advice}"
    return None
