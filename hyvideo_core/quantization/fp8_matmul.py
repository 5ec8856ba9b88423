"""Matrix products in fp8, on cards that have them; always with scales, never in place of anything unasked."""

from __future__ import annotations

import logging
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fallback import attempt
from .fp8 import E4M3_MAX, FP8_DTYPES, Fp8Linear

logger = logging.getLogger(__name__)

MIN_CAPABILITY = (8, 9)
MULTIPLE = 16  # sides of a weight that the kernels take
TINY = torch.finfo(torch.float32).tiny
MAX_ERROR = 0.08
"""Relative error of a product whose factors are both rounded to fp8; it is 0.04 where kernels work."""


def has_fp8_matmul(device: torch.device) -> bool:
    """Whether a device multiplies in fp8: NVIDIA cards from Ada (compute capability 8.9) on."""
    if device.type != "cuda" or torch.version.hip is not None or not hasattr(torch, "_scaled_mm"):
        return False
    return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def use_fp8_matmul(model: nn.Module, device: torch.device) -> int:
    """Lets a model's fp8 layers multiply in fp8 where the device can; elsewhere weights stay widened for each call.

    Before the first one does, a small product is compared with float32: some builds of PyTorch lack the kernels.
    Layers that their file marks for full precision, and those whose sides the kernels do not take, are left alone.

    Returns:
        How many layers do so from now on.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Fp8Linear)]
    if not has_fp8_matmul(device):
        logger.info(
            "fp8_matmul: %s does not multiply in fp8 (NVIDIA from compute capability %s.%s on does); "
            "fp8 weights are widened instead",
            device,
            *MIN_CAPABILITY,
        )
        return 0
    fitting = [layer for layer in layers if fits_kernels(layer)]
    kinds = {(layer.weight.dtype, layer.compute_dtype) for layer in fitting}
    tries = [partial(try_product, device, *kind) for kind in sorted(kinds, key=str)]
    if not all(attempt(one, "fp8_matmul", "fp8 weights are widened instead") for one in tries):
        return 0
    for layer in fitting:
        layer.multiply = scaled_product
    logger.info("fp8_matmul: %s of %s fp8 layers multiply in fp8", len(fitting), len(layers))
    return len(fitting)


def fits_kernels(layer: Fp8Linear) -> bool:
    """Whether a layer may multiply in fp8, by its sizes and by what its file says."""
    sizes = (layer.in_features, layer.out_features)
    is_fp8 = layer.weight.dtype in FP8_DTYPES
    return is_fp8 and not layer.is_full_precision and not any(size % MULTIPLE for size in sizes)


def try_product(device: torch.device, weight_dtype: torch.dtype, dtype: torch.dtype) -> bool:
    """A small `scaled_product`, compared with float32; True.

    Raises:
        ArithmeticError: the kernels give wrong numbers. Where there are none, PyTorch raises what it likes.
    """
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(48, 64, generator=random), torch.randn(32, 64, generator=random)
    given = x.to(device, dtype), weight.to(device, weight_dtype), torch.ones(1, device=device), None
    expected = F.linear(x, weight.to(weight_dtype).float())
    error = float((scaled_product(*given).float().cpu() - expected).norm() / expected.norm())
    if not error <= MAX_ERROR:  # so that NaN is wrong
        raise ArithmeticError(f"its error is {error:.1%} against float32, allowed are {MAX_ERROR:.0%}")
    return True


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """x [..., in] times fp8 weight [out, in] with its scale, plus bias: [..., out] in x's dtype.

    x is rounded to e4m3 with one scale for all of it, chosen so that its largest number is fp8's largest. A weight
    with a scale for each row enters with the scales' mean, which keeps the product in range; what each row
    differs by is multiplied afterwards.
    """
    flat = x.reshape(-1, x.shape[-1])
    x_scale = (flat.abs().amax().float() / E4M3_MAX).clamp(min=TINY)
    small = (flat / x_scale).to(torch.float8_e4m3fn)
    is_by_row = scale is not None and scale.numel() > 1
    # kernels take no bias with results of 32 bits
    takes_bias = not is_by_row and x.dtype != torch.float32
    common = torch.ones((), device=x.device) if scale is None else scale.mean()
    product = torch._scaled_mm(
        small,
        weight.t(),
        scale_a=x_scale,
        scale_b=common,
        bias=bias if takes_bias else None,
        out_dtype=x.dtype,
    )
    if scale is not None and is_by_row:
        product = product.mul_((scale / common).reshape(-1))
    if bias is not None and not takes_bias:
        product = product.add_(bias)
    return product.reshape(*x.shape[:-1], -1)
