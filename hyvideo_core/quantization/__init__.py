"""Linear layers whose weights are stored in fewer bits than they compute in."""

from .base import StoredLinear
from .fp8 import FP8_DTYPES, Fp8Linear
from .fp8_matmul import has_fp8_matmul, use_fp8_matmul
from .nvfp4 import Nvfp4Linear
from .on_load import describe_errors, on_load_errors

__all__ = [
    "FP8_DTYPES",
    "Fp8Linear",
    "Nvfp4Linear",
    "StoredLinear",
    "describe_errors",
    "has_fp8_matmul",
    "on_load_errors",
    "use_fp8_matmul",
]
