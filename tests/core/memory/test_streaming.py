"""Streamed equals resident bit for bit, in the order of marks, and leaves nothing behind however it ends."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.config import tiny
from hyvideo_nodes.hyvideo_core.memory import MemoryOptions, PlainDevice, Residency, StreamedModel, transformer_layout
from hyvideo_nodes.hyvideo_core.model import Transformer
from hyvideo_nodes.hyvideo_core.model.modulation_table import ModulationTable
from hyvideo_nodes.hyvideo_core.model.transformer import walk_blocks

from .fake_device import DeviceError, FakeDevice, Interrupt

CONFIG = tiny(num_double_blocks=2, num_single_blocks=3)


def make_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False).eval()


def make_inputs() -> dict:
    torch.manual_seed(1)
    return {
        "latents": torch.randn(1, CONFIG.in_channels, 2, 4, 4),
        "timesteps": torch.full((1,), 300.0),
        "text": [torch.randn(1, 3, CONFIG.text_width)],
        "pooled": torch.randn(1, CONFIG.pooled_width),
        "guidance": torch.full((1,), 6000.0) if CONFIG.has_guidance else None,
    }


class Rig:
    """A model, what it gives, and a way to run it streamed."""

    def __init__(self) -> None:
        self.model, self.inputs = make_model(), make_inputs()
        with FakeDevice(), torch.no_grad():
            self.expected = self.model(**self.inputs)
        self.device = FakeDevice()
        self.residency = Residency(self.model, transformer_layout(self.model), self.device)

    def run(self, steps: int = 2, before_block=lambda: None, **options) -> bool:
        """Whether every step gives the same bits; modulation comes before the first one, as in a run."""
        with self.device, torch.no_grad(), StreamedModel(self.residency, self.model, **options) as stream:
            vec = self.model.embed_vector(*(self.inputs[name] for name in ("timesteps", "pooled", "guidance")))
            table = ModulationTable(self.model.double_blocks, self.model.single_blocks, [vec], stream.hold)
            given = {**self.inputs, "run": walk_blocks(before_block, stream.hold), "modulation": table}
            return all(torch.equal(self.model(**given), self.expected) for _ in range(steps))

    def is_at_home(self) -> bool:
        """Whether the model computes by itself again, on the host."""
        with FakeDevice(), torch.no_grad():
            return torch.equal(self.model(**self.inputs), self.expected)


@pytest.fixture
def rig():
    return Rig()


@pytest.mark.parametrize("prefetch", [1, 2, 3])
@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_streamed_equals_resident_bit_for_bit(rig, prefetch, slots, share):
    rig.residency.grow(share * rig.residency.most_bytes)
    kept = rig.residency.kept_bytes
    assert share * rig.residency.most_bytes >= kept
    assert rig.run(prefetch=prefetch, slots=slots)
    assert rig.device.faults == []
    assert rig.device.live() == kept == rig.residency.kept_bytes
    rig.residency.clear()
    assert rig.is_at_home()


def test_modulation_that_was_not_made_before_is_fetched_in_between(rig):
    with rig.device, torch.no_grad(), StreamedModel(rig.residency, rig.model, slots=2) as stream:
        runner = walk_blocks(lambda: None, stream.hold)
        assert torch.equal(rig.model(**rig.inputs, run=runner), rig.expected)
    assert rig.device.faults == []


def test_all_blocks_streamed_take_no_more_than_their_slots(rig):
    plan = MemoryOptions(budget=0).plan(rig.residency)
    seldom = max(rig.residency.groups[name].num_bytes for name in rig.residency.layout.on_call)
    assert rig.run(slots=plan.slots)
    assert rig.device.peak <= plan.working_bytes + seldom
    assert rig.device.live() == 0


def test_nothing_is_copied_ahead_twice_in_a_walk(rig):
    rig.run(steps=1)
    once = rig.device.num_copied
    streamed = sum(group.num_bytes for group in rig.residency.groups.values())
    largest = max(rig.residency.groups[name].num_bytes for name in rig.residency.layout.walked)
    # every weight once, and at its end the first blocks of a next step
    assert streamed <= once <= streamed + 2 * largest


def test_what_is_kept_is_not_copied_again(rig):
    rig.residency.grow(rig.residency.most_bytes)
    kept, before = rig.residency.kept_bytes, rig.device.num_copied
    rig.run(steps=1)
    everything = sum(group.num_bytes for group in rig.residency.groups.values())
    assert rig.device.num_copied - before == everything - kept


def test_blocks_may_be_skipped_and_asked_for_in_any_order(rig):
    blocks = [*rig.model.double_blocks, *rig.model.single_blocks]
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(len(blocks), (60,), generator=generator).tolist()
    homes = {block: [tensor.clone() for tensor in block.parameters()] for block in blocks}
    with rig.device, StreamedModel(rig.residency, rig.model, slots=2) as stream:
        for index in order:
            with stream.hold(blocks[index]) as block:
                kept = [tensor for name, tensor in block.named_parameters() if "mod" not in name]
                wanted = [
                    home
                    for (name, _), home in zip(block.named_parameters(), homes[block], strict=True)
                    if "mod" not in name
                ]
                assert all(torch.equal(*pair) for pair in zip(kept, wanted, strict=True))
    assert rig.device.faults == []


def test_memory_given_back_during_a_run_changes_no_bits(rig):
    rig.residency.grow(rig.residency.most_bytes)
    sizes = iter([0, 1, 0, 10**6, 0, 0, 10**9] * 10)

    def ask():
        rig.residency.shrink(next(sizes))

    assert rig.run(before_block=ask, steps=3)
    assert rig.device.faults == []
    assert rig.device.live() == rig.residency.kept_bytes == 0


def test_a_limit_holds_for_what_is_kept_already(rig):
    rig.residency.grow(rig.residency.most_bytes)
    rig.residency.limit_to(rig.residency.most_bytes // 2)
    assert 0 < rig.device.live() == rig.residency.kept_bytes <= rig.residency.limit
    rig.residency.grow(rig.residency.most_bytes)
    assert rig.residency.kept_bytes <= rig.residency.limit
    assert rig.run(steps=1)


def test_weights_are_never_written_back(rig):
    rig.run()
    before = [memory.clone() for memory in rig.residency.host_memory()]
    with StreamedModel(rig.residency, rig.model) as stream, stream.hold(rig.model.double_blocks[0]) as block:
        block.img_attn_qkv.weight.data.fill_(7.0)
    assert all(torch.equal(*pair) for pair in zip(rig.residency.host_memory(), before, strict=True))


def test_modulation_and_the_refiner_are_fetched_for_their_calls_alone(rig):
    with StreamedModel(rig.residency, rig.model) as stream, stream.hold(rig.model.double_blocks[0]):
        before = rig.device.live()
        modulation = rig.model.double_blocks[0].img_mod
        with stream.hold(modulation):
            assert rig.device.live() > before
            held = rig.device.live()
            modulation(torch.randn(1, CONFIG.hidden_size))  # held already
            assert rig.device.live() == held
        assert rig.device.live() == before


def settled(device: FakeDevice) -> int:
    """Bytes alive once tracebacks, which hold what the failed calls held, are gone too."""
    if device.live():
        gc.collect()
    return device.live()


CLEANING = {"_close", "_leave", "clear", "unbind", "__exit__"}


@contextlib.contextmanager
def interrupted_on(line: int):
    """Raises KeyboardInterrupt before that line of the memory package is run, not counting its cleaning up."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        code = frame.f_code
        if f"hyvideo_core{os.sep}memory{os.sep}" not in code.co_filename or code.co_name in CLEANING:
            return None
        left -= event == "line"
        if left == 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class TestFailures:
    """At every moment at which something can go wrong."""

    @settings(max_examples=30, deadline=None)
    @given(
        call=st.integers(1, 160),
        share=st.sampled_from([0.0, 0.5, 1.0]),
        failure=st.sampled_from([DeviceError, Interrupt, torch.OutOfMemoryError, KeyboardInterrupt]),
    )
    def test_a_failing_device_leaves_nothing_behind(self, call, share, failure):
        rig = RIGS.setdefault("device", Rig())
        rig.device.faults.clear()
        rig.device.fail_at(call, failure)
        with contextlib.suppress(failure):
            rig.residency.grow(share * rig.residency.most_bytes)
            rig.run(steps=1, slots=2)
        assert settled(rig.device) == rig.residency.kept_bytes
        assert rig.residency.kept_bytes == 0 or rig.device.num_calls < call
        rig.device.fail_at(-1)
        rig.residency.clear()
        assert rig.run(steps=1)
        assert rig.device.faults == []
        assert rig.device.live() == rig.residency.kept_bytes == 0
        assert rig.is_at_home()

    @settings(max_examples=15, deadline=None)
    @given(
        block=st.integers(1, 5),
        share=st.sampled_from([0.0, 0.5, 1.0]),
        within=st.booleans(),
        failure=st.sampled_from([DeviceError, Interrupt]),
    )
    def test_an_interrupt_between_or_inside_blocks_leaves_nothing_behind(self, block, share, within, failure):
        rig = RIGS.setdefault("blocks", Rig())
        rig.residency.grow(share * rig.residency.most_bytes)
        countdown = iter(range(block, -1000, -1))

        def stop(*_):
            if next(countdown) == 1:
                raise failure

        blocks = [*rig.model.double_blocks, *rig.model.single_blocks]
        hooks = [one.register_forward_hook(stop) for one in blocks] if within else []
        with contextlib.suppress(failure):
            rig.run(before_block=(lambda: None) if within else stop)
            pytest.fail("it was to be stopped")
        for hook in hooks:
            hook.remove()
        assert settled(rig.device) == rig.residency.kept_bytes == 0
        assert rig.run(steps=1)
        assert rig.device.faults == []

    @settings(max_examples=15, deadline=None)
    @given(line=st.integers(1, 1500), share=st.sampled_from([0.0, 0.5]))
    def test_an_interrupt_on_any_line_leaves_nothing_behind(self, line, share):
        rig = RIGS.setdefault("lines", Rig())
        rig.residency.grow(share * rig.residency.most_bytes)
        with contextlib.suppress(KeyboardInterrupt), interrupted_on(line):
            rig.run(steps=1, slots=2)
        assert settled(rig.device) == rig.residency.kept_bytes
        rig.residency.clear()
        assert rig.run(steps=1)
        assert rig.device.faults == []
        assert rig.device.live() == rig.residency.kept_bytes == 0

    @pytest.mark.parametrize("call", range(1, 30))
    def test_a_failure_while_keeping_more_lets_no_copy_end_in_freed_memory(self, call):
        rig = RIGS.setdefault("growing", Rig())
        rig.device.fail_at(call)
        with contextlib.suppress(DeviceError):
            rig.residency.grow(rig.residency.most_bytes)
        rig.device.fail_at(-1)
        assert settled(rig.device) == rig.residency.kept_bytes
        rig.device.copies.synchronize()
        rig.residency.clear()
        assert rig.device.faults == []

    def test_too_little_memory_while_keeping_more_leaves_nothing_behind(self, rig):
        rig.device.fail_at(9, torch.OutOfMemoryError)
        with pytest.raises(torch.OutOfMemoryError):
            rig.residency.grow(rig.residency.most_bytes)
        assert settled(rig.device) == rig.residency.kept_bytes == 0
        assert rig.is_at_home()


RIGS: dict[str, Rig] = {}


def test_pinned_memory_is_pinned_no_longer_than_the_weights_live():
    rig = Rig()
    rig.run(steps=1)
    device = rig.device
    assert device.num_pinned == sum(group.num_bytes for group in rig.residency.groups.values())
    del rig
    gc.collect()
    assert device.num_pinned == 0


def test_a_device_without_queues_gives_the_same_bits():
    model, inputs = make_model(), make_inputs()
    expected = model(**inputs)
    residency = Residency(model, transformer_layout(model), PlainDevice(torch.device("cpu")))
    with torch.inference_mode(), StreamedModel(residency, model, slots=2) as stream:
        assert torch.equal(model(**inputs, run=walk_blocks(lambda: None, stream.hold)), expected)
    # what moved in inference mode can still be trained
    model.requires_grad_(True)
    model(**inputs).square().mean().backward()
    assert model.double_blocks[0].img_attn_qkv.weight.grad is not None
