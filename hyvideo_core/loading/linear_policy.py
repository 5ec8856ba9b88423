"""What a way of storing linear weights has to say; the ways themselves are in `policies`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..quantization import StoredLinear
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

    def packs(self, name: str) -> bool:  # noqa: ARG002
        """Whether whole numbers in the file's tensor `name` stand for others, which this policy knows."""
        return False

    def layer(
        self,
        key: str,  # noqa: ARG002
        shape: tuple[int, int],  # noqa: ARG002
        *,
        has_bias: bool,  # noqa: ARG002
        compute_dtype: torch.dtype,  # noqa: ARG002
    ) -> StoredLinear | None:
        """An empty layer that computes in `compute_dtype` for the weight `key` of `shape` (out, in).

        None if it is stored as it is. May be called for convolutions and embeddings too, flattened; they are
        widened once, on loading. Called under the meta device.
        """
        return None

    def fill(self, layer: StoredLinear, key: str, read: ReadTensor, device: torch.device) -> None:
        """Reads the weight `key`, joined from its parts, and its companions into a layer that `layer` gave."""
        raise NotImplementedError
