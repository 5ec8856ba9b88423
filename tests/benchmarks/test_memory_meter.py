"""The meter against cases counted by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hyvideo_nodes.benchmarks.memory_meter import Meter, Reading, measure
from torch import Tensor, nn

KB = 1024


def kilobytes(count: int = 1) -> Tensor:
    return torch.empty(count, 256, device="meta")


def peak(run, x: Tensor) -> float:
    return measure(lambda: run(x), inputs=x).peak / KB


def chunked(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for start in range(0, x.shape[0], 2):
        out[start : start + 2] = (x[start : start + 2] + 1) * 2
    return out


def dropped(x: Tensor) -> Tensor:
    y = x + 1
    y = y * 2
    del y
    return x + 3


def rebound(x: Tensor) -> Tensor:
    for _ in range(5):
        x = x + 1
    return x


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: None, 8),  # the input counts though nothing touches it
        (lambda x: x[2:].unsqueeze(0).transpose(1, 2).unflatten(1, (2, 128)), 8),
        (lambda x: x + 1, 16),
        (lambda x: x.add_(1).mul_(2), 8),
        (lambda x: (x + 1) + 1, 24),
        (lambda x: (x + 1).add_(1), 16),
        (lambda x: x[:2] + 1, 10),
        (lambda x: (x + 1)[:1] + 1, 17),  # a view keeps all of what it looks at
        (lambda x: torch.cat((x, x[:4])), 20),
        (lambda x: x.reshape(-1), 8),
        (lambda x: x.t().reshape(-1), 16),
        (lambda x: x.half(), 12),
        (lambda x: x.contiguous().float(), 8),
        (lambda x: torch.add(x, 1, out=torch.empty_like(x)), 16),
        (rebound, 24),
        (dropped, 24),
        (chunked, 20),  # 8 in, 8 out, two temporaries of a quarter
    ],
)
def test_peak_is_what_a_count_by_hand_gives(run, expected: float) -> None:
    assert peak(run, kilobytes(8)) == expected


def test_a_rebound_temporary_is_freed_before_the_next_is_made() -> None:
    reading = measure(lambda: [kilobytes(8) for _ in range(3)] and None)
    assert reading.peak == 24 * KB
    reading = measure(lambda: [kilobytes(8) is None for _ in range(3)])
    assert reading.peak == 8 * KB


def test_an_input_that_is_dropped_on_the_way_makes_room() -> None:
    box = [kilobytes(8)]

    def run() -> Tensor:
        small = box[0][:1] + 1
        box.clear()
        return torch.cat([small] * 4)

    reading = measure(run, inputs=box)
    assert reading.peak == 9 * KB


def test_what_was_there_before_counts_at_earlier_moments_too() -> None:
    late = kilobytes(8)

    def run() -> Tensor:
        (kilobytes(4) + 1).sum()
        return late[:1] + 1

    assert measure(run).peak == 16 * KB


def test_weights_are_left_out_and_what_is_made_of_them_is_not() -> None:
    layer = nn.Linear(256, 256, device="meta")
    x = kilobytes(8)
    assert measure(lambda: layer(x), weights=[layer]).peak == 16 * KB
    assert measure(lambda: layer.weight[:128].t(), weights=[layer]).peak == 0
    assert measure(lambda: layer.weight.half(), weights=[layer]).peak == 128 * KB
    assert measure(lambda: layer(x), inputs=x).peak == (16 + 256 + 1) * KB


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("strided", [False, True])
def test_a_linear_layer_costs_its_output_and_2mnk(mode, strided: bool) -> None:
    layer = nn.Linear(256, 64, device="meta")
    x = torch.empty(4, 2, 8, 256, device="meta").transpose(0, 1)[0] if strided else kilobytes(32).view(4, 8, 256)
    with mode(), Meter(weights=[layer]) as meter:
        out = layer(x)
    copied = 32 if strided else 0
    assert meter.reading.peak == (x.untyped_storage().nbytes() + copied * KB + out.nbytes)
    assert meter.reading.flops == 2 * 32 * 256 * 64


def test_nested_modules_hold_what_went_into_each_of_them() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(256, 1024), nn.Linear(1024, 256)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.gelu(self.up(x)))

    with torch.device("meta"):
        stack = nn.Sequential(Inner(), nn.Sequential(Inner(), Inner()))
    reading = measure(lambda: stack(kilobytes(8)), weights=[stack])
    # inside the last one: what went into the outer stack, the inner stack and itself, the wide layer and its GELU
    assert reading.peak == (8 + 8 + 8 + 32 + 32) * KB
    assert reading.ops == {"addmm": 6, "gelu": 3}
    assert reading.flops == 6 * 2 * 8 * 256 * 1024


def test_views_and_allocations_are_no_operations() -> None:
    def run() -> Tensor:
        x = kilobytes(8)
        out = torch.empty_like(x)
        out[:4] = x.view(4, 512)[:, :256].unbind(0)[0]
        return out.add_(1).t().detach()

    assert measure(run).ops == {"copy_": 1, "add_": 1}


def test_in_inference_mode_the_same_is_read() -> None:
    x = kilobytes(8).view(1, 8, 256)
    layer = nn.Linear(256, 256, device="meta")

    def run() -> Tensor:
        return F.layer_norm(layer(x), (256,)).softmax(-1).reshape(8, 4, 64).contiguous()

    plain = measure(run, weights=[layer])
    with torch.inference_mode(), Meter(weights=[layer]) as meter:
        run()
    assert meter.reading == plain


@pytest.mark.parametrize("call", ["function", "keywords", "backend"])
def test_attention_makes_its_output_and_no_scores(call: str) -> None:
    batch, heads, length, keys, size = 2, 4, 1000, 1200, 64
    q = torch.empty(batch, length, heads, size, device="meta")
    k, v = (torch.empty(batch, keys, heads, size, device="meta") for _ in range(2))
    meter = Meter()
    with torch.no_grad(), meter:
        swapped = [x.transpose(1, 2) for x in (q, k, v)]
        if call == "function":
            out = F.scaled_dot_product_attention(*swapped).transpose(1, 2)
        elif call == "keywords":
            out = F.scaled_dot_product_attention(swapped[0], key=swapped[1], value=swapped[2]).transpose(1, 2)
        else:
            out = meter.attention(q, k, v)
        assert out.flatten(2).data_ptr() == out.data_ptr() and out.is_contiguous()
    assert out.shape == q.shape
    assert meter.reading.peak == q.nbytes + k.nbytes + v.nbytes + out.nbytes
    assert meter.reading.flops == meter.reading.attention_flops == 4 * batch * length * keys * heads * size
    assert meter.reading.num_ops == 1


def test_a_fused_kernel_is_one_operation_that_makes_what_it_returns() -> None:
    meter = Meter()
    x = kilobytes(8)
    with torch.no_grad(), meter:
        y = meter.fused(lambda x: ((x + 1) * 2) - x)(x)
    assert meter.reading.peak == 16 * KB and meter.reading.num_ops == 1
    del y
    assert meter.live == 8 * KB


def test_convolutions_count() -> None:
    conv = nn.Conv3d(4, 8, 3, device="meta")
    reading = measure(lambda: conv(torch.empty(1, 4, 6, 6, 6, device="meta")), weights=[conv])
    assert reading.flops == 2 * 4**3 * 8 * 4 * 27
    assert reading.peak == 4 * (4 * 6**3 + 8 * 4**3)


def test_what_lies_elsewhere_is_not_counted_and_copies_to_it_move_nothing() -> None:
    def run() -> Tensor:
        out = torch.zeros(4, 256)
        out[1:3] = kilobytes(2)
        return out + (kilobytes(4) + 1).cpu().fill_(0)

    reading = measure(run)
    assert reading.peak == 8 * KB


def test_a_meter_can_be_told_of_host_memory() -> None:
    arena = kilobytes(64)

    def run() -> Tensor:
        return kilobytes(2).copy_(arena[:2])

    assert measure(run, weights=[arena]).peak == 2 * KB


def test_the_worst_moment_is_listed() -> None:
    x = kilobytes(8)
    reading = measure(lambda: torch.relu(x) * 2, inputs=x)
    assert reading.at_peak == [("input", 8 * KB), ("relu", 8 * KB), ("mul", 8 * KB)]
    assert sum(size for _, size in reading.at_peak) == reading.peak


def test_an_error_leaves_no_meter_behind() -> None:
    meter = Meter()
    with pytest.raises(RuntimeError), torch.no_grad(), meter:
        kilobytes(8) @ kilobytes(8)
    before = Reading(meter.reading.peak, ops=meter.reading.ops.copy())
    kilobytes(9) + 1
    assert meter.reading.peak == before.peak and meter.reading.ops == before.ops


def test_conditions_on_values_hold() -> None:
    def run() -> Tensor:
        x = kilobytes(8)
        return x + 1 if bool((x == x).all()) else x

    assert measure(run).peak == 16 * KB
    with pytest.raises(RuntimeError, match="meta"):
        measure(lambda: kilobytes(1).sum().item())
