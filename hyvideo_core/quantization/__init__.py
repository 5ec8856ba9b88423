"""Linear layers whose weights are stored in fewer bits than they compute in."""

from .base import StoredLinear
from .fp8 import FP8_DTYPES, Fp8Linear
from .nvfp4 import Nvfp4Linear

__all__ = ["FP8_DTYPES", "Fp8Linear", "Nvfp4Linear", "StoredLinear"]
