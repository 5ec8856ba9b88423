"""Video to latents and back: the causal 3D autoencoder and its tiling."""

from .autoencoder import Gaussian, VideoAutoencoder

__all__ = ["Gaussian", "VideoAutoencoder"]
