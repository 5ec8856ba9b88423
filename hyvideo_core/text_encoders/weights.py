"""Weights of a text encoder: the names that files give them, and strict loading."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import WrongModelError

_NUM_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyLayouts:
    """How files of one encoder name its tensors.

    Attributes:
        label: the encoder, as errors name it.
        anchor: a tensor that every file has, by its own name.
        prefixes: what files put before the names of this encoder, the longest spelling first.
        ignored: regular expressions of tensors that are known and not needed, matched from the start
            against names without the prefix, and against whole names where the prefix is absent.
    """

    label: str
    anchor: str
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]

    def match(self, keys: Collection[str]) -> dict[str, str]:
        """Own name -> key in the file, without the tensors that are not needed.

        Raises:
            WrongModelError: no prefix fits, so that the file holds something else.
        """
        prefix = next((p for p in self.prefixes if p + self.anchor in keys), None)
        if prefix is None:
            expected = " or ".join(p + self.anchor for p in self.prefixes)
            raise WrongModelError(
                f"no {self.label} in this file: it has {_some(keys)}, expected {expected}; choose another file"
            )
        is_ignored = re.compile("|".join(f"(?:{rule})" for rule in self.ignored)).match
        # a key outside the prefix keeps its whole name after a mark that no tensor's name has
        names = {key.removeprefix(prefix) if key.startswith(prefix) else f"/{key}": key for key in keys}
        return {name: key for name, key in names.items() if not is_ignored(name.removeprefix("/"))}


@torch.inference_mode(False)
def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], layouts: KeyLayouts) -> None:
    """Put `tensors` into `module`, each one exactly once, in the dtype that the module was built in.

    Tensors become the module's own without a copy where the dtype agrees; the mapping may be lazy,
    since tensors that are not needed are never read.

    Raises:
        WrongModelError: a tensor is missing, unexpected, or of another shape; the message names some.
    """
    places = module.state_dict()
    keys = layouts.match(tensors.keys())
    missing, unexpected = places.keys() - keys.keys(), keys.keys() - places.keys()
    if missing or unexpected:
        found = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        found += [f"{len(unexpected)} unexpected ({_some(keys[name] for name in unexpected)})"] if unexpected else []
        raise WrongModelError(
            f"the {layouts.label} does not fit its configuration: {' and '.join(found)} of {len(places)} tensors; "
            "choose a complete file of this encoder, or correct the config in its metadata"
        )
    weights = {name: _fitting(tensors[key], places[name], key) for name, key in keys.items()}
    module.load_state_dict(weights, strict=True, assign=True)


def _fitting(tensor: Tensor, place: Tensor, key: str) -> Tensor:
    if tensor.shape != place.shape:
        raise WrongModelError(
            f"{key} has the shape {list(tensor.shape)}, expected {list(place.shape)}; "
            "choose a file of this size, or correct the config in its metadata"
        )
    return tensor.to(place.dtype)


def _some(keys: Iterable[str]) -> str:
    shown = sorted(keys)
    more = len(shown) - _NUM_SHOWN
    return (", ".join(shown[:_NUM_SHOWN]) or "nothing") + (f" and {more} more" if more > 0 else "")
