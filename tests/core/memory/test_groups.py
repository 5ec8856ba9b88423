"""Tensors in and out of one piece of memory, as they were."""

from __future__ import annotations

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.memory import MemoryOptions, Residency, transformer_layout
from hyvideo_nodes.hyvideo_core.memory.groups import ALIGNMENT, PAGE, WeightGroup
from hyvideo_nodes.hyvideo_core.memory.ring import Ring

from .fake_device import FakeDevice
from .test_streaming import make_model

TENSORS = {
    "float32": torch.randn(3, 5),
    "bfloat16": torch.randn(7).bfloat16(),
    "fp8": torch.randn(3, 3).to(torch.float8_e4m3fn),
    "bytes": torch.arange(11, dtype=torch.uint8),
    "whole numbers": torch.arange(6).reshape(2, 3),
    "truth": torch.tensor([True, False, True]),
    "one number": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "transposed": torch.randn(4, 6).t(),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "every second": torch.randn(8, 4)[::2],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "in the middle": torch.randn(10)[3:7],
}


@pytest.mark.parametrize("packed", [False, True])
def test_tensors_of_every_form_come_back_as_they_were(packed):
    tensors = {name: tensor.clone(memory_format=torch.preserve_format) for name, tensor in TENSORS.items()}
    tensors |= {name: TENSORS[name] for name in ("every second", "expanded", "in the middle")}
    group, device = WeightGroup(tensors.values()), FakeDevice()
    if packed:
        group.pack(device)
    memory = device.allocate(group.num_bytes)
    group.fetch(memory, device)
    device.compute.wait_event(device.copies.record_event())
    group.bind(memory)
    for name, tensor in tensors.items():
        wanted = TENSORS[name]
        assert tensor.dtype == wanted.dtype and tensor.shape == wanted.shape, name
        assert torch.equal(tensor.float(), wanted.float()), name
        assert tensor.numel() == 0 or device.owns(tensor), name
        if name not in ("every second", "expanded"):
            assert tensor.stride() == wanted.stride(), name
    group.unbind()
    assert not any(device.owns(tensor) for tensor in tensors.values())
    assert all(torch.equal(tensor.float(), TENSORS[name].float()) for name, tensor in tensors.items())


def test_every_tensor_is_aligned_and_pinned_memory_shares_no_page():
    first, second = (WeightGroup([torch.randn(5), torch.randn(3)]) for _ in range(2))
    device = FakeDevice()
    for group in (first, second):
        group.pack(device)
        assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in group.tensors)
    pages = [{memory.data_ptr() // PAGE for memory in group.host_memory} for group in (first, second)]
    assert not pages[0] & pages[1]


def test_a_parameter_stays_the_object_that_it_is():
    layer = torch.nn.Linear(3, 2)
    weight, group, device = layer.weight, WeightGroup(layer.parameters()), FakeDevice()
    group.bind(device.allocate(group.num_bytes))
    assert layer.weight is weight
    assert device.owns(layer.weight)


def test_a_ring_forgets_what_was_overwritten():
    device = FakeDevice()
    groups = [WeightGroup([torch.randn(size)]) for size in (64, 200, 30, 128)]
    ring = Ring(device, 2 * max(group.num_bytes for group in groups))
    for turn in range(40):
        slot = ring.fetch(groups[turn % 4])
        assert slot is not None
        slot.done, slot.is_open = device.compute.record_event(), False
    assert len(ring._slots) <= 2 * 1024 // ALIGNMENT
    assert device.faults == []


@pytest.mark.parametrize("budget", [0, 0.0005, 0.0012, 0.0016, 0.002, 1])
@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_a_plan_stays_in_its_budget_or_takes_the_least_there_is(budget, prefetch):
    residency = Residency(make_model(), transformer_layout(make_model()), FakeDevice())
    least = MemoryOptions(budget=0, prefetch=1).plan(residency)
    plan = MemoryOptions(budget=budget, prefetch=prefetch).plan(residency)
    assert plan.working_bytes + plan.kept_bytes <= max(budget * 1e9, least.working_bytes)
    assert plan.slots >= least.slots == 2


def test_without_a_budget_everything_may_be_kept():
    residency = Residency(make_model(), transformer_layout(make_model()), FakeDevice())
    assert MemoryOptions().plan(residency).kept_bytes == residency.most_bytes


@pytest.mark.parametrize("budget", [1, 1e300])
def test_more_than_all_weights_is_as_much_as_no_budget(budget):
    # the room of the ring included, since the device may have less than was allowed
    residency = Residency(make_model(), transformer_layout(make_model()), FakeDevice())
    assert MemoryOptions(budget=budget).plan(residency) == MemoryOptions().plan(residency)


@pytest.mark.parametrize("options", [{"budget": -1.0}, {"budget": float("nan")}, {"mode": "tiny"}, {"prefetch": 0}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(OptionError, match="expected"):
        MemoryOptions(**options)
