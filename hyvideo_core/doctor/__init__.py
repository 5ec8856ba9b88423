"""What a file is, told from its header: the doctor behind the command line's `inspect`, its node and the loaders."""

from .examine import inspect, model_to_fit
from .findings import Findings, LoraFindings
from .parts import clip_findings, llama_findings, transformer_findings, vae_findings

__all__ = [
    "Findings",
    "LoraFindings",
    "clip_findings",
    "inspect",
    "llama_findings",
    "model_to_fit",
    "transformer_findings",
    "vae_findings",
]
