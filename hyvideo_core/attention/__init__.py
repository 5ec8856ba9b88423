"""Full attention through one function, whatever computes it."""

from .choice import AUTO, CHOICES, PLAIN, ChosenAttention, choose_attention
from .plain import AttentionBackend, matmul_attention, sdpa

__all__ = [
    "AUTO",
    "CHOICES",
    "PLAIN",
    "AttentionBackend",
    "ChosenAttention",
    "choose_attention",
    "matmul_attention",
    "sdpa",
]
