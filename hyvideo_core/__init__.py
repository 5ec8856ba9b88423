"""HunyuanVideo in plain PyTorch: loading, text encoding, sampling, video autoencoding. Knows nothing of ComfyUI."""
