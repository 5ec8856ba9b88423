"""What may be done for speed, as one set of options, and what it comes to on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ..attention import AUTO, PLAIN, AttentionBackend, choose_attention
from ..attention import CHOICES as ATTENTION_CHOICES
from ..config import TransformerConfig
from ..errors import OptionError
from ..model.elementwise import Elementwise
from ..model.transformer import BlockCall, call_itself
from .choice import CHOICES, OFF, choose_kernels
from .compiled import CompiledBlocks
from .self_check import Site


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How blocks are computed.

    Attributes:
        attention, kernels, call: for the model, its block settings and its block runner.
    """

    attention: AttentionBackend
    kernels: Elementwise
    call: BlockCall


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedOptions:
    """What is asked for. The defaults are PyTorch's own functions and change no bit.

    Args:
        attention: see attention.CHOICES.
        kernels: element-wise kernels, see kernels.CHOICES.
        compiled: whether blocks are compiled.
    Raises:
        OptionError: a choice that there is not.
    """

    attention: str = PLAIN
    kernels: str = OFF
    compiled: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("attention", self.attention, tuple(ATTENTION_CHOICES)),
            ("kernels", self.kernels, CHOICES),
        ):
            if value not in choices:
                raise OptionError(f"{name} {value!r}, expected one of {', '.join(choices)}")

    @property
    def attention_copies(self) -> float:
        """Memory that attention takes beside its result, as a part of what q, k and v take."""
        return max((kernel.copies for kernel in ATTENTION_CHOICES[self.attention]), default=0.0)

    def on(self, device: torch.device, dtype: torch.dtype, config: TransformerConfig) -> Speed:
        """What the options come to where a model computes; what does not work there is replaced, and the log says so.

        Each thing is tried once in a process, and the verdict kept.
        """
        site = Site(device, dtype, config.hidden_size, config.num_heads, config.head_size)
        # a plain function where nothing is to be measured: it can be compiled with the blocks
        attention = PLAIN if self.attention == AUTO and device.type != "cuda" else self.attention
        return Speed(
            attention=_attention(attention),
            kernels=_kernels(self.kernels, site),
            call=_compiled(device) if self.compiled else call_itself,
        )


_attention = cache(choose_attention)
_kernels = cache(choose_kernels)
_compiled = cache(CompiledBlocks)
