"""Files to models: open, detect, map names, build."""

from .build import build_transformer, build_vae, check_complete
from .checkpoint import Checkpoint, open_checkpoint
from .detect import DetectedTransformer, DetectedVae, describe, detect_transformer, detect_vae
from .text import build_clip_encoder, build_llama_encoder, detect_clip, detect_llama

__all__ = [
    "Checkpoint",
    "DetectedTransformer",
    "DetectedVae",
    "build_clip_encoder",
    "build_llama_encoder",
    "build_transformer",
    "build_vae",
    "check_complete",
    "describe",
    "detect_clip",
    "detect_llama",
    "detect_transformer",
    "detect_vae",
    "open_checkpoint",
]
