"""How strongly a file's factors count: what trainers write of alpha, and what holds where they write nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_YES = ("true", "1", "yes")
_RSLORA_NAMES = ("use_rslora", "rs_lora", "rslora")
# JSON texts in which trainers keep their settings: diffusers (PEFT), then kohya and its relatives
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


def read_rules(metadata: Mapping[str, str]) -> ScaleRules:
    """The rules that a file's metadata gives; those of plain LoRA where it gives none."""
    settings: dict[str, Any] = dict(metadata)
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


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
