"""Files to models: open, detect, map names, build."""

from .build import build_transformer, build_vae
from .checkpoint import Checkpoint, open_checkpoint
from .detect import DetectedTransformer, DetectedVae, describe, detect_transformer, detect_vae

__all__ = [
    "Checkpoint",
    "DetectedTransformer",
    "DetectedVae",
    "build_transformer",
    "build_vae",
    "describe",
    "detect_transformer",
    "detect_vae",
    "open_checkpoint",
]
