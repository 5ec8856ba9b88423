"""Foreign layouts of the same weights, as tables over the official names.

A dialect turns an official name into the name, or names, under which a file holds that tensor. Braces list
the parts of a tensor that is split there: `attn.{to_q,to_k,to_v}` is joined along the first axis.

Sources: tensor names as the official release, ComfyUI and diffusers write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import WrongModelError
from .checkpoint import Checkpoint, ReadTensor, TensorInfo, plain_tensor

Renames = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One layout: regular expressions applied in order to an official name.

    Attributes:
        swapped_halves: official name whose two halves this layout stores in the other order.
        convolutions: regular expression of official matrices that this layout stores as 1x1x1 convolutions.
    """

    name: str
    renames: Renames = ()
    swapped_halves: str | None = None
    convolutions: str | None = None

    def sources(self, key: str) -> tuple[str, ...]:
        """The names that make up official tensor `key`."""
        return _sources(self, key)

    def join(self, key: str, parts: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        """Official tensor `key` of `shape` from its parts."""
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.swapped_halves is not None and key.startswith(self.swapped_halves):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        # 1x1x1 convolutions stand where others have linear layers
        return tensor.reshape(shape)

    def split(self, key: str, tensor: Tensor, width: int) -> dict[str, Tensor]:
        """The inverse of `join`: official tensor `key` as this layout names and stores it.

        Args:
            width: rows of every part but the last; fused layers are queries, keys and values of the model's width,
                and what is left.
        """
        if self.swapped_halves is not None and key.startswith(self.swapped_halves):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if self.convolutions is not None and re.search(self.convolutions, key):
            tensor = tensor[..., None, None, None]
        names = self.sources(key)
        rows = [width] * (len(names) - 1)
        parts = tensor.split([*rows, len(tensor) - sum(rows)])
        return dict(zip(names, parts, strict=True))


# a header is looked at several times, and there are some 40 patterns for each of some 900 names
@lru_cache(maxsize=16384)
def _sources(dialect: Dialect, key: str) -> tuple[str, ...]:
    for pattern, replacement in dialect.renames:
        key = re.sub(pattern, replacement, key)
    return _expand_braces(key)


@lru_cache(maxsize=8192)
def _expand_braces(name: str) -> tuple[str, ...]:
    match = re.search(r"\{([^}]*)\}", name)
    if match is None:
        return (name,)
    return tuple(name[: match.start()] + part + name[match.end() :] for part in match.group(1).split(","))


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its axes of length 1."""
    return tuple(size for size in shape if size != 1)


OFFICIAL = Dialect("official")

COMFY_RENAMES: Renames = (
    (r"^txt_in\.c_embedder\.linear_1\.", "txt_in.c_embedder.in_layer."),
    (r"^txt_in\.c_embedder\.linear_2\.", "txt_in.c_embedder.out_layer."),
    (r"(t_embedder|time_in|guidance_in)\.mlp\.0\.", r"\1.in_layer."),
    (r"(t_embedder|time_in|guidance_in)\.mlp\.2\.", r"\1.out_layer."),
    (r"_mod\.linear\.", "_mod.lin."),
    (r"\.modulation\.linear\.", ".modulation.lin."),
    (r"_attn_(qkv|proj)\.", r"_attn.\1."),
    (r"_attn_q_norm\.", "_attn.norm.query_norm."),
    (r"_attn_k_norm\.", "_attn.norm.key_norm."),
    (r"^(single_blocks\.\d+)\.q_norm\.", r"\1.norm.query_norm."),
    (r"^(single_blocks\.\d+)\.k_norm\.", r"\1.norm.key_norm."),
    (r"mlp\.fc1\.", "mlp.0."),
    (r"mlp\.fc2\.", "mlp.2."),
)
COMFY = Dialect("ComfyUI", COMFY_RENAMES)
COMFY_SCALE = Dialect("ComfyUI", (*COMFY_RENAMES, (r"(query|key)_norm\.weight$", r"\1_norm.scale")))

_REFINER = "context_embedder.token_refiner.refiner_blocks"
_OFFICIAL_REFINER = r"^txt_in\.individual_token_refiner\.blocks\.(\d+)\."
_SINGLE_IN = "{attn.to_q,attn.to_k,attn.to_v,proj_mlp}"
DIFFUSERS = Dialect(
    "diffusers",
    (
        (r"^img_in\.", "x_embedder."),
        (r"^time_in\.mlp\.0\.", "time_text_embed.timestep_embedder.linear_1."),
        (r"^time_in\.mlp\.2\.", "time_text_embed.timestep_embedder.linear_2."),
        (r"^guidance_in\.mlp\.0\.", "time_text_embed.guidance_embedder.linear_1."),
        (r"^guidance_in\.mlp\.2\.", "time_text_embed.guidance_embedder.linear_2."),
        (r"^vector_in\.in_layer\.", "time_text_embed.text_embedder.linear_1."),
        (r"^vector_in\.out_layer\.", "time_text_embed.text_embedder.linear_2."),
        (r"^txt_in\.input_embedder\.", "context_embedder.proj_in."),
        (r"^txt_in\.t_embedder\.mlp\.0\.", "context_embedder.time_text_embed.timestep_embedder.linear_1."),
        (r"^txt_in\.t_embedder\.mlp\.2\.", "context_embedder.time_text_embed.timestep_embedder.linear_2."),
        (r"^txt_in\.c_embedder\.", "context_embedder.time_text_embed.text_embedder."),
        (
            r"^txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn_qkv\.",
            _REFINER + r".\1.attn.{to_q,to_k,to_v}.",
        ),
        (_OFFICIAL_REFINER + r"self_attn_proj\.", _REFINER + r".\1.attn.to_out.0."),
        (_OFFICIAL_REFINER + r"mlp\.fc1\.", _REFINER + r".\1.ff.net.0.proj."),
        (_OFFICIAL_REFINER + r"mlp\.fc2\.", _REFINER + r".\1.ff.net.2."),
        (
            r"^txt_in\.individual_token_refiner\.blocks\.(\d+)\.adaLN_modulation\.1\.",
            _REFINER + r".\1.norm_out.linear.",
        ),
        (r"^txt_in\.individual_token_refiner\.blocks\.", _REFINER + "."),
        (r"^double_blocks\.(\d+)\.img_mod\.linear\.", r"transformer_blocks.\1.norm1.linear."),
        (r"^double_blocks\.(\d+)\.txt_mod\.linear\.", r"transformer_blocks.\1.norm1_context.linear."),
        (r"^double_blocks\.(\d+)\.img_attn_qkv\.", r"transformer_blocks.\1.attn.{to_q,to_k,to_v}."),
        (r"^double_blocks\.(\d+)\.txt_attn_qkv\.", r"transformer_blocks.\1.attn.{add_q_proj,add_k_proj,add_v_proj}."),
        (r"^double_blocks\.(\d+)\.img_attn_([qk])_norm\.", r"transformer_blocks.\1.attn.norm_\2."),
        (r"^double_blocks\.(\d+)\.txt_attn_([qk])_norm\.", r"transformer_blocks.\1.attn.norm_added_\2."),
        (r"^double_blocks\.(\d+)\.img_attn_proj\.", r"transformer_blocks.\1.attn.to_out.0."),
        (r"^double_blocks\.(\d+)\.txt_attn_proj\.", r"transformer_blocks.\1.attn.to_add_out."),
        (r"^double_blocks\.(\d+)\.img_mlp\.fc1\.", r"transformer_blocks.\1.ff.net.0.proj."),
        (r"^double_blocks\.(\d+)\.img_mlp\.fc2\.", r"transformer_blocks.\1.ff.net.2."),
        (r"^double_blocks\.(\d+)\.txt_mlp\.fc1\.", r"transformer_blocks.\1.ff_context.net.0.proj."),
        (r"^double_blocks\.(\d+)\.txt_mlp\.fc2\.", r"transformer_blocks.\1.ff_context.net.2."),
        (r"^single_blocks\.(\d+)\.linear1\.", rf"single_transformer_blocks.\1.{_SINGLE_IN}."),
        (r"^single_blocks\.(\d+)\.linear2\.", r"single_transformer_blocks.\1.proj_out."),
        (r"^single_blocks\.(\d+)\.([qk])_norm\.", r"single_transformer_blocks.\1.attn.norm_\2."),
        (r"^single_blocks\.(\d+)\.modulation\.linear\.", r"single_transformer_blocks.\1.norm.linear."),
        (r"^final_layer\.linear\.", "proj_out."),
        (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    ),
    # shift and scale of the last norm stand the other way round there
    swapped_halves="final_layer.adaLN_modulation.1.",
)
TRANSFORMER_DIALECTS = (OFFICIAL, COMFY, COMFY_SCALE, DIFFUSERS)

COMFY_VAE = Dialect(
    "ComfyUI",
    (
        (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
        (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
        # the decoder's levels are counted from the other end
        (r"^decoder\.up_blocks\.0\.", "decoder.up.3."),
        (r"^decoder\.up_blocks\.1\.", "decoder.up.2."),
        (r"^decoder\.up_blocks\.2\.", "decoder.up.1."),
        (r"^decoder\.up_blocks\.3\.", "decoder.up.0."),
        (r"^(decoder\.up\.\d+)\.resnets\.", r"\1.block."),
        (r"^(decoder\.up\.\d+)\.upsamplers\.0\.", r"\1.upsample."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
        (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.conv_norm_out\.", ".norm_out."),
    ),
    convolutions=r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$",
)
VAE_DIALECTS = (OFFICIAL, COMFY_VAE)


@dataclass(frozen=True, slots=True)
class KeyView:
    """A checkpoint seen through official names, whatever its own layout and prefix."""

    checkpoint: Checkpoint
    dialect: Dialect
    prefix: str

    def names(self, key: str) -> tuple[str, ...]:
        """The file's names for official tensor `key`."""
        return tuple(self.prefix + source for source in self.dialect.sources(key))

    def __contains__(self, key: str) -> bool:
        return all(name in self.checkpoint.tensors for name in self.names(key))

    def info(self, key: str) -> TensorInfo:
        """Shape and dtype of official tensor `key`; parts are stacked along the first axis.

        Raises:
            WrongModelError: the file lacks it.
        """
        missing = [name for name in self.names(key) if name not in self.checkpoint.tensors]
        if missing:
            raise WrongModelError(
                f"{self.checkpoint.name} lacks {missing[0]}, which every such model has; "
                "it is incomplete: download it again, or choose the folder if it is one of several parts"
            )
        infos = [self.checkpoint.tensors[name] for name in self.names(key)]
        if len({info.shape[1:] for info in infos}) > 1 or not all(info.shape for info in infos):
            shapes = " and ".join(str(list(info.shape)) for info in infos)
            raise WrongModelError(
                f"{self.checkpoint.name}: {', '.join(self.names(key))} of {shapes} make no weight {key}; "
                "the file is damaged, download it again"
            )
        rows = sum(info.shape[0] for info in infos)
        return TensorInfo((rows, *infos[0].shape[1:]), infos[0].dtype)

    def load(self, key: str, shape: tuple[int, ...], read: ReadTensor) -> Tensor:
        """Official tensor `key` in numbers, joined from its parts."""
        parts = [plain_tensor(read(name), self.checkpoint.tensors[name]) for name in self.names(key)]
        return self.dialect.join(key, parts, shape)


def find_view(checkpoint: Checkpoint, dialects: tuple[Dialect, ...], probes: tuple[str, ...]) -> KeyView | None:
    """The dialect and prefix under which most of the official names `probes` are found; None if the first is not."""
    views = []
    for dialect in dialects:
        marker = dialect.sources(probes[0])[0]
        for name in checkpoint.tensors:
            if name.endswith(marker) and (len(name) == len(marker) or name[-len(marker) - 1] == "."):
                views.append(KeyView(checkpoint, dialect, name[: len(name) - len(marker)]))
                break
    return max(views, key=lambda view: sum(probe in view for probe in probes), default=None)


def to_official(tensors: Mapping[str, Tensor], dialect: Dialect, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A foreign state dict in official names; `like` is a state dict with the names and shapes wanted."""
    official = {}
    for key, wanted in like.items():
        parts = [tensors[name] for name in dialect.sources(key)]
        official[key] = dialect.join(key, parts, tuple(wanted.shape))
    return official
