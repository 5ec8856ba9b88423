"""Fused kernels in the place of element-wise functions; see model.elementwise for the functions themselves."""

from .choice import AUTO, CHOICES, OFF, choose_kernels

__all__ = ["AUTO", "CHOICES", "OFF", "choose_kernels"]
