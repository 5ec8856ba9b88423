"""Video to latents and back: the causal 3D autoencoder and its tiling."""

from .autoencoder import Gaussian, VideoAutoencoder
from .tiling import Tiling, decode_images, decode_tiled, encode_tiled

__all__ = ["Gaussian", "Tiling", "VideoAutoencoder", "decode_images", "decode_tiled", "encode_tiled"]
