"""What llama.cpp calls the tensors of a Llama."""

from __future__ import annotations

LLAMA_CPP = {
    "embed_tokens.": "token_embd.",
    "lm_head.": "output.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.",
    "layers.": "blk.",
}


def llama_cpp_name(name: str) -> str:
    """For a name of LlamaModel or LlamaForCausalLM."""
    name = name.removeprefix("model.")
    if name == "norm.weight":
        return "output_norm.weight"
    for theirs, stored in LLAMA_CPP.items():
        name = name.replace(theirs, stored)
    return name
