"""The VAE object, as native nodes use it and as ours do."""

from __future__ import annotations

import copy

import pytest
import torch
from hyvideo_nodes.hyvideo_core.errors import ShapeError, WrongModelError
from hyvideo_nodes.hyvideo_core.vae.fitting import SLACK, tile_bytes
from hyvideo_nodes.hyvideo_core.vae.tiling import Tiling
from hyvideo_nodes.nodes import vae as vae_module
from hyvideo_nodes.nodes.latents import HYVVAEDecode
from hyvideo_nodes.nodes.vae import native_tiling, user_tiling


def test_it_has_what_native_nodes_touch(vae):
    assert vae.temporal_compression_decode() == 4
    assert vae.spacial_compression_decode() == vae.spacial_compression_encode() == 8
    assert (vae.latent_channels, vae.latent_dim) == (16, 3)
    assert vae.patcher.model is vae.first_stage_model
    assert vae.get_sd().keys() == vae.first_stage_model.state_dict().keys()
    assert vae.device.type == vae.output_device.type == "cpu"
    vae.throw_exception_if_invalid()


def test_opening_it_loads_nothing(vae):
    assert vae._weights.patcher is None


def test_decode_gives_frames_of_each_video(vae):
    images = vae.decode(torch.randn(2, 16, 3, 4, 6))
    assert images.shape == (2, 9, 32, 48, 3)
    assert images.dtype == torch.float32


def test_tiles_in_latents_and_in_widgets_are_the_same_tiles(vae):
    samples = torch.randn(1, 16, 6, 12, 12)
    native = vae.decode_tiled(samples, tile_x=8, tile_y=8, overlap=2, tile_t=4, overlap_t=1)
    ours = vae.decode_with(samples, Tiling(tile_size=64, overlap=16, temporal_size=16, temporal_overlap=4))
    assert torch.equal(native, ours)


def test_encode_cuts_alpha_borders_and_frames(vae):
    latents = vae.encode(torch.rand(11, 37, 42, 4))
    assert latents.shape == (1, 16, 3, 4, 5)
    assert latents.dtype == torch.float32


def test_tiled_encode_takes_pixels_and_frames(vae):
    pixels = torch.rand(17, 96, 64, 3)
    native = vae.encode_tiled(pixels, tile_x=64, tile_y=64, overlap=16, tile_t=8, overlap_t=4)
    assert native.shape == (1, 16, 5, 12, 8)
    assert torch.equal(
        native, vae.encode_with(pixels, Tiling(tile_size=64, overlap=16, temporal_size=8, temporal_overlap=4))
    )


def test_the_references_tiles_are_the_default(vae):
    assert user_tiling(vae.config, 256, 64, 64, 16) == Tiling.official(vae.config)
    assert not user_tiling(vae.config, 256, 32, 64, 16).keep_redundant
    assert native_tiling(vae.config, 8, 4, (None, None), None, None, None).tile_size == 256


def test_carried_tiles_never_pass_for_the_references(vae):
    tiling = user_tiling(vae.config, 256, 64, 64, 16, "carried")
    assert tiling == Tiling(carried=True, temporal_overlap=0)
    assert user_tiling(vae.config, 256, 64, 64, 16, "tiled") == Tiling.official(vae.config)


def test_zero_means_whole(vae):
    assert user_tiling(vae.config, 0, 64, 0, 16) == Tiling(
        tile_size=None, overlap=0, temporal_size=None, temporal_overlap=0
    )


def test_a_copy_can_be_given_another_patcher(vae):
    other = copy.copy(vae)
    other.patcher = copy.copy(vae.patcher)
    other.device = torch.device("cpu")
    assert other.patcher is not vae.patcher
    assert other.first_stage_model is vae.first_stage_model
    assert torch.equal(other.decode(torch.zeros(1, 16, 1, 2, 2)), vae.decode(torch.zeros(1, 16, 1, 2, 2)))


def test_our_encode_node_cuts_to_sizes_that_can_be_sampled(vae, run_node):
    (latent,) = run_node("HYVVAEEncode", pixels=torch.rand(10, 50, 70, 3), vae=vae)
    assert latent["samples"].shape == (1, 16, 3, 6, 8)


def test_encode_then_decode_keeps_the_size(vae, run_node):
    (latent,) = run_node("HYVVAEEncode", pixels=torch.rand(9, 48, 64, 3), vae=vae)
    (images,) = run_node("HYVVAEDecode", samples=latent, vae=vae)
    assert images.shape == (9, 48, 64, 3)


LATENTS = {"samples": torch.randn(1, 16, 9, 4, 6, generator=torch.Generator().manual_seed(3))}


