"""Which modules' weights move together, by model: what is walked in order, what is asked for now and then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..model import Transformer
from ..model.modulation import ModulationProjection

REST = ""
"""The name of everything that no other part of a layout holds; no module but the model itself is called so."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Parts of a model, as names of modules.

    Args:
        walked: in the order in which they compute; fetched ahead.
        seldom: fetched when they are called, at most once in a while; they stay where there is room.
        never_kept: fetched when they are called, and not kept: a run needs them once.
        at_home: computed with on the host.
        by_calls: the model holds nothing itself, so its parts are held when they are called.
        pays_to_pin: weights are fetched often enough that pinning them costs less than it saves.
    """

    walked: tuple[str, ...]
    seldom: tuple[str, ...] = ()
    never_kept: tuple[str, ...] = ()
    at_home: tuple[str, ...] = ()
    by_calls: bool = False
    pays_to_pin: bool = True

    @property
    def on_call(self) -> tuple[str, ...]:
        """All that is fetched when it is called."""
        return (*self.seldom, *self.never_kept)

    @property
    def parts(self) -> tuple[str, ...]:
        """Everything that is ever fetched."""
        return (*self.walked, *self.on_call, REST)

    def tensors(self, model: nn.Module) -> Mapping[str, list[Tensor]]:
        """Parameters and buffers of each part, each with the innermost part that holds it, none twice."""
        found: dict[str, list[Tensor]] = {name: [] for name in (*self.parts, *self.at_home)}
        named: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
        for name, tensor in named:
            found[_innermost(name, found)].append(tensor)
        return found


def transformer_layout(model: Transformer) -> Layout:
    """Blocks one after the other; the text's refiner and the last layer once a step; modulation once a run."""
    blocks = [f"double_blocks.{index}" for index in range(len(model.double_blocks))]
    blocks += [f"single_blocks.{index}" for index in range(len(model.single_blocks))]
    modulations = [name for name, module in model.named_modules() if isinstance(module, ModulationProjection)]
    return Layout(walked=tuple(blocks), seldom=("txt_in", "final_layer"), never_kept=tuple(modulations))


def llama_layout(encoder: Any) -> Layout:
    """Layers one after the other; the table of tokens, of which a prompt needs a few rows, stays on the host."""
    layers = tuple(f"model.layers.{index}" for index in range(len(encoder.model.layers)))
    return Layout(walked=layers, at_home=("model.embed_tokens",), by_calls=True, pays_to_pin=False)


def _innermost(tensor: str, parts: Mapping[str, object]) -> str:
    module = tensor.rpartition(".")[0]
    while module not in parts:
        module = module.rpartition(".")[0]
    return module
