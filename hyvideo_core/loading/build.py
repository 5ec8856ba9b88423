"""Weight files to modules: an empty model, then each tensor read once, straight to its place and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import WrongModelError
from ..model import Transformer
from ..quantization.base import StoredLinear, frozen
from ..vae import VideoAutoencoder
from .checkpoint import ReadTensor
from .detect import DetectedTransformer, DetectedVae
from .key_maps import KeyView, squeezed
from .policies import LinearPolicy, PlainWeights

CPU = torch.device("cpu")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_transformer(detected: DetectedTransformer, *, dtype: torch.dtype, device: torch.device = CPU) -> Transformer:
    """The transformer of a file, without gradients.

    Linear layers that the file stores in fewer bits stay so in memory and are widened for each call.

    Args:
        detected: what `detect_transformer` found.
        dtype: what it computes in.
        device: where its weights go.
    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    with torch.inference_mode(False), torch.device("meta"):
        model = Transformer(detected.config)
    return load_weights(model, detected.view, detected.policy, dtype=dtype, device=device)


def build_vae(detected: DetectedVae, *, dtype: torch.dtype, device: torch.device = CPU) -> VideoAutoencoder:
    """The autoencoder of a file, without gradients; see `build_transformer`."""
    with torch.inference_mode(False), torch.device("meta"):
        model = VideoAutoencoder(detected.config)
    return load_weights(model, detected.view, PlainWeights(detected.view), dtype=dtype, device=device)


def check_complete(detected: DetectedTransformer | DetectedVae) -> None:
    """Refuses a file whose tensors do not make up the model of its sizes, from its header alone.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    with torch.inference_mode(False), torch.device("meta"):
        if isinstance(detected, DetectedTransformer):
            model: nn.Module = Transformer(detected.config)
            policy = detected.policy
        else:
            model = VideoAutoencoder(detected.config)
            policy = PlainWeights(detected.view)
    _check_header(model.state_dict(), detected.view, policy)


def load_weights(
    model: ModuleT, view: KeyView, policy: LinearPolicy, *, dtype: torch.dtype, device: torch.device
) -> ModuleT:
    """Fills an empty model from a file, strictly, one tensor after the other.

    Floats become `dtype`; linear layers become what `policy` makes of them.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    wanted = model.state_dict()
    _check_header(wanted, view, policy)
    with torch.inference_mode(False), view.checkpoint.reading() as read:
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
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if (layer := _stored_layer(module, key, shape, policy, dtype)) is None:
        setattr(module, name, frozen(policy.view.load(key, shape, read).to(device, dtype)))
        return
    policy.fill(layer, key, read, device)
    if isinstance(module, nn.Linear):
        layer.bias = module.bias
        model.set_submodule(path, layer)
    else:
        setattr(module, name, frozen(layer.dequantized().reshape(shape)))


def _stored_layer(
    module: nn.Module, key: str, shape: tuple[int, ...], policy: LinearPolicy, dtype: torch.dtype
) -> StoredLinear | None:
    """An empty layer for a weight that is not stored as it is, of a convolution or embedding too."""
    if len(shape) < 2 or not key.endswith(".weight"):
        return None
    has_bias = getattr(module, "bias", None) is not None
    return policy.layer(key, (shape[0], prod(shape[1:])), has_bias=has_bias, compute_dtype=dtype)


def _check_header(wanted: Mapping[str, Tensor], view: KeyView, policy: LinearPolicy) -> None:
    missing = [key for key in wanted if key not in view]
    used = {name for key in wanted for name in (*view.names(key), *policy.companions(key))}
    used.update(policy.marks)
    stray = [name for name in view.checkpoint.tensors if name.startswith(view.prefix) and name not in used]
    for words, names in (("lacks", missing), ("has unexpected", stray)):
        if names:
            raise WrongModelError(
                f"{view.checkpoint.name} {words} {len(names)} tensors, such as {', '.join(names[:3])}; "
                "it is incomplete or of a model that this pack does not know"
            )
    for key, empty in wanted.items():
        shape = view.info(key).shape
        # 1x1x1 convolutions stand where others have linear layers
        if squeezed(shape) != squeezed(tuple(empty.shape)):
            raise WrongModelError(
                f"{view.checkpoint.name}: {key} is {list(shape)}, expected {list(empty.shape)}; "
                "the file is damaged or of a model that this pack does not know"
            )
