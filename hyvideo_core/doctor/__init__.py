"""What a file is, told from its header: the doctor behind the command line's `inspect` and its node."""

from .examine import inspect
from .findings import Findings, LoraFindings

__all__ = ["Findings", "LoraFindings", "inspect"]
