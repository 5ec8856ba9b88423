"""The CLIP text encoder, of which only the pooled state is used.

Shapes: B batch, L tokens, P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import ClipTextConfig
from ..errors import ConditioningError
from .weights import KeyLayouts, load_weights

if TYPE_CHECKING:
    from transformers import CLIPTextConfig as Sizes

CLIP_LAYOUTS = KeyLayouts(
    label="CLIP text encoder",
    anchor="embeddings.token_embedding.weight",
    prefixes=("text_model.", ""),
    ignored=(
        r"embeddings\.position_ids$",  # older files store this buffer
        r"vision_model\.",
        r"text_projection(\.|$)",
        r"visual_projection(\.|$)",
        r"logit_scale$",
    ),
)


class ClipTextEncoder(nn.Module):
    """CLIP's text transformer; `model` holds the weights by their names without `text_model.`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, end_id: int) -> Tensor:
        """The normed state of each sequence's first end token.

        Attention is causal, so padding after that token changes nothing and needs no mask.

        Args:
            input_ids: [B, L] int64 with L at most `max_positions`.
            end_id: the end-of-text token of the tokenizer that made the ids.
        Returns:
            [B, P] in the weights' dtype.
        Raises:
            ConditioningError: a sequence without an end token.
        """
        is_end = input_ids == end_id
        if not bool(is_end.any(dim=1).all()):
            raise ConditioningError(
                f"token ids without the end token {end_id}: pooling reads the state there; "
                "use the tokenizer that belongs to this CLIP file"
            )
        states = self.model(input_ids=input_ids).last_hidden_state
        # found here because transformers takes the highest id instead when a config says 2
        first_end = is_end.int().argmax(dim=1)
        return states[torch.arange(len(states), device=states.device), first_end]

    @property
    def weights_device(self) -> torch.device:
        """Where token ids have to be; not called `device`, which ComfyUI writes on every module that it moves."""
        return self._embeddings.token_embedding.weight.device

    @property
    def num_rows(self) -> int:
        """Token ids that the embedding has rows for."""
        return self._embeddings.token_embedding.num_embeddings

    @property
    def max_positions(self) -> int:
        """The longest sequence, begin and end tokens included."""
        return self._embeddings.position_embedding.num_embeddings

    @property
    def _embeddings(self) -> Any:
        return self.model.embeddings


def clip_shapes(config: ClipTextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the encoder by its own name, without building it."""
    width, ffn = config.hidden_size, config.ffn_size
    matrices = {f"self_attn.{part}_proj": (width, width) for part in "kvq"} | {"self_attn.out_proj": (width, width)}
    matrices |= {"mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}
    norms = ["layer_norm1", "layer_norm2"]
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
    layer |= {f"{name}.bias": shape[:1] for name, shape in matrices.items()}
    layer |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (config.vocab_size, width),
        "embeddings.position_embedding.weight": (config.max_positions, width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    for index in range(config.num_layers):
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def build_clip(config: ClipTextConfig, *, dtype: torch.dtype, device: torch.device | str = "meta") -> ClipTextEncoder:
    """A CLIP text encoder without weights, frozen and in evaluation mode.

    Args:
        dtype: of the weights and of everything computed.
        device: "meta" takes no memory and waits for `load_clip`; any other gives random weights to train.
    """
    # transformers takes seconds to import, and nothing before the first prompt needs it
    from transformers import CLIPTextModel

    with torch.inference_mode(False):
        with torch.device(device):
            whole: Any = CLIPTextModel(_sizes(config))
        whole.to(dtype=dtype)
        # before version 5 the same module lies one attribute deeper
        model = getattr(whole, "text_model", whole)
        home = "cpu" if torch.device(device).type == "meta" else device
        # positions are in no file, and would stay on meta
        model.embeddings.position_ids = torch.arange(config.max_positions, device=home)[None]
        return ClipTextEncoder(model).eval().requires_grad_(False)


def load_clip(encoder: ClipTextEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Give the encoder its weights from a CLIP file, of the text part alone or of the whole model.

    Raises:
        WrongModelError: no CLIP text encoder, or one that does not fit the encoder's configuration.
    """
    load_weights(encoder.model, tensors, CLIP_LAYOUTS)


def _sizes(config: ClipTextConfig) -> Sizes:
    from transformers import CLIPTextConfig as Sizes

    options: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "attn_implementation": "sdpa",
        # pooling is done above; these only have to lie in the vocabulary
        "bos_token_id": 0,
        "eos_token_id": config.vocab_size - 1,
    }
    return Sizes(**options)
