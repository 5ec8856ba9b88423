"""What a LoRA can change in a transformer, under every name that a file may give it.

The table is made from the model's own list of modules, never by taking a file's names apart: with dots turned into
underscores, names cannot be taken apart any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import nn

from ..config import TransformerConfig
from ..loading.key_maps import COMFY, DIFFUSERS, OFFICIAL, Dialect
from ..model import Transformer

# parts of fused layers by number, as OneTrainer's interchange format counts them
INDEXED = Dialect(
    "official names with numbered parts",
    (
        (r"(_attn_qkv)\.weight$", r"\1.{0,1,2}.weight"),
        (r"(\.linear1)\.weight$", r"\1.{0,1,2,3}.weight"),
    ),
)
# OneTrainer's own table counts the layers of an MLP as 0 and 2, and names the text timestep's as others do
INDEXED_FROM_0 = Dialect(
    INDEXED.name,
    (
        *INDEXED.renames,
        (r"mlp\.fc1\.weight$", "mlp.fc0.weight"),
        (r"^(txt_in\.t_embedder)\.mlp\.0\.", r"\1.linear_1."),
        (r"^(txt_in\.t_embedder)\.mlp\.2\.", r"\1.linear_2."),
    ),
)
# parts of fused layers by letter, as HunyuanVideo 1.5 names them
LETTERED = Dialect(
    "official names with separate q, k and v",
    (
        (r"_attn_qkv\.weight$", "_attn_{q,k,v}.weight"),
        (r"\.linear1\.weight$", ".linear1_{q,k,v,mlp}.weight"),
    ),
)
# what diffusers' fuse_qkv_projections makes of the attention
DIFFUSERS_FUSED = Dialect(
    "diffusers",
    (
        (r"^double_blocks\.(\d+)\.img_attn_qkv\.", r"transformer_blocks.\1.attn.to_qkv."),
        (r"^double_blocks\.(\d+)\.txt_attn_qkv\.", r"transformer_blocks.\1.attn.to_added_qkv."),
        (r"^single_blocks\.(\d+)\.linear1\.", r"single_transformer_blocks.\1.{attn.to_qkv,proj_mlp}."),
        *DIFFUSERS.renames,
    ),
    swapped_halves=DIFFUSERS.swapped_halves,
)
DIALECTS = (OFFICIAL, COMFY, DIFFUSERS, DIFFUSERS_FUSED, INDEXED, INDEXED_FROM_0, LETTERED)
BLOCKS = ("double_blocks", "single_blocks")


@dataclass(frozen=True, slots=True)
class Layer:
    """One module of the model that a file can change.

    Attributes:
        name: its official name.
        shape: (out, in) of its weight as a matrix; (size, 1) for a norm.
        kernel: axes of the weight behind the input channels, () for linear layers.
        has_bias: whether diffs of a bias have a place.
        is_norm: only full differences apply.
    """

    name: str
    shape: tuple[int, int]
    kernel: tuple[int, ...] = ()
    has_bias: bool = True
    is_norm: bool = False

    @property
    def block(self) -> tuple[str, int] | None:
        """("double_blocks" or "single_blocks", number), None outside the blocks."""
        part, _, rest = self.name.partition(".")
        return (part, int(rest.split(".")[0])) if part in BLOCKS else None


@dataclass(frozen=True, slots=True)
class Target:
    """Rows of a layer that one entry of a file is meant for.

    Attributes:
        rows: first and past-last output channel.
        is_swapped: the file stores the two halves of these rows in the other order.
    """

    layer: Layer
    rows: tuple[int, int]
    is_swapped: bool = False


@lru_cache(maxsize=16)
def layers_of(config: TransformerConfig) -> Mapping[str, Layer]:
    """Every module with a weight, by official name."""
    with torch.inference_mode(False), torch.device("meta"):
        model = Transformer(config)
    return {layer.name: layer for layer in _walk(model)}


def _walk(model: nn.Module) -> Iterator[Layer]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        has_bias = getattr(module, "bias", None) is not None
        if weight.ndim == 1:
            yield Layer(name, (weight.shape[0], 1), has_bias=has_bias, is_norm=True)
        else:
            shape = (weight.shape[0], weight[0].numel())
            yield Layer(name, shape, kernel=tuple(weight.shape[2:]), has_bias=has_bias)


@lru_cache(maxsize=16)
def spellings(config: TransformerConfig) -> Mapping[str, Mapping[str, Target]]:
    """For each dialect, targets by the dotted name that it gives them, without any prefix."""
    tables: dict[str, dict[str, Target]] = {}
    for dialect in DIALECTS:
        tables.setdefault(dialect.name, {}).update(_spelled(config, dialect))
    return tables


def _spelled(config: TransformerConfig, dialect: Dialect) -> dict[str, Target]:
    targets = {}
    for layer in layers_of(config).values():
        key = f"{layer.name}.weight"
        names = dialect.sources(key)
        is_swapped = dialect.swapped_halves is not None and key.startswith(dialect.swapped_halves)
        for name, rows in zip(names, split_rows(layer.shape, len(names)), strict=True):
            targets[name.rpartition(".")[0]] = Target(layer, rows, is_swapped)
    return targets


def split_rows(shape: tuple[int, int], num_parts: int) -> list[tuple[int, int]]:
    """Rows of each part of a fused layer: q, k and v are as tall as the layer is wide, the rest is the MLP's.

    Args:
        shape: (out, in) of the fused weight.
        num_parts: 1: whole; 2: q, k and v together, MLP; 3: q, k, v; 4: q, k, v, MLP.
    """
    rows, width = shape
    ends = {1: [rows], 2: [3 * width, rows], 3: [width, 2 * width, 3 * width]}
    bounds = [0, *ends.get(num_parts, [width, 2 * width, 3 * width, rows])]
    return list(pairwise(bounds))
