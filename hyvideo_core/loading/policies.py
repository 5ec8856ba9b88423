"""How a file stores the weights of linear layers: one class for each way, and the table that finds the right one.

A new format is a class here (or in a file of its own) and an entry in POLICIES.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..quantization import FP8_DTYPES, Fp8Linear, StoredLinear
from ..quantization.base import frozen
from .checkpoint import ReadTensor
from .key_maps import KeyView


@dataclass(frozen=True)
class LinearPolicy(ABC):
    """How one file stores its weights. Keys are official names that end in `.weight`; names are the file's own."""

    view: KeyView

    @classmethod
    @abstractmethod
    def find(cls, view: KeyView) -> LinearPolicy | None:
        """The policy, if the file bears its marks.

        Raises:
            CheckpointError: it does, and still cannot be read.
        """

    @property
    @abstractmethod
    def label(self) -> str:
        """In words, for messages."""

    @property
    def marks(self) -> Sequence[str]:
        """Names of tensors that speak of the whole file."""
        return ()

    def companions(self, key: str) -> Sequence[str]:  # noqa: ARG002
        """Names of tensors that belong to the weight `key`, such as its scales."""
        return ()

    @abstractmethod
    def layer(
        self, key: str, shape: tuple[int, int], *, has_bias: bool, compute_dtype: torch.dtype
    ) -> StoredLinear | None:
        """An empty layer for the weight `key` of `shape` (out, in); None if it is stored as it is."""

    @abstractmethod
    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """Reads the weight `key`, joined from its parts, and its companions into a layer that `layer` gave."""


@dataclass(frozen=True)
class PlainWeights(LinearPolicy):
    """Weights as they are: bf16, fp16, fp32."""

    label = "plain"

    @classmethod
    def find(cls, view: KeyView) -> PlainWeights:
        """Fits every file, so it is the last of the table."""
        return cls(view)

    def layer(
        self,
        key: str,  # noqa: ARG002
        shape: tuple[int, int],  # noqa: ARG002
        *,
        has_bias: bool,  # noqa: ARG002
        compute_dtype: torch.dtype,  # noqa: ARG002
    ) -> StoredLinear | None:
        """None: nothing is stored otherwise."""
        return None

    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """Never called, since `layer` gives none."""
        raise NotImplementedError


@dataclass(frozen=True)
class CastFp8(LinearPolicy):
    """Weights cast to fp8 without scales."""

    label = "fp8 without scales"

    @classmethod
    def find(cls, view: KeyView) -> CastFp8 | None:
        """Any fp8 weight marks it."""
        return cls(view) if any(info.dtype in FP8_DTYPES for info in view.checkpoint.tensors.values()) else None

    def layer(
        self, key: str, shape: tuple[int, int], *, has_bias: bool, compute_dtype: torch.dtype
    ) -> StoredLinear | None:
        """An fp8 layer where the weight is fp8."""
        dtype = self.view.info(key).dtype
        if dtype not in FP8_DTYPES:
            return None
        return Fp8Linear(shape[1], shape[0], has_bias=has_bias, weight_dtype=dtype, compute_dtype=compute_dtype)

    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """See LinearPolicy.fill."""
        shape = (layer.out_features, layer.in_features)
        layer.weight = frozen(self.view.load(key, shape, read).to(device))


POLICIES: tuple[type[LinearPolicy], ...] = (CastFp8, PlainWeights)
"""In the order in which a file is asked for their marks."""


def find_policy(view: KeyView) -> LinearPolicy:
    """How the file stores its weights.

    Raises:
        CheckpointError: in a way that is not read, or that needs a second file which is missing.
    """
    return next(policy for kind in POLICIES if (policy := kind.find(view)) is not None)
