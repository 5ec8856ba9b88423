"""Linear layers whose weights are stored in fewer bits than they compute in."""

from .base import StoredLinear
from .fp8 import FP8_DTYPES, Fp8Linear

__all__ = ["FP8_DTYPES", "Fp8Linear", "StoredLinear"]
