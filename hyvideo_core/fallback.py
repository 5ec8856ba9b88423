"""Code that somebody else wrote and that may not run here: tried, and given up with one line in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


def attempt(call: Callable[[], ResultT], what: str, instead: str, level: int = logging.WARNING) -> ResultT | None:
    """What a call gives, or None and one line in the log if it fails.

    For kernels and compilers alone, whose errors have no class in common (a compiler that is missing, a card that is
    too new, a changed signature). Nothing of the host runs in them, so no interrupt can be swallowed here.

    Args:
        call: gives anything but None.
        what: what is tried, for the log.
        instead: what happens if it fails, for the log.
        level: of the line in the log.
    Raises:
        torch.OutOfMemoryError: memory that ran out says nothing about the code that asked for it.
    """
    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (see above)
        logger.log(level, "%s does not work here (%s); %s", what, in_one_line(error), instead)
        return None


def in_one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, with the next one if that only leads up to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
