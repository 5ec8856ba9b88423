"""Laws of the autoencoder's blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hyvideo_nodes.hyvideo_core.vae import layers
from hyvideo_nodes.hyvideo_core.vae.layers import (
    CausalConv3d,
    Clip,
    Downsample,
    Enlarged,
    FrameCausalAttention,
    ResnetBlock,
    Upsample,
    bordered,
    enlarge_frames,
    group_norm,
    norm_silu,
    use_channels_last,
)


def changed_frames(layer: torch.nn.Module, x: torch.Tensor, frame: int) -> list[bool]:
    """Which output frames move when one input frame does."""
    other = x.clone()
    other[:, :, frame] += 1
    return [bool(moved) for moved in (layer(x) != layer(other)).any(0).flatten(2).any(2).any(0)]


@pytest.mark.parametrize("frame", [0, 2, 4])
def test_convolution_never_looks_ahead(frame: int) -> None:
    moved = changed_frames(CausalConv3d(2, 3), torch.randn(1, 2, 7, 4, 5), frame)
    assert moved == [frame <= f < frame + 3 for f in range(7)]


def test_borders_are_replicated_so_a_constant_stays_constant() -> None:
    out = CausalConv3d(2, 3)(torch.full((1, 2, 4, 5, 6), 0.7))
    assert torch.allclose(out, out[:, :, :1, :1, :1].expand_as(out), atol=1e-6)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
def test_pieces_of_a_clip_give_the_whole(
    monkeypatch: pytest.MonkeyPatch, stride: tuple[int, int, int], num_frames: int
) -> None:
    layer, x = CausalConv3d(3, 4, stride=stride), torch.randn(2, 3, num_frames, 6, 8)
    whole = layer(x).detach()
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", 2 * x[:, :, 0].numel())
    with torch.no_grad():
        assert torch.allclose(layer(x), whole, atol=1e-6)
    assert whole.shape[2:] == tuple(-(-size // step) for size, step in zip(x.shape[2:], stride, strict=True))


@pytest.mark.parametrize("out_channels", [4, 3])
@pytest.mark.parametrize("piece", [1, 2, 3])
def test_a_result_that_lies_where_its_input_was_is_the_same(
    monkeypatch: pytest.MonkeyPatch, out_channels: int, piece: int
) -> None:
    layer, x = CausalConv3d(4, out_channels), torch.randn(2, 4, 7, 5, 6)
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", piece * x[:, :, 0].numel())
    with torch.no_grad():
        expected = layer(x)
        out = layer(x, reuse=True)
    assert torch.equal(out, expected)
    assert out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("limit", [2**26, 1])
def test_channels_last_weights_change_the_layout_inside_only(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    layer, x = ResnetBlock(8, 4, 2), torch.randn(1, 8, 3, 4, 6)
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", limit)
    with torch.no_grad():
        expected = layer(x)
        use_channels_last(layer, True)
        assert layer.conv1.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
        out = layer(x)
        assert out.is_contiguous()
        assert torch.allclose(out, expected, atol=1e-5)
        use_channels_last(layer, False)
        assert torch.equal(layer(x), expected)
    with torch.inference_mode():
        use_channels_last(layer, True)
    assert not layer.conv1.conv.weight.is_inference()


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("limit", [1, 150, 400])
@pytest.mark.parametrize("shape", [(2, 12, 3, 5, 7), (1, 12, 1, 3, 3)])
def test_groups_normalised_in_pieces_have_the_numbers_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, reuse: bool, limit: int, shape: tuple[int, ...]
) -> None:
    norm, x = group_norm(12, 4), 3 * torch.randn(shape) + 1
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    before, whole = x.clone(), norm_silu(norm, x).detach()
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", limit)
    with torch.no_grad():
        assert torch.equal(norm_silu(norm, x, reuse=reuse), whole)
    assert reuse or torch.equal(x, before)


def test_pieces_bound_what_one_convolution_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, seen = CausalConv3d(2, 2), torch.randn(1, 2, 9, 4, 4), []
    layer.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2]))
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", 3 * x[:, :, 0].numel())
    with torch.no_grad():
        layer(x)
    assert seen == [5, 5, 5]  # three frames and the two before them


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (4, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_enlargement_repeats_every_frame_but_the_first(factors: tuple[int, int, int], num_frames: int) -> None:
    ft, fh, fw = factors
    x = torch.randn(2, 3, num_frames, 2, 3)
    first = F.interpolate(x[:, :, 0], scale_factor=(fh, fw)).unsqueeze(2)
    rest = [F.interpolate(x[:, :, 1:], scale_factor=factors)] if num_frames > 1 else []
    expected = torch.cat([first, *rest], dim=2)
    total = 1 + ft * (num_frames - 1)
    assert torch.equal(enlarge_frames(x, factors, 0, total), expected)
    for begin in range(total):
        for stop in range(begin + 1, total + 1):
            assert torch.equal(enlarge_frames(x, factors, begin, stop), expected[:, :, begin:stop])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("sizes", [(3, 2, 4), (1, 1, 1)])
def test_borders_are_those_of_replicating_padding(layout: torch.memory_format, sizes: tuple[int, int, int]) -> None:
    x, before = torch.randn(2, 3, *sizes), torch.randn(2, 3, 2, *sizes[1:])
    clips = [Clip(x), Clip(x, before), Enlarged(x, (2, 2, 2)), Enlarged(x, (4, 1, 2)), Enlarged(x, (1, 2, 1))]
    for clip in clips:
        total = clip.shape[2]
        assert clip.read(0, total).shape == clip.shape
        for first, stop in ((0, total), (0, 1), (total - 1, total), (total // 2, total)):
            for lead in (0, 2) if first == 0 else (0,):
                got = bordered(clip, first, stop, lead, 1, layout)
                expected = F.pad(clip.read(first, stop), (1, 1, 1, 1, lead, 0), mode="replicate")
                assert torch.equal(got, expected)
                assert got.is_contiguous(memory_format=layout)


def test_upsampling_in_pieces_gives_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Upsample(3, (2, 2, 2)), torch.randn(1, 3, 4, 3, 5)
    whole = layer(x).detach()
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", 1)
    with torch.no_grad():
        assert torch.allclose(layer(x), whole, atol=1e-6)
    assert whole.shape == (1, 3, 7, 6, 10)


def test_downsampling_keeps_the_first_frame_apart() -> None:
    sizes = [Downsample(2, (2, 2, 2))(torch.zeros(1, 2, frames, 6, 4)).shape[2:] for frames in (1, 5, 9)]
    assert sizes == [(1, 3, 2), (3, 3, 2), (5, 3, 2)]


def test_attention_without_a_mask_equals_attention_with_the_frame_mask() -> None:
    layer, x = FrameCausalAttention(8, 2), 3 * torch.randn(2, 8, 4, 2, 3)
    tokens = layer.group_norm(x).flatten(2).transpose(1, 2)
    frame = torch.arange(4).repeat_interleave(6)
    scores = layer.to_q(tokens) @ layer.to_k(tokens).transpose(1, 2) / 8**0.5
    scores = scores.masked_fill(frame[None, :] > frame[:, None], float("-inf"))
    expected = x + layer.to_out[0](scores.softmax(-1) @ layer.to_v(tokens)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_attention_sees_all_earlier_frames_and_none_later() -> None:
    layer = FrameCausalAttention(8, 2)
    layer.group_norm = torch.nn.Identity()  # its statistics run over all frames
    assert changed_frames(layer, torch.randn(1, 8, 5, 2, 3), 2) == [False, False, True, True, True]


@pytest.mark.parametrize("out_channels", [8, 4, 16])
@pytest.mark.parametrize("limit", [2**26, 1])
def test_residual_block_gives_the_same_with_and_without_grad_and_where_its_input_was(
    monkeypatch: pytest.MonkeyPatch, out_channels: int, limit: int
) -> None:
    layer, x = ResnetBlock(8, out_channels, 2), torch.randn(1, 8, 3, 4, 4)
    before, expected = x.clone(), layer(x).detach()
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", limit)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-6)
        assert torch.equal(layer(x), expected) or limit == 1
        assert torch.equal(x, before)
        assert torch.allclose(layer(x, reuse=True), expected, atol=1e-6)
