"""How strongly a file's factors count: what trainers write of alpha, and what holds where they write nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_YES = ("true", "1", "yes")
_RSLORA_NAMES = ("use_rslora", "rs_lora", "rslora")
# JSON texts in which trainers keep their settings: diffusers (PEFT), then kohya and its relatives
_PEFT_WEIGHTS, _PEFT_SETTINGS = "adapter_model", "adapter_config.json"
_LARGEST_SETTINGS = 2**20  # bytes; they are far smaller
_SETTINGS = ("lora_adapter_metadata", "adapter_config", "ss_network_args")


@dataclass(frozen=True, slots=True)
class ScaleRules:
    """What a file's metadata says of scales.

    Attributes:
        is_rank_stabilized: alpha is divided by the root of the rank.
        alpha: for entries without one of their own; None: as large as their rank.
        patterns: alphas by the end of an entry's name, before `alpha`.
    Source: Hu et al. 2021, sec. 4.1; Kalajdzievski 2023, "rsLoRA", sec. 3.
    """

    is_rank_stabilized: bool = False
    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)

    def scale(self, name: str, alpha: float | None, rank: int) -> float:
        """What the factors of an entry are multiplied by.

        Args:
            name: the entry's name in the file.
            alpha: as it stands in the file; None without.
        """
        if alpha is None:
            alpha = next((a for end, a in self.patterns.items() if _ends_with(name, end)), self.alpha)
        alpha = float(rank) if alpha is None else alpha
        return alpha / math.sqrt(rank) if self.is_rank_stabilized else alpha / rank


def read_rules(metadata: Mapping[str, str], path: Path) -> ScaleRules:
    """The rules that a file's metadata gives, or PEFT's settings beside it; those of plain LoRA where none does.

    Args:
        path: the file, or the folder that holds it; under PEFT's own name, its settings lie in the same folder.
    """
    settings: dict[str, Any] = {**_beside(path), **metadata}
    for name in _SETTINGS:
        settings.update(_json_object(metadata.get(name)))
    # settings of text encoders stand in the same table under another prefix
    own = {name.rpartition(".")[2]: value for name, value in settings.items() if not name.startswith("text_encoder")}
    patterns = own.get("alpha_pattern")
    return ScaleRules(
        is_rank_stabilized=any(str(own.get(name, "")).lower() in _YES for name in _RSLORA_NAMES),
        alpha=_number(own.get("lora_alpha")),
        patterns={
            end: alpha
            for end, value in (patterns.items() if isinstance(patterns, dict) else ())
            if (alpha := _number(value)) is not None
        },
    )


def _ends_with(name: str, end: str) -> bool:
    return re.search(rf"(?:^|\.){re.escape(end)}$", name) is not None


def _beside(path: Path) -> dict[str, Any]:
    """What PEFT writes beside its weights; nothing for files of other names, whose neighbours are not their own."""
    is_folder = path.is_dir()
    file = path / _PEFT_SETTINGS if is_folder else path.with_name(_PEFT_SETTINGS)
    if not (is_folder or path.stem == _PEFT_WEIGHTS) or not file.is_file() or file.stat().st_size > _LARGEST_SETTINGS:
        return {}
    return _json_object(file.read_text(encoding="utf-8", errors="replace"))


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
