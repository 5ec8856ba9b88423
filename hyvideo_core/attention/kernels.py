"""Every attention kernel that may be used, by name. Libraries are imported when one of theirs is tried, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.attention as torch_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .plain import AttentionBackend, sdpa


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute attention.

    Args:
        name: for widgets and the log.
        load: imports what it needs and gives the function; raises where that is not installed.
        package: what to install.
        is_lossy: computes in 8 bits, so never chosen unless asked for.
        copies: memory that it takes beside its result, as a part of what q, k and v take.
    """

    name: str
    load: Callable[[], AttentionBackend]
    package: str = "torch"
    is_lossy: bool = False
    copies: float = 0.0


def _by_torch(backend: SDPBackend) -> Callable[[], AttentionBackend]:
    """One of PyTorch's own kernels; which one it may use is said for each call and taken back after it."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v)

    return lambda: attention


def _by_registered(implementation: str) -> Callable[[], AttentionBackend]:
    """PyTorch's flash attention with another library's kernels in it, which torch from 2.11 on offers."""

    def load() -> AttentionBackend:
        if not hasattr(torch_attention, "current_flash_attention_impl"):
            raise ModuleNotFoundError("this PyTorch takes no kernels from outside")
        by_flash = _by_torch(SDPBackend.FLASH_ATTENTION)()

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with _registered(implementation):
                return by_flash(q, k, v)

        return attention

    return load


@contextmanager
def _registered(implementation: str) -> Iterator[None]:
    """Puts a library's kernels into PyTorch, which holds for the whole process, and takes them out again."""
    before = torch_attention.current_flash_attention_impl()
    if before == implementation:
        yield
        return
    torch_attention.activate_flash_attention_impl(implementation)
    try:
        yield
    finally:
        if before is None:
            torch_attention.restore_flash_attention_impl()
        else:
            torch_attention.activate_flash_attention_impl(before)


def _flash_attn_2() -> AttentionBackend:
    from flash_attn import flash_attn_func

    return lambda q, k, v: _first(flash_attn_func(q, k, v))


def _flash_attn_3() -> AttentionBackend:
    from flash_attn_interface import flash_attn_func

    return lambda q, k, v: _first(flash_attn_func(q, k, v))


def _flash_attn_4() -> AttentionBackend:
    from flash_attn.cute import flash_attn_func

    return lambda q, k, v: _first(flash_attn_func(q, k, v))


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output alone: some versions give the log-sum-exp beside it."""
    return result[0] if isinstance(result, tuple) else result


def _sage() -> AttentionBackend:
    import sageattention

    sageattn = sageattention.sageattn
    # version 1 subtracts the mean of the keys from the keys that it is given
    spoils_keys = not hasattr(sageattention, "sageattn_qk_int8_pv_fp16_triton")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sageattn(q, k.clone() if spoils_keys else k, v, tensor_layout="NHD", is_causal=False)

    return attention


def _kitchen_int8() -> AttentionBackend:
    from comfy_kitchen import int8_attention

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return int8_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    return attention


FLASH_ATTN_4 = (
    Kernel("flash_attn_4", _flash_attn_4, "flash-attn-4"),
    Kernel("flash_attn_4 in torch", _by_registered("FA4"), "flash-attn-4 and torch 2.11"),
)
FLASH_ATTN_3 = (
    Kernel("flash_attn_3", _flash_attn_3, "flash-attn-3"),
    Kernel("flash_attn_3 in torch", _by_registered("FA3"), "flash-attn-3 and torch 2.11"),
)
FLASH_ATTN_2 = (Kernel("flash_attn_2", _flash_attn_2, "flash-attn"),)
CUDNN = (Kernel("cudnn", _by_torch(SDPBackend.CUDNN_ATTENTION)),)
FLASH = (Kernel("flash", _by_torch(SDPBackend.FLASH_ATTENTION)),)
EFFICIENT = (Kernel("efficient", _by_torch(SDPBackend.EFFICIENT_ATTENTION)),)
SAGE = (Kernel("sage", _sage, "sageattention", is_lossy=True, copies=1.0),)
KITCHEN_INT8 = (Kernel("int8", _kitchen_int8, "comfy-kitchen", is_lossy=True, copies=0.5),)
