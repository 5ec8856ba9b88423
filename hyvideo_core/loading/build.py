"""Weight files to modules: an empty model, then each tensor read once, straight to its place and dtype."""

from __future__ import annotations

from math import prod
from typing import TypeVar

import torch
from torch import nn

from ..model import Transformer
from ..quantization.base import StoredLinear, frozen
from ..vae import VideoAutoencoder
from .checkpoint import ReadTensor
from .coverage import Coverage, view_coverage
from .detect import DetectedTransformer, DetectedVae
from .on_load import MadeFp8
from .policies import LinearPolicy, PlainWeights

CPU = torch.device("cpu")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_transformer(
    detected: DetectedTransformer, *, dtype: torch.dtype, device: torch.device = CPU, make_fp8: bool = False
) -> Transformer:
    """The transformer of a file, without gradients.

    Linear layers that the file stores in fewer bits stay so in memory and are widened for each call.

    Args:
        detected: what `detect_transformer` found.
        dtype: what it computes in.
        device: where its weights go.
        make_fp8: the blocks' big layers become fp8 with a scale for each row, unless the file stores them in fewer
            bits already; `on_load_errors` says what that costs.
    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    with torch.inference_mode(False), torch.device("meta"):
        model = Transformer(detected.config)
    policy = MadeFp8.over(detected.policy) if make_fp8 else detected.policy
    return load_weights(model, policy, dtype=dtype, device=device)


def build_vae(detected: DetectedVae, *, dtype: torch.dtype, device: torch.device = CPU) -> VideoAutoencoder:
    """The autoencoder of a file, without gradients; see `build_transformer`."""
    with torch.inference_mode(False), torch.device("meta"):
        model = VideoAutoencoder(detected.config)
    return load_weights(model, PlainWeights(detected.view), dtype=dtype, device=device)


def check_complete(detected: DetectedTransformer | DetectedVae) -> Coverage:
    """Refuses a file whose tensors do not make up the model of its sizes, from its header alone; see `coverage`.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    found = coverage(detected)
    found.check(detected.view.checkpoint.name)
    return found


def coverage(detected: DetectedTransformer | DetectedVae) -> Coverage:
    """How many tensors of the model of its sizes a file gives, from its header alone."""
    with torch.inference_mode(False), torch.device("meta"):
        if isinstance(detected, DetectedTransformer):
            model: nn.Module = Transformer(detected.config)
            policy = detected.policy
        else:
            model = VideoAutoencoder(detected.config)
            policy = PlainWeights(detected.view)
    return _coverage(model, policy)


def load_weights(model: ModuleT, policy: LinearPolicy, *, dtype: torch.dtype, device: torch.device) -> ModuleT:
    """Fills an empty model from a file, strictly, one tensor after the other.

    Floats become `dtype`; linear layers become what `policy` makes of them.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    _coverage(model, policy).check(policy.view.checkpoint.name)
    return fill_weights(model, policy, dtype=dtype, device=device)


def fill_weights(model: ModuleT, policy: LinearPolicy, *, dtype: torch.dtype, device: torch.device) -> ModuleT:
    """As `load_weights`, for a file that was found to be whole."""
    wanted = model.state_dict()
    with torch.inference_mode(False), policy.view.checkpoint.reading() as read:
        for key, empty in wanted.items():
            _load_tensor(model, key, tuple(empty.shape), read, policy, dtype, device)
    return model.requires_grad_(False).eval()


def _load_tensor(
    model: nn.Module,
    key: str,
    shape: tuple[int, ...],
    read: ReadTensor,
    policy: LinearPolicy,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if not place_stored(model, key, shape, read, policy, dtype, device):
        path, _, name = key.rpartition(".")
        tensor = policy.view.load(key, shape, read).to(device, dtype)
        setattr(model.get_submodule(path), name, frozen(tensor))


def place_stored(
    model: nn.Module,
    key: str,
    shape: tuple[int, ...],
    read: ReadTensor,
    policy: LinearPolicy,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Loads a weight that is not stored as it is: a linear layer is replaced, anything else gets it widened.

    Returns:
        False for any other tensor, which is left to the caller.
    """
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    layer = stored_layer(module, key, shape, policy, dtype)
    if layer is None:
        return False
    policy.fill(layer, key, read, device)
    if isinstance(module, nn.Linear):
        layer.bias = module.bias
        model.set_submodule(path, layer)
    else:
        setattr(module, name, frozen(layer.dequantized().reshape(shape)))
    return True


def stored_layer(
    module: nn.Module, key: str, shape: tuple[int, ...], policy: LinearPolicy, dtype: torch.dtype
) -> StoredLinear | None:
    """An empty layer for a weight that is not stored as it is, of a convolution or embedding too."""
    if len(shape) < 2 or not key.endswith(".weight"):
        return None
    has_bias = getattr(module, "bias", None) is not None
    with torch.device("meta"):
        return policy.layer(key, (shape[0], prod(shape[1:])), has_bias=has_bias, compute_dtype=dtype)


def _coverage(model: nn.Module, policy: LinearPolicy) -> Coverage:
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return view_coverage(shapes, policy)
