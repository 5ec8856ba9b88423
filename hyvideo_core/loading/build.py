"""Weight files to modules: an empty model, then each tensor read once, straight to its place and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import WrongModelError
from ..model import Transformer
from ..model.linear import Linear
from ..vae import VideoAutoencoder
from .detect import DetectedTransformer, DetectedVae
from .key_maps import KeyView, squeezed
from .quantization import FP8_DTYPES, Fp8Linear

CPU = torch.device("cpu")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_transformer(detected: DetectedTransformer, *, dtype: torch.dtype, device: torch.device = CPU) -> Transformer:
    """The transformer of a file, without gradients.

    Linear layers stored in fp8 stay fp8 in memory and are widened for each call.

    Args:
        detected: what `detect_transformer` found.
        dtype: what it computes in.
        device: where its weights go.
    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    with torch.inference_mode(False), torch.device("meta"):
        model = Transformer(detected.config)
        _swap_fp8_layers(model, detected.view, dtype)
    return load_weights(model, detected.view, dtype=dtype, device=device)


def build_vae(detected: DetectedVae, *, dtype: torch.dtype, device: torch.device = CPU) -> VideoAutoencoder:
    """The autoencoder of a file, without gradients; see `build_transformer`."""
    with torch.inference_mode(False), torch.device("meta"):
        model = VideoAutoencoder(detected.config)
    return load_weights(model, detected.view, dtype=dtype, device=device)


def check_complete(detected: DetectedTransformer | DetectedVae) -> None:
    """Refuses a file whose tensors do not make up the model of its sizes, from its header alone.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    with torch.inference_mode(False), torch.device("meta"):
        if isinstance(detected, DetectedTransformer):
            model: nn.Module = Transformer(detected.config)
        else:
            model = VideoAutoencoder(detected.config)
    _check_header(model.state_dict(), detected.view)


def load_weights(model: ModuleT, view: KeyView, *, dtype: torch.dtype, device: torch.device) -> ModuleT:
    """Fills an empty model from a file, strictly; floats become `dtype`, except layers that keep fp8.

    Raises:
        WrongModelError: tensors are missing, unknown or of other shapes.
    """
    wanted = model.state_dict()
    _check_header(wanted, view)
    loaded = {}
    with torch.inference_mode(False), view.checkpoint.reading() as read:
        for key, empty in wanted.items():
            tensor = view.load(key, tuple(empty.shape), read)
            loaded[key] = tensor.to(device, empty.dtype if empty.dtype in FP8_DTYPES else dtype)
        model.load_state_dict(loaded, assign=True)
    return model.requires_grad_(False).eval()


def _check_header(wanted: Mapping[str, Tensor], view: KeyView) -> None:
    missing = [key for key in wanted if key not in view]
    used = {name for key in wanted for name in view.names(key)}
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


def _swap_fp8_layers(model: Transformer, view: KeyView, dtype: torch.dtype) -> None:
    for name, layer in list(model.named_modules()):
        key = f"{name}.weight"
        if isinstance(layer, Linear) and key in view and view.info(key).dtype in FP8_DTYPES:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, Fp8Linear.like(layer, view.info(key).dtype, dtype))
