"""The table of how files store the weights of linear layers.

A new format is a class (see LinearPolicy) and an entry in POLICIES.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import WrongModelError
from .comfy_quant import ComfyQuant
from .coverage import enumerated
from .fp8_policies import CastFp8, OfficialFp8, ScaledFp8
from .gguf_policy import GgufBlocks
from .key_maps import KeyView
from .linear_policy import LinearPolicy

__all__ = ["POLICIES", "LinearPolicy", "PlainWeights", "find_policy"]


@dataclass(frozen=True)
class PlainWeights(LinearPolicy):
    """Weights as they are: bf16, fp16, fp32."""

    @property
    def label(self) -> str:
        """See LinearPolicy.label."""
        return "plain"

    @classmethod
    def find(cls, view: KeyView) -> PlainWeights:
        """Fits every file, so it is the last of the table."""
        return cls(view)


POLICIES: tuple[type[LinearPolicy], ...] = (GgufBlocks, ComfyQuant, ScaledFp8, OfficialFp8, CastFp8, PlainWeights)
"""In the order in which a file is asked for their marks."""


def find_policy(view: KeyView) -> LinearPolicy:
    """How the file stores its weights.

    Raises:
        CheckpointError: in a way that is not read, or that needs a second file which is missing.
    """
    policy = next(policy for kind in POLICIES if (policy := kind.find(view)) is not None)
    _refuse_packed(policy)
    return policy


def _refuse_packed(policy: LinearPolicy) -> None:
    """Whole numbers in place of weights are a quantization; read as they are, they would be noise."""
    checkpoint = policy.view.checkpoint
    packed = [
        name
        for name, info in checkpoint.tensors.items()
        if name.startswith(policy.view.prefix) and name.endswith(".weight")
        if info.block is None and not info.dtype.is_floating_point and not policy.packs(name)
    ]
    if packed:
        dtype = str(checkpoint.tensors[packed[0]].dtype).removeprefix("torch.")
        raise WrongModelError(
            f"{checkpoint.name} stores weights as {dtype}, a quantization that is not read "
            f"({enumerated(packed, 'weight')}); use a bf16, fp8, nvfp4 or GGUF file"
        )
