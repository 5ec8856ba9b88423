"""Runs our Triton kernels in Triton's interpreter, on the CPU, in a process of its own, and prints their errors.

Usage: TRITON_INTERPRET=1 python in_interpreter.py ALIAS_FOLDER
"""

import json
import sys
from dataclasses import fields

import torch
import triton
import triton.language as tl


@triton.jit
def write_one(x_ptr):
    tl.store(x_ptr, 1.0)


def interpreter_works() -> bool:
    """Older ones leave tensors of the CPU as they were."""
    x = torch.zeros(1)
    write_one[(1,)](x)
    return bool(x == 1)


def relative_errors(plain, kernels, function: str, given, expected) -> list[float]:
    """Of each tensor that a kernel gives or leaves behind."""
    from hyvideo_nodes.hyvideo_core.kernels.self_check import _tensors

    result = getattr(kernels, function)(*given)
    wanted = getattr(plain, function)(*expected)
    pairs = zip(_tensors((result, given)), _tensors((wanted, expected)), strict=True)
    return [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs]


def main() -> None:
    """Every function at sizes of several kinds."""
    sys.path.insert(0, sys.argv[1])
    from hyvideo_nodes.hyvideo_core.kernels import choose_kernels
    from hyvideo_nodes.hyvideo_core.kernels.self_check import SAMPLES, Site
    from hyvideo_nodes.hyvideo_core.model.elementwise import PLAIN, Rope

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    errors, cpu = {}, torch.device("cpu")
    if not interpreter_works():
        json.dump(None, sys.stdout)
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        site = Site(cpu, dtype, 96, 3, 32)  # nothing but the head size is a power of two
        chosen = choose_kernels("triton", site)
        for function, sample in SAMPLES.items():
            errors[f"{function} {dtype}"] = max(relative_errors(PLAIN, chosen, function, sample(site), sample(site)))
    chosen = choose_kernels("triton", Site(cpu, torch.float32, 96, 2, 32))
    replaced = sum(getattr(chosen, one.name) is not getattr(PLAIN, one.name) for one in fields(PLAIN))
    texts = [SAMPLES["normed_heads"](Site(cpu, torch.float32, 96, 2, 32)) for _ in range(2)]
    texts = [(*given[:3], Rope(given[3].cos[:0], given[3].sin[:0])) for given in texts]
    errors["text alone"] = max(relative_errors(PLAIN, chosen, "normed_heads", *texts))
    json.dump({"errors": errors, "replaced": replaced}, sys.stdout)


if __name__ == "__main__":
    main()
