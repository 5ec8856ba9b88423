"""The denoising transformer: embed, double-stream blocks, single-stream blocks, final layer."""

from .transformer import Transformer

__all__ = ["Transformer"]