def test_graphs_saved_before_there_were_modes_give_the_same(vae, run_node):
    whole = vae.decode_with(LATENTS["samples"], Tiling.official(vae.config)).flatten(0, 1)
    widgets = {"tile_size": 256, "overlap": 64, "temporal_size": 64, "temporal_overlap": 16}
    assert torch.equal(run_node("HYVVAEDecode", samples=LATENTS, vae=vae, **widgets)[0], whole)
    assert torch.equal(run_node("HYVVAEDecode", samples=LATENTS, vae=vae)[0], whole)


def test_short_chunks_need_no_short_overlap():
    sizes = {"tile_size": 0, "overlap": 64, "temporal_size": 4, "temporal_overlap": 16}
    assert "temporal_overlap 16" in HYVVAEDecode.validate_inputs(**sizes)
    assert HYVVAEDecode.validate_inputs(**sizes, mode="carried") is True


def test_an_unknown_mode_is_refused_before_anything_runs():
    assert "mode 'fast': expected tiled or carried" in HYVVAEDecode.validate_inputs(mode="fast")


def test_the_carried_mode_is_near_the_tiled_one_and_shows_its_progress(vae, run_node, monkeypatch):
    (whole,) = run_node("HYVVAEDecode", samples=LATENTS, vae=vae, temporal_size=0)
    (one,) = run_node("HYVVAEDecode", samples=LATENTS, vae=vae, temporal_size=0, mode="carried")
    assert torch.equal(one, whole)
    totals = []
    monkeypatch.setattr(vae_module.host, "progress", lambda total: totals.append(total) or SilentBar())
    (images,) = run_node("HYVVAEDecode", samples=LATENTS, vae=vae, temporal_size=8, temporal_overlap=4, mode="carried")
    assert totals == [5]
    assert images.shape == whole.shape
    assert 0 < (images - whole).abs().mean() < 0.05


class SilentBar:
    def update(self, done, preview=None):
        pass


def test_short_memory_gives_smaller_tiles_and_a_line_in_the_log(vae, run_node, monkeypatch, caplog):
    samples = {"samples": torch.randn(1, 16, 17, 4, 6)}
    official = Tiling.official(vae.config)
    needed = tile_bytes(vae.config, (17, 4, 6), vae.vae_dtype.itemsize, official) + SLACK
    shorter = vae.decode_with(samples["samples"], Tiling(temporal_size=32, temporal_overlap=8, keep_redundant=True))
    for free, fits, expected in ((needed, True, None), (needed - 1, True, shorter), (needed - 1, False, None)):
        monkeypatch.setattr(vae_module.host, "free_bytes", lambda device, free=free: free)
        caplog.clear()
        (images,) = run_node("HYVVAEDecode", samples=samples, vae=vae, fit_memory=fits)
        expected = vae.decode_with(samples["samples"], official) if expected is None else expected
        assert torch.equal(images, expected.flatten(0, 1))
        assert ("32 frames" in caplog.text) is (free < needed and fits)


def test_the_host_is_asked_for_the_room_that_the_tiles_take(vae, monkeypatch):
    asked, place = [], vae_module.host.place
    monkeypatch.setattr(vae_module.host, "place", lambda patcher, room: asked.append(room) or place(patcher, room))
    vae.decode(LATENTS["samples"])
    itemsize = vae.vae_dtype.itemsize
    assert asked == [tile_bytes(vae.config, (9, 4, 6), itemsize, Tiling.official(vae.config)) + SLACK]


def test_channels_last_is_a_matter_of_rounding_and_can_be_undone(vae, run_node):
    (first,) = run_node("HYVVAEDecode", samples=LATENTS, vae=vae)
    (other,) = run_node("HYVVAEDecode", samples=LATENTS, vae=vae, channels_last=True)
    (again,) = run_node("HYVVAEDecode", samples=LATENTS, vae=vae)
    assert torch.allclose(other, first, atol=1e-3)
    assert torch.equal(again, first)


def test_too_small_a_picture_is_refused(vae, run_node):
    with pytest.raises(ShapeError, match="at least 16 x 16"):
        run_node("HYVVAEEncode", pixels=torch.rand(9, 8, 64, 3), vae=vae)


def test_latents_of_another_model_are_refused_before_loading(vae, run_node):
    with pytest.raises(ShapeError, match=r"expected \[batch, 16"):
        run_node("HYVVAEDecode", samples={"samples": torch.zeros(1, 4, 8, 8)}, vae=vae)
    assert vae._weights.patcher is None


def test_a_foreign_vae_is_refused_by_name(run_node):
    with pytest.raises(WrongModelError, match=r"an unknown object \(object\).*use HunyuanVideo Load VAE"):
        run_node("HYVVAEDecode", samples={"samples": torch.zeros(1, 16, 1, 2, 2)}, vae=object())
