"""The language model whose inner states condition the transformer.

Shapes: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import LlamaConfig
from ..errors import ConfigError
from .weights import KeyLayouts, load_weights

if TYPE_CHECKING:
    from transformers import LlamaConfig as Sizes
    from transformers import LlamaModel

HIDDEN_STATE_SKIP = 2
"""Layers left out at the end: states are read after layer 30 of 32, before any final norm."""

_PREFIXES = (
    "language_model.model.",  # LLaVA, saved before transformers 4.52
    "model.language_model.",  # LLaVA, saved since
    "language_model.",
    "model.",  # LlamaForCausalLM
    "",  # LlamaModel
)
_NOT_NEEDED = (
    r"norm\.weight$",
    r"(language_model\.)?lm_head\.",
    r"(model\.)?vision_tower\.",
    r"(model\.)?multi_modal_projector\.",
    r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$",
)


class LlamaTextEncoder(nn.Module):
    """Llama without its last layers, its final norm and its head.

    `model` holds the weights by the names of LlamaModel.
    """

    def __init__(self, model: LlamaModel, layouts: KeyLayouts) -> None:
        super().__init__()
        self.model = model
        self.layouts = layouts

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """States after the last kept layer.

        Args:
            input_ids: [B, L] int64, padded on the right if at all.
            attention_mask: [B, L], 1 for tokens and 0 for padding; None when nothing is padded, which is
                faster and gives the same states.
        Returns:
            [B, L, D] in the weights' dtype.
        """
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return output.last_hidden_state

    @property
    def weights_device(self) -> torch.device:
        """Where token ids have to be; not called `device`, which ComfyUI writes on every module that it moves."""
        return self.model.embed_tokens.weight.device

    @property
    def num_rows(self) -> int:
        """Token ids that the embedding has rows for."""
        return self.model.embed_tokens.num_embeddings


def llama_layouts(config: LlamaConfig, *, skip_layers: int = HIDDEN_STATE_SKIP) -> KeyLayouts:
    """The names that files give to a Llama of this size; skipped layers count as not needed."""
    skipped = range(config.num_layers - skip_layers, config.num_layers)
    return KeyLayouts(
        label=f"language model (Llama of {config.num_layers} layers)",
        anchor="embed_tokens.weight",
        prefixes=_PREFIXES,
        ignored=_NOT_NEEDED + tuple(rf"layers\.{i}\." for i in skipped),
    )


def llama_shapes(config: LlamaConfig, *, skip_layers: int = HIDDEN_STATE_SKIP) -> dict[str, tuple[int, ...]]:
    """Every tensor of the encoder by its own name, without building it."""
    width, keys = config.hidden_size, config.hidden_size // config.num_heads * config.num_kv_heads
    layer = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (config.ffn_size, width),
        "mlp.up_proj.weight": (config.ffn_size, width),
        "mlp.down_proj.weight": (width, config.ffn_size),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, width)}
    for index in range(config.num_layers - skip_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def build_llama(
    config: LlamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    skip_layers: int = HIDDEN_STATE_SKIP,
) -> LlamaTextEncoder:
    """A Llama text encoder without weights, frozen and in evaluation mode.

    Args:
        dtype: of the weights and of everything computed.
        device: "meta" takes no memory and waits for `load_llama`; any other gives random weights to train.
        skip_layers: the states are `hidden_states[-1 - skip_layers]` of the whole model; at least 1.
    Raises:
        ConfigError: nothing would be left of the model, or skip_layers is 0.
    """
    if not 1 <= skip_layers < config.num_layers:
        raise ConfigError(
            f"{skip_layers} skipped layers of {config.num_layers}: expected 1 to {config.num_layers - 1}; "
            "correct num_hidden_layers in the file's config metadata"
        )
    # transformers takes seconds to import, and nothing before the first prompt needs it
    from transformers import LlamaModel

    with torch.inference_mode(False):
        with torch.device(device):
            model: Any = LlamaModel(_sizes(config, config.num_layers - skip_layers))
        model.to(dtype=dtype)
        model.norm = nn.Identity()
        # rotary frequencies are in no file, and must neither stay on meta nor be rounded to dtype
        with torch.device("cpu" if torch.device(device).type == "meta" else device):
            model.rotary_emb = type(model.rotary_emb)(config=model.config)
        encoder = LlamaTextEncoder(model, llama_layouts(config, skip_layers=skip_layers))
        return encoder.eval().requires_grad_(False)


def load_llama(encoder: LlamaTextEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Give the encoder its weights from a Llama or LLaVA file, whichever of the known names it uses.

    Raises:
        WrongModelError: no language model, or one that does not fit the encoder's configuration.
    """
    load_weights(encoder.model, tensors, encoder.layouts)


def _sizes(config: LlamaConfig, num_kept: int) -> Sizes:
    from transformers import LlamaConfig as Sizes

    options: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": num_kept,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    return Sizes(**options)
