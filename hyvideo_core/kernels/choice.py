"""Which kernel stands in the place of each element-wise function: what is installed, fast here and right."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch

from ..errors import OptionError
from ..fallback import attempt
from ..model.elementwise import PLAIN, Elementwise
from . import kitchen
from .self_check import Site, check

logger = logging.getLogger(__name__)

OFF, AUTO, KITCHEN, TRITON = "off", "auto", "comfy-kitchen", "triton"
CHOICES = (OFF, AUTO, KITCHEN, TRITON)
LIBRARIES = {KITCHEN: "comfy_kitchen", TRITON: "triton"}
INSTEAD = "the next best is used"

Function = Callable[..., Any]


class Candidate(NamedTuple):
    """A kernel for one of the functions.

    Attributes:
        library: KITCHEN or TRITON.
        load: imports the library and gives the kernel.
    """

    library: str
    load: Callable[[], Function]


def _ours(name: str) -> Candidate:
    def load() -> Function:
        from . import triton_kernels

        kernel: Function = getattr(triton_kernels, name)
        return kernel

    return Candidate(TRITON, load)


CANDIDATES = {
    "modulated_norm": (Candidate(KITCHEN, kitchen.load_modulated_norm), _ours("modulated_norm")),
    # ours is one pass, theirs are two
    "gated_norm": (_ours("gated_norm"), Candidate(KITCHEN, kitchen.load_gated_norm)),
    "normed_heads": (Candidate(KITCHEN, kitchen.load_normed_heads), _ours("normed_heads")),
}
"""For each function of Elementwise its kernels, the best first. A gated residual alone is one pass in PyTorch too."""


def choose_kernels(choice: str, site: Site) -> Elementwise:
    """PyTorch's functions, with kernels in the place of those that have one which works here.

    Each is tried once, on a tiny input, and compared with PyTorch's; a failure costs one line in the log. `auto`
    tries none on a CPU, where PyTorch's own are the fast ones.

    Args:
        choice: one of CHOICES.
        site: where and in what the model computes, and its sizes.
    Raises:
        OptionError: another choice.
    """
    if choice not in CHOICES:
        raise OptionError(f"kernels {choice!r}, expected one of {', '.join(CHOICES)}")
    if choice == OFF or (choice == AUTO and not _runs_kernels(site.device)):
        return PLAIN
    libraries = [name for name in LIBRARIES if choice in (AUTO, name) and _is_there(name, is_asked_for=choice == name)]
    chosen, told = {}, []
    for function, candidates in CANDIDATES.items():
        plain = getattr(PLAIN, function)
        for candidate in candidates:
            if function in chosen or candidate.library not in libraries:
                continue
            what = f"{candidate.library}'s {function}"
            kernel = attempt(partial(_checked, candidate, function, plain, site), what, INSTEAD)
            if kernel is not None:
                chosen[function] = partial(_without_grad, kernel, plain)
                told.append(f"{function} by {candidate.library}")
    logger.info("element-wise kernels: %s", ", ".join(told) or "PyTorch's own")
    return Elementwise(**chosen) if chosen else PLAIN


def _runs_kernels(device: torch.device) -> bool:
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _is_there(library: str, *, is_asked_for: bool) -> bool:
    def found() -> bool:
        try:
            import_module(LIBRARIES[library])
        except ModuleNotFoundError as error:
            level = logging.WARNING if is_asked_for else logging.INFO
            logger.log(level, "element-wise kernels: %s is not installed (%s); %s", library, error, INSTEAD)
            return False
        return True

    return bool(attempt(found, library, INSTEAD))


def _checked(candidate: Candidate, function: str, plain: Function, site: Site) -> Function:
    kernel = candidate.load()
    check(function, kernel, plain, site)
    return kernel


def _without_grad(kernel: Function, plain: Function, *inputs: Any) -> Any:
    """What a kernel gives if no gradient is wanted, since none of them has one."""
    return plain(*inputs) if torch.is_grad_enabled() else kernel(*inputs)
