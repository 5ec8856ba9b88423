"""Attention kernels are checked before they are used, and what fails is replaced by the next best."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable

import pytest
import torch
from hyvideo_nodes.hyvideo_core.attention import AUTO, CHOICES, PLAIN, ChosenAttention, choose_attention, sdpa
from hyvideo_nodes.hyvideo_core.attention import choice as choice_module
from hyvideo_nodes.hyvideo_core.attention.kernels import Kernel
from hyvideo_nodes.hyvideo_core.errors import OptionError


class KernelError(Exception):
    """As libraries have them: no subclass of anything."""


def right(q, k, v, *args, **kwargs):
    """[B, L, N, E] as flash-attn and sageattention take them."""
    return sdpa(q, k, v)


def wrong(q, k, v, *args, **kwargs):
    return sdpa(q, k, v) * 1.2


def not_a_number(q, k, v, *args, **kwargs):
    return sdpa(q, k, v) / 0.0 * 0.0


def raising(q, k, v, *args, **kwargs):
    raise KernelError("no kernel image is available\nfor this device")


def transposed(kernel: Callable) -> Callable:
    """The same on [B, N, L, E], as comfy-kitchen takes them."""

    def call(q, k, v, **kwargs):
        return kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    return call


def install(monkeypatch, name: str, kernel: Callable | None) -> list[int]:
    """Puts a library that holds one kernel where imports find it, or one that is missing; gives a log of its calls."""
    calls: list[int] = []

    def counted(q, k, v, *args, **kwargs):
        calls.append(q.shape[0])
        return kernel(q, k, v, *args, **kwargs)

    module_name, attribute = LIBRARIES[name]
    parts = module_name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        module = types.ModuleType(path)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, path, module if kernel else None)
        if kernel and depth > 1:
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    if kernel:
        setattr(sys.modules[module_name], attribute, transposed(counted) if name == "int8" else counted)
    return calls


LIBRARIES = {
    "flash_attn_2": ("flash_attn", "flash_attn_func"),
    "flash_attn_3": ("flash_attn_interface", "flash_attn_func"),
    "flash_attn_4": ("flash_attn.cute", "flash_attn_func"),
    "sage": ("sageattention", "sageattn"),
    "int8": ("comfy_kitchen", "int8_attention"),
}


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """Whatever is installed here is out of reach."""
    for name in LIBRARIES:
        install(monkeypatch, name, None)


@pytest.fixture
def qkv():
    """Strided views of one buffer, two samples."""
    buffer = torch.randn(2, 50, 3, 3, 16, generator=torch.Generator().manual_seed(1))
    return buffer.unbind(2)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_is_right_is_used_after_one_check(monkeypatch, caplog, qkv, name):
    calls = install(monkeypatch, name, right)
    attention = ChosenAttention(name)
    for _ in range(3):
        assert torch.equal(attention(*qkv), sdpa(*qkv))
    checks = 2  # plain numbers and outliers
    assert len(calls) == checks + 3
    assert warnings(caplog) == []


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (wrong, "20.0% against float32"),
        (not_a_number, "nan%"),
        (raising, "KernelError: no kernel image"),
        (None, "is not installed"),
    ],
    ids=["wrong numbers", "NaN", "raising", "missing"],
)
def test_a_library_that_fails_costs_one_line_and_gives_way_for_good(monkeypatch, caplog, qkv, name, kernel, reason):
    calls = install(monkeypatch, name, kernel)
    attention = ChosenAttention(name)
    for _ in range(3):
        assert torch.equal(attention(*qkv), sdpa(*qkv))
    about = [line for line in warnings(caplog) if line.startswith(f"attention {name} ")]
    assert len(about) == 1
    assert reason in about[0]
    assert "the next best is used" in about[0]
    assert len(calls) <= 1


def test_the_next_best_flash_attention_takes_over(monkeypatch, caplog, qkv):
    install(monkeypatch, "flash_attn_3", raising)
    calls = install(monkeypatch, "flash_attn_2", right)
    assert torch.equal(ChosenAttention("flash_attn_4")(*qkv), sdpa(*qkv))
    assert len(calls) == 3


def test_a_kernel_that_fails_in_a_later_call_is_replaced_in_that_call(monkeypatch, caplog, qkv):
    def fails_on_long(q, k, v, *args, **kwargs):
        return raising(q, k, v) if q.shape[1] == 50 else right(q, k, v)

    calls = install(monkeypatch, "flash_attn_3", fails_on_long)
    below = install(monkeypatch, "flash_attn_2", right)
    attention = ChosenAttention("flash_attn_3")
    for _ in range(2):
        assert torch.equal(attention(*qkv), sdpa(*qkv))
    assert (len(calls), len(below)) == (3, 4)
    assert [line for line in warnings(caplog) if "flash_attn_3 does" in line] == [
        "attention flash_attn_3 does not work here (KernelError: no kernel image is available); the next best is used"
    ]


def test_out_of_memory_is_nobodys_fault(monkeypatch, qkv):
    def full(q, k, v, *args, **kwargs):
        if q.shape[1] == 50:
            raise torch.OutOfMemoryError("full")
        return right(q, k, v)

    install(monkeypatch, "flash_attn_2", full)
    attention = ChosenAttention("flash_attn_2")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            attention(*qkv)


@pytest.mark.parametrize("name", ["int8", "sage"])
def test_eight_bits_may_lose_a_little_and_never_step_in_for_another(monkeypatch, qkv, name):
    def coarse(q, k, v, *args, **kwargs):
        return sdpa(q, k, v) * 1.03

    install(monkeypatch, name, coarse)
    assert torch.allclose(ChosenAttention(name)(*qkv), sdpa(*qkv) * 1.03)
    lossy = [kernel for kernels in CHOICES.values() for kernel in kernels if kernel.is_lossy]
    assert {kernel.name for kernel in lossy} == {"int8", "sage"}
    assert all(len(CHOICES[kernel.name]) == 1 for kernel in lossy)


def test_an_exact_library_may_not_lose_as_much(monkeypatch, caplog, qkv):
    install(monkeypatch, "flash_attn_2", lambda q, k, v: sdpa(q, k, v) * 1.03)
    assert torch.equal(ChosenAttention("flash_attn_2")(*qkv), sdpa(*qkv))


def test_eight_bits_without_a_remedy_for_outliers_are_refused(monkeypatch, caplog, qkv):
    def rounded(q, k, v, *args, **kwargs):
        step = k.abs().amax() / 127
        return sdpa(q, (k / step).round() * step, v)

    install(monkeypatch, "sage", rounded)
    assert torch.equal(ChosenAttention("sage")(*qkv), sdpa(*qkv))
    assert "with outliers" in warnings(caplog)[0]


def test_a_kernel_that_spoils_its_inputs_is_refused(monkeypatch, caplog, qkv):
    def spoils(q, k, v, *args, **kwargs):
        k -= k.mean(dim=1, keepdim=True)
        return sdpa(q, k, v)

    install(monkeypatch, "flash_attn_2", spoils)
    before = qkv[1].clone()
    ChosenAttention("flash_attn_2")(*qkv)
    assert torch.equal(qkv[1], before)
    assert "writes into its inputs" in warnings(caplog)[0]
    install(monkeypatch, "sage", spoils)  # as its first version does: it gets keys of its own
    assert torch.allclose(ChosenAttention("sage")(*qkv), sdpa(*qkv), atol=1e-6)
    assert torch.equal(qkv[1], before)


def test_a_library_that_gives_more_than_the_output_is_understood(monkeypatch, qkv):
    install(monkeypatch, "flash_attn_3", lambda q, k, v: (sdpa(q, k, v), q.sum()))
    assert torch.equal(ChosenAttention("flash_attn_3")(*qkv), sdpa(*qkv))


def test_pytorchs_own_kernels_leave_no_switch_behind(qkv):
    def switches():
        cuda = torch.backends.cuda
        return (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        )

    before = switches()
    for name in ("cudnn", "flash", "efficient"):
        assert torch.allclose(ChosenAttention(name)(*qkv), sdpa(*qkv), atol=1e-6)
        assert switches() == before


def test_the_random_numbers_of_the_process_stay_as_they_were(monkeypatch, qkv):
    install(monkeypatch, "sage", right)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ChosenAttention("sage")(*qkv)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_verdict_holds_for_its_dtype_and_head_size(monkeypatch, caplog, qkv):
    def no_half(q, k, v, *args, **kwargs):
        return raising(q, k, v) if q.dtype == torch.float16 else right(q, k, v)

    calls = install(monkeypatch, "flash_attn_2", no_half)
    attention = ChosenAttention("flash_attn_2")
    half = [x.half() for x in qkv]
    assert torch.equal(attention(*half), sdpa(*half))
    assert torch.equal(attention(*qkv), sdpa(*qkv))
    assert len(calls) == 1 + 3


def test_queries_may_be_fewer_than_keys(monkeypatch, qkv):
    install(monkeypatch, "flash_attn_2", right)
    q, k, v = qkv
    assert torch.equal(ChosenAttention("flash_attn_2")(q[:, :7], k, v), sdpa(q[:, :7], k, v))


def test_auto_leaves_the_cpu_and_short_sequences_to_pytorch(monkeypatch, qkv):
    calls = install(monkeypatch, "flash_attn_2", right)
    assert torch.equal(ChosenAttention(AUTO)(*qkv), sdpa(*qkv))
    assert calls == []


def test_auto_takes_the_fastest_of_those_that_are_right(monkeypatch, caplog, qkv):
    now = [0.0]

    def taking(seconds, kernel=sdpa):
        def attention(q, k, v):
            now[0] += seconds
            return kernel(q, k, v)

        return attention

    kernels = {"slow": taking(3.0), "fast": taking(1.0), "faster but wrong": taking(0.5, wrong), "same": taking(2.0)}
    monkeypatch.setitem(CHOICES, AUTO, [Kernel(name, lambda kernel=kernel: kernel) for name, kernel in kernels.items()])
    monkeypatch.setattr(choice_module, "OWN", choice_module.Working("own", taking(2.0)))
    chosen = ChosenAttention(AUTO, clock=lambda: now[0])
    site = choice_module.site_of(qkv[0])
    with caplog.at_level(logging.INFO):
        ranked = chosen._rank(site, num_heads=3, num_tokens=50)
    assert [one.name for one in ranked] == ["fast"]
    assert "own 2000.00, slow 3000.00, fast 1000.00, same 2000.00" in caplog.text


def test_auto_passes_over_what_fails_with_many_tokens(monkeypatch, caplog, qkv):
    def short_only(q, k, v):
        return sdpa(q, k, v) if q.shape[1] < 1500 else raising(q, k, v)

    monkeypatch.setitem(CHOICES, AUTO, [Kernel("short", lambda: short_only), Kernel("any", lambda: right)])
    now = [0.0]

    def slow(q, k, v):
        now[0] += 1.0
        return sdpa(q, k, v)

    monkeypatch.setattr(choice_module, "OWN", choice_module.Working("own", slow))
    chosen = ChosenAttention(AUTO, clock=lambda: now[0])
    ranked = chosen._rank(choice_module.site_of(qkv[0]), num_heads=3, num_tokens=1500)
    assert [one.name for one in ranked] == ["any"]
    assert len(warnings(caplog)) == 1
    assert "attention short does not work here (KernelError: no kernel image is available)" in warnings(caplog)[0]


def test_memory_that_runs_out_in_a_check_does_not_count_against_the_kernel(monkeypatch, qkv):
    failures = [torch.OutOfMemoryError("full")]

    def full_once(q, k, v, *args, **kwargs):
        if failures:
            raise failures.pop()
        return right(q, k, v)

    calls = install(monkeypatch, "flash_attn_2", full_once)
    attention = ChosenAttention("flash_attn_2")
    with pytest.raises(torch.OutOfMemoryError):
        attention(*qkv)
    assert torch.equal(attention(*qkv), sdpa(*qkv))
    checks = 2
    assert len(calls) == 1 + checks + 1


def test_the_plain_choice_is_the_plain_function():
    assert choose_attention(PLAIN) is sdpa


def test_a_name_that_nobody_knows_is_refused():
    with pytest.raises(OptionError, match=r"attention 'xformers', expected one of sdpa, auto"):
        choose_attention("xformers")


@pytest.mark.skipif(not hasattr(torch.nn.attention, "activate_flash_attention_impl"), reason="needs torch 2.11")
def test_kernels_inside_pytorch_are_there_for_one_call_alone(monkeypatch, qkv):
    class Handle:
        def __init__(self):
            log.append("in")

        def remove(self):
            log.append("out")

    log: list[str] = []
    registry = sys.modules["torch.nn.attention._registry"]
    monkeypatch.setitem(registry._FLASH_ATTENTION_IMPLS, "FA3", Handle)
    assert torch.allclose(ChosenAttention("flash_attn_3")(*qkv), sdpa(*qkv), atol=1e-6)
    checks = 2
    assert log == ["in", "out"] * (checks + 1)
    assert torch.nn.attention.current_flash_attention_impl() is None
