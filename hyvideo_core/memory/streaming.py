"""A model whose weights come to the device while it computes and are gone when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .groups import WeightGroup
from .layout import REST
from .residency import Residency, fetch_now
from .ring import Ring, Slot

MIN_SLOTS = 2
"""Blocks that the ring has room for at least: one that computes and one that comes."""


class StreamedModel:
    """A context in which a model computes, its weights fetched where they are not kept on the device.

    While one block computes, the next ones are copied. However it ends, no weight that is not kept stays on the device,
    and after an error none at all.

    Args:
        residency: of the model itself.
        model: the model, or a view of it with changed layers; what only the view has is fetched with the part that
            it lies in.
        prefetch: blocks that are fetched ahead, where the ring has room.
        slots: how many of the largest blocks the ring has room for.
    """

    def __init__(self, residency: Residency, model: nn.Module, *, prefetch: int = 2, slots: int = 3) -> None:
        self._residency, self._device = residency, residency.device
        self._prefetch, self._slots = prefetch, max(slots, MIN_SLOTS)
        layout = residency.layout
        self._pins = layout.pays_to_pin and self._device.can_pin
        own = {id(tensor) for group in residency.groups.values() for tensor in group.tensors}
        tensors = layout.tensors(model)
        self._groups = {
            name: [residency.groups[name], WeightGroup(tensor for tensor in tensors[name] if id(tensor) not in own)]
            for name in layout.parts
        }
        self._walk = {name: index for index, name in enumerate(layout.walked)}
        self._modules = {name: model.get_submodule(name) for name in (*layout.walked, *layout.on_call)}
        self._names = {id(module): name for name, module in self._modules.items()}
        self._hooked = [*layout.on_call, *(layout.walked if layout.by_calls else ())]
        self._at_home = [model.get_submodule(name) for name in layout.at_home]
        self._hooks: list[Any] = []
        self._calls: list[tuple[str, AbstractContextManager[nn.Module]]] = []
        self._ring: Ring | None = None
        self._held: list[str] = []

    def __enter__(self) -> StreamedModel:
        with ExitStack() as undo:
            undo.callback(self._close, failed=True)
            self._open()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=kind is not None)

    @contextmanager
    def hold(self, module: nn.Module) -> Iterator[nn.Module]:
        """Inside, the weights of a part of the model are on the device, to be used no longer than that."""
        name = self._names[id(module)]
        if name in self._held:
            yield module
            return
        brought, slots = self._bring(name)
        self._held.append(name)
        try:
            yield module
        finally:
            self._held.remove(name)
            self._let_go(name, brought, slots)

    @torch.inference_mode(False)
    def _bring(self, name: str) -> tuple[list[WeightGroup], list[Slot]]:
        """Binds what is missing of a part, and fetches ahead; gives the groups and the slots that they lie in."""
        brought, slots = [], []
        for group in self._groups[name]:
            if not group.is_bound and group.num_bytes:
                slot = self._slot(group) if name in self._walk else None
                if slot is None:
                    group.bind(fetch_now(group, self._device))
                else:
                    slots.append(slot)
                    self._device.compute.wait_event(slot.ready)
                    group.bind(slot.memory)
                brought.append(group)
            group.is_held = True
        if name in self._walk:
            self._fetch_ahead(name)
        return brought, slots

    @torch.inference_mode(False)
    def _let_go(self, name: str, brought: list[WeightGroup], slots: list[Slot]) -> None:
        for group in self._groups[name]:
            group.is_held = False
        for group in brought:
            group.unbind()
        if slots:
            done = self._device.compute.record_event()
            for slot in slots:
                slot.done, slot.is_open = done, False

    def _slot(self, group: WeightGroup) -> Slot | None:
        """Where a group of a block lies in the ring; None where nested holds leave no room."""
        ring = self._open_ring()
        slot = ring.find(group) or ring.fetch(group)
        if slot is None:
            ring.clear()
            slot = ring.fetch(group)
        return slot

    def _fetch_ahead(self, name: str) -> None:
        """Fetches the next blocks that are not kept, round and round, as far as the ring has room."""
        names, ahead = list(self._walk), 0
        after = self._walk[name] + 1
        for following in (*names[after:], *names[: after - 1]):
            missing = [group for group in self._groups[following] if not group.is_bound and group.num_bytes]
            if not missing:
                continue
            if ahead == self._prefetch:
                return
            ahead += 1
            ring = self._open_ring()
            if any(not ring.holds(group) and ring.fetch(group) is None for group in missing):
                return

    def _open_ring(self) -> Ring:
        if self._ring is None:
            sizes = [sum(group.num_bytes for group in self._groups[name]) for name in self._walk]
            self._ring = Ring(self._device, min(self._slots * max(sizes), sum(sizes)))
        return self._ring

    @torch.inference_mode(False)
    def _open(self) -> None:
        for groups in self._groups.values():
            for group in groups:
                if self._pins and not group.is_bound:
                    group.pack(self._device)
        for group in self._groups[REST]:
            group.bind(fetch_now(group, self._device))
        for name in self._hooked:
            self._hold_when_called(name)
        for module in self._at_home:
            self._compute_at_home(module)

    def _close(self, *, failed: bool) -> None:
        is_sound = False
        try:
            self._calls.clear()
            for hook in self._hooks:
                hook.remove()
            self._device.copies.synchronize()  # the homes may move or go from now on
            is_sound = not failed
        finally:
            self._leave()
            if not is_sound:
                self._residency.clear()

    @torch.inference_mode(False)
    def _leave(self) -> None:
        for name, (own, beside) in self._groups.items():
            beside.unbind()
            if self._residency.is_kept(name):
                own.is_held = False
            else:
                own.unbind()
        self._held.clear()
        self._ring = None

    def _hold_when_called(self, name: str) -> None:
        module = self._modules[name]

        def enter(_module: nn.Module, _args: object) -> None:
            hold = self.hold(module)
            hold.__enter__()
            self._calls.append((name, hold))

        def leave(_module: nn.Module, _args: object, _result: object) -> None:
            if self._calls and self._calls[-1][0] == name:
                self._calls.pop()[1].__exit__(None, None, None)

        self._hooks.append(module.register_forward_pre_hook(enter))
        self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def _compute_at_home(self, module: nn.Module) -> None:
        """Lets a module compute where its weights are at home, and its result come to the device."""

        def to_home(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            home = next(module.parameters()).device
            return tuple(arg.to(home) for arg in args)

        def to_device(_module: nn.Module, _args: object, result: torch.Tensor) -> torch.Tensor:
            return result.to(self._device.device)

        self._hooks.append(module.register_forward_pre_hook(to_home))
        self._hooks.append(module.register_forward_hook(to_device))
