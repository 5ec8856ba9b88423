"""What nodes may expect of the host, as types; both hosts give objects of these shapes."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from PIL import Image

Role = Literal["transformer", "vae", "text_encoders", "intermediate"]


class Progress(Protocol):
    """A running progress bar."""

    def update(self, done: int, preview: Image.Image | None = None) -> None:
        """Shows that `done` of the total steps are finished, with a picture of the state where the host can."""


class Patcher(Protocol):
    """The holder of one module through which the host moves its weights between devices."""

    model: Any
    load_device: torch.device
    offload_device: torch.device

    def model_size(self) -> int:
        """Bytes of all weights."""

    def loaded_size(self) -> int:
        """Bytes of weights on the load device now."""
