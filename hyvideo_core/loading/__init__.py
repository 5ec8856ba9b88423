"""Files to models: open, detect, map names, build."""

from .build import build_transformer, build_vae, check_complete
from .checkpoint import Checkpoint
from .containers import open_checkpoint
from .detect import DetectedTransformer, DetectedVae, detect_transformer, detect_vae
from .recognise import Kind, recognise
from .save import save_as
from .text import build_clip_encoder, build_llama_encoder, check_clip, check_llama, detect_clip, detect_llama

__all__ = [
    "Checkpoint",
    "DetectedTransformer",
    "DetectedVae",
    "Kind",
    "build_clip_encoder",
    "build_llama_encoder",
    "build_transformer",
    "build_vae",
    "check_clip",
    "check_complete",
    "check_llama",
    "detect_clip",
    "detect_llama",
    "detect_transformer",
    "detect_vae",
    "open_checkpoint",
    "recognise",
    "save_as",
]
