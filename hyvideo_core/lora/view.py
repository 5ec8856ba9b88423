"""A model with LoRAs: a shallow copy of its module tree that shares every parameter, with some layers wrapped.

The model itself is never written to; without the copy it is what it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..model import Transformer
from ..model.linear import Linear
from .blocks import ALL, BlockFilter, parse_blocks
from .entries import PATCH_LAYER
from .factors import Rows
from .layers import LoraLinear, LoraPatchEmbed, PatchLinear
from .lora_file import LoraFile, LoraWeights
from .read_parts import Change
from .targets import Layer

ModuleT = TypeVar("ModuleT", bound=nn.Module)
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A LoRA with its settings.

    Attributes:
        blocks: see blocks.parse_blocks.
    """

    lora: LoraFile
    weights: LoraWeights
    strength: float = 1.0
    blocks: str = ALL


def with_loras(model: Transformer, attached: Sequence[Attached]) -> Transformer:
    """The model with LoRAs beside its layers, in the order given.

    The view shares the model's and the LoRAs' parameters, so it computes where those lie. A LoRA of strength 0, or
    none at all, changes nothing: with no other the model itself comes back.

    Raises:
        OptionError: a filter that cannot be read.
    """
    attached = [one for one in attached if one.strength != 0]
    if not attached:
        return model
    with torch.inference_mode(False), torch.no_grad():
        layers = _wrapped(model, attached)
        view = with_modules(model, layers)
    view.config = replace(model.config, in_channels=view.img_in.proj.weight.shape[1])
    return view


def with_merged_loras(model: Transformer, attached: Sequence[Attached]) -> Transformer:
    """The model with LoRAs in its weights: as `with_loras`, with private copies of the layers that they change.

    Raises:
        OptionError: a layer that they change is not stored as plain floats.
    """
    attached = [one for one in attached if one.strength != 0]
    if not attached:
        return model
    with torch.inference_mode(False), torch.no_grad():
        layers = _wrapped(model, attached)
        view = with_modules(model, {name: _merged(model, name, module) for name, module in layers.items()})
    view.config = replace(model.config, in_channels=view.img_in.proj.weight.shape[1])
    return view


def merge_loras(model: Transformer, attached: Sequence[Attached]) -> Transformer:
    """As `with_merged_loras`, into the model itself, layer by layer: for a model that nothing else uses."""
    with torch.inference_mode(False), torch.no_grad():
        layers = _wrapped(model, [one for one in attached if one.strength != 0])
        while layers:
            name, module = layers.popitem()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _merged(model, name, module))
    model.config = replace(model.config, in_channels=model.img_in.proj.weight.shape[1])
    return model


def with_modules(root: ModuleT, modules: Mapping[str, nn.Module]) -> ModuleT:
    """A copy of a tree of modules with some of them replaced, by dotted name; everything else is shared."""
    clone = root.__new__(type(root))
    # tables of parameters and buffers stay the very same objects, so that the copy follows when the original moves
    clone.__dict__ = dict(root.__dict__)
    clone._modules = dict(root._modules)
    below: dict[str, dict[str, nn.Module]] = {}
    for name, module in modules.items():
        child, _, rest = name.partition(".")
        if rest:
            below.setdefault(child, {})[rest] = module
        else:
            clone._modules[child] = module
    for child, replaced in below.items():
        clone._modules[child] = with_modules(root.get_submodule(child), replaced)
    return clone


def _wrapped(model: Transformer, attached: Sequence[Attached]) -> dict[str, nn.Module]:
    """The changed layers of a model by name."""
    layers: dict[str, Any] = {}
    channels = max([model.config.in_channels, *(one.lora.in_channels for one in attached)])
    conv = _widened(model.img_in.proj, channels)
    for one in attached:
        blocks = parse_blocks(one.blocks, one.lora.config)
        for layer, changes in _by_layer(one.lora, one.weights, blocks):
            if layer.is_norm:
                below = layers.get(layer.name) or model.get_submodule(layer.name)
                layers[layer.name] = _changed_norm(below, changes[0][0], one.strength)
                continue
            below = layers.get(layer.name)
            if below is None:
                below = PatchLinear(conv) if layer.name == PATCH_LAYER else model.get_submodule(layer.name)
            layers[layer.name] = LoraLinear(below, changes, one.strength)
    patches = layers.pop(PATCH_LAYER, None)
    if patches is not None:
        layers["img_in"] = LoraPatchEmbed(conv, patches, model.img_in.patch_size)
    elif conv is not model.img_in.proj:
        layers[PATCH_LAYER] = conv
    return layers


