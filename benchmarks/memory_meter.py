"""Peak bytes, operations and FLOPs of any PyTorch code at any size, without running it: everything is on meta.

    with torch.device("meta"):
        block = SingleStreamBlock(config).bfloat16()
        x = torch.empty(1, 119_056, 3072, dtype=torch.bfloat16)
    reading = measure(lambda: block(x, modulation, rope, sdpa), weights=[block])
    reading.peak, reading.num_ops, reading.flops

A storage counts from the operation that makes it until nothing refers to it any more, so views cost nothing, in-place
operations nothing new, and a temporary is free once it is dropped. What existed before counts all the time, as the
inputs do, unless it is named as weights (or as what lies in host memory), which are left out.

No values exist, so a condition that the code reads from a tensor is taken to hold: all numbers are finite.

Left out as well are workspaces of kernels and what an allocator wastes. Attention is one operation that makes its
output and nothing else, with 4 Lq Lk D FLOPs for each sample, as every fused kernel does it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ATTENTION = "attention"
ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})
# not declared as views, but they share their argument's storage all the same
UNDECLARED_VIEWS = frozenset({"_unsafe_view", "lift_fresh"})


@dataclass
class Reading:
    """What was measured.

    Args:
        peak: bytes alive at the worst moment.
        flops: of matrix products, convolutions and attention, a multiplication and an addition being two.
        attention_flops: attention's part of them.
        ops: how often each operation ran, by name; views and bare allocations are none.
        at_peak: bytes of each storage alive at the worst moment, as (name of the operation that made it, bytes).
    """

    peak: int = 0
    flops: int = 0
    attention_flops: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    at_peak: list[tuple[str, int]] = field(default_factory=list)

    @property
    def num_ops(self) -> int:
        """Operations altogether."""
        return self.ops.total()


def measure(run: Callable[[], object], *, inputs: object = (), weights: Iterable[nn.Module | Tensor] = ()) -> Reading:
    """Calls `run` without gradients under a meter.

    Args:
        run: called once; what it returns is alive at the end.
        inputs: tensors in any nesting that are alive from the start, whether an operation touches them or not.
        weights: what is not counted.
    """
    meter = Meter(weights=weights)
    with torch.no_grad(), meter:
        meter.watch(inputs)
        result = run()
    del result
    return meter.reading


class Meter:
    """A context in which every operation is followed.

    Args:
        weights: modules and tensors whose storages are not counted.
        device: the kind of device that is measured; tensors elsewhere are not counted. What is copied from meta
            to a real device is zeros, or nothing at all where it is copied into a tensor.
    """

    def __init__(self, *, weights: Iterable[nn.Module | Tensor] = (), device: str = "meta") -> None:
        self.reading = Reading()
        self.live = 0
        self.device = device
        self._sizes: dict[int, tuple[str, int]] = {}
        self._refs: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._ignored: dict[int, torch.UntypedStorage] = {}
        self._modes = (_Functions(self), _Operations(self))
        self._sees = True
        self.ignore(*weights)

    def __enter__(self) -> Meter:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)

    def ignore(self, *things: nn.Module | Tensor) -> None:
        """Leaves the storages of these out: weights that are counted elsewhere, memory of the host."""
        for thing in things:
            tensors = [thing] if isinstance(thing, Tensor) else [*thing.parameters(), *thing.buffers()]
            for tensor in tensors:
                storage = tensor.untyped_storage()
                self._forget(id(storage))
                self._ignored[id(storage)] = storage

    def watch(self, things: object) -> None:
        """Counts the storages of these from the start until they are freed."""
        for tensor in _tensors(things):
            self._add(tensor, "input", existed=True)

    def fused(self, function: Callable[..., Any], flops: int = 0) -> Callable[..., Any]:
        """The function as one kernel: one operation that makes only what it returns."""

        def kernel(*args: object, **kwargs: object) -> Any:
            self.watch((args, kwargs))
            with self._unseen():
                result = function(*args, **kwargs)
            self.made(getattr(function, "__name__", "fused"), result, flops)
            return result

        return kernel

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """An attention backend, [B, L, N, E] to [B, L_q, N, E], for code that would call a kernel of its own."""
        return self._attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    def made(self, name: str, result: object, flops: int = 0) -> None:
        """Notes one operation and what came out of it."""
        self.reading.ops[name] += 1
        self.reading.flops += flops
        for tensor in _tensors(result):
            self._add(tensor, name)

    def allocated(self, name: str, result: object) -> None:
        """Notes new tensors, or views of old ones, without an operation."""
        for tensor in _tensors(result):
            self._add(tensor, name)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        before, self._sees = self._sees, False
        try:
            yield
        finally:
            self._sees = before

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[..., L, E] each; the output lies in memory as [B, L, N, E], as fused kernels write it."""
        self.watch((q, k, v))
        shape = (*q.shape[:-1], v.shape[-1])
        with self._unseen():
            if q.dim() == 4:
                out = q.new_empty(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
            else:
                out = q.new_empty(shape)
        flops = 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        self.reading.attention_flops += flops
        self.made(ATTENTION, out, flops)
        return out

    def _add(self, tensor: Tensor, name: str, *, existed: bool = False) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if tensor.device.type != self.device or key in self._ignored:
            return
        known = self._sizes.get(key)
        if known is None:
            self._refs[key] = weakref.ref(storage, partial(self._freed, key))
        elif known[1] != size:  # resized in place
            self.live -= known[1]
        else:
            return
        self._sizes[key] = (name, size)
        self.live += size
        if existed:  # it was there at the worst moment so far too
            self.reading.peak += size
            self.reading.at_peak.append((name, size))
        elif self.live > self.reading.peak:
            self.reading.peak = self.live
            self.reading.at_peak = list(self._sizes.values())

    def _freed(self, key: int, _: object) -> None:
        self._forget(key)

    def _forget(self, key: int) -> None:
        if key in self._sizes:
            self.live -= self._sizes.pop(key)[1]
            del self._refs[key]


class _Operations(TorchDispatchMode):
    """Sees every operation below autograd."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(
        self,
        func: Any,  # an OpOverload
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.meter._sees:
            return func(*args, **kwargs)
        with self:  # in inference mode operations come whole that are made of others
            parts = func.decompose(*args, **kwargs) if func is not torch.ops.prim.device.default else NotImplemented
        if parts is not NotImplemented:
            return parts
        meter = self.meter
        meter.watch((args, kwargs))
        result = _run(func, args, kwargs)
        name = func.overloadpacket.__name__
        if _is_view(func) or name in ALLOCATIONS or not _tensors(result):
            meter.allocated(name, result)
        else:
            formula = flop_registry.get(func.overloadpacket)
            meter.made(name, result, formula(*args, **kwargs, out_val=result) if formula else 0)
        return result


class _Functions(TorchFunctionMode):
    """Sees what would be taken apart on its way to the operations, on meta in another way than on a GPU."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.meter._sees:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            return self.meter._attend(named["query"], named["key"], named["value"])
        if func is F.linear:
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    """The layer as it runs without a dispatch mode, under which PyTorch adds the bias of some inputs out of place."""
    if bias is None or input.dim() < 3 or input.is_contiguous():
        rows = input.reshape(-1, input.shape[-1])
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        return out.view(*input.shape[:-1], weight.shape[0])
    return (input @ weight.t()).add_(bias)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation; but from meta come zeros to a real device, and every condition holds."""
    name = func.overloadpacket.__name__
    if name == "_local_scalar_dense" and args[0].is_meta and args[0].dtype == torch.bool:
        return True
    if name == "copy_" and args[1].is_meta and not args[0].is_meta:
        return args[0]
    device = kwargs.get("device")
    if name == "_to_copy" and args[0].is_meta and device is not None and torch.device(device).type != "meta":
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=device)
    return func(*args, **kwargs)


def _is_view(func: Any) -> bool:
    """Whether an operation only looks at its argument in another way."""
    if func.overloadpacket.__name__ in UNDECLARED_VIEWS:
        return True
    aliases = [returned.alias_info for returned in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _tensors(things: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(things) if isinstance(leaf, Tensor)]