def _by_layer(
    lora: LoraFile, weights: LoraWeights, blocks: BlockFilter
) -> list[tuple[Layer, list[tuple[Change, Rows]]]]:
    """The changes of a file that a filter lets through, for each layer."""
    found: dict[str, tuple[Layer, list[tuple[Change, Rows]]]] = {}
    for entry in lora.chosen(blocks):
        layer = entry.target.layer
        found.setdefault(layer.name, (layer, []))[1].append((weights[entry], entry.target.rows))
    return list(found.values())


def _widened(conv: nn.Conv3d, channels: int) -> nn.Conv3d:
    """A convolution that takes more channels and ignores them."""
    if channels == conv.in_channels:
        return conv
    old = conv.weight
    wide = nn.Conv3d(channels, len(old), tuple(old.shape[2:]), tuple(old.shape[2:]), device=old.device, dtype=old.dtype)  # type: ignore[arg-type]  # a tuple of three
    wide.weight = nn.Parameter(
        torch.cat((old, old.new_zeros(len(old), channels - old.shape[1], *old.shape[2:])), dim=1), requires_grad=False
    )
    wide.bias = conv.bias
    return wide


def _changed_norm(norm: nn.Module, change: Change, strength: float) -> nn.Module:
    """A copy of a norm with other weights."""
    copy = with_modules(norm, {})
    copy._parameters = dict(norm._parameters)
    weight: Any = norm.weight
    bias: Any = getattr(norm, "bias", None)
    if change.replacement is not None:
        copy.weight = _frozen(weight.float().lerp(change.replacement.flatten().float(), strength), weight)
    elif change.factor is not None:
        copy.weight = _frozen(weight.float() + strength * change.factor.dense().flatten().float(), weight)
    if change.bias is not None and bias is not None:
        copy.bias = _frozen(bias.float() + strength * change.bias.float(), bias)
    return copy


def _merged(model: Transformer, name: str, module: nn.Module) -> nn.Module:
    """A changed layer as one of the model's own kind."""
    if isinstance(module, LoraPatchEmbed):
        return _merged_patch_embed(model, module)
    return _merged_linear(name, module) if isinstance(module, LoraLinear) else module


def _merged_linear(name: str, layer: LoraLinear) -> Linear:
    base = layer.base
    while isinstance(base, LoraLinear):
        base = base.base
    weight = getattr(base, "weight", None)
    if not isinstance(base, Linear) or not isinstance(weight, Tensor) or weight.dtype not in PLAIN_DTYPES:
        raise OptionError(
            f"{name} is stored as {type(base).__name__}, into which no LoRA can be merged; "
            "set mode to side path, which works on every weight, or load a bf16 file"
        )
    merged = Linear(base.in_features, base.out_features, bias=layer.bias is not None, device="meta")
    merged.weight = _frozen(layer.merged(), weight)
    merged.register_parameter("bias", None if layer.bias is None else _frozen(layer.bias, weight))
    return merged


def _merged_patch_embed(model: Transformer, embed: LoraPatchEmbed) -> nn.Module:
    conv = with_modules(embed.proj, {})
    conv._parameters = dict(embed.proj._parameters)
    conv.weight = _frozen(embed.linear.merged().reshape(embed.proj.weight.shape), embed.proj.weight)
    bias = embed.linear.bias
    conv.register_parameter("bias", None if bias is None else _frozen(bias, bias))
    return with_modules(model.img_in, {"proj": conv})


def _frozen(tensor: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.to(like.dtype), requires_grad=False)
