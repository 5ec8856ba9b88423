"""ComfyUI's own HunyuanVideo and ours agree: the same sockets, the same files, the same numbers, turns in memory."""

from __future__ import annotations

from typing import Any

import pytest

ROUNDING = 1e-4


@pytest.mark.parametrize("case", ["our sockets", "native sockets", "our prompt, native latent", "from latents"])
def test_both_samplers_make_the_same_latents(native_report: dict[str, Any], case: str) -> None:
    assert native_report["sampling"]["differences"][case] < ROUNDING


def test_a_kept_region_comes_out_unchanged(native_report: dict[str, Any]) -> None:
    assert native_report["sampling"]["kept"] < ROUNDING
    assert native_report["sampling"]["changed"] > 0.1


def test_latents_keep_unknown_keys_and_lose_the_hosts_marks(native_report: dict[str, Any]) -> None:
    assert native_report["sampling"]["keys"]["from latents"] == ["name", "samples"]
    assert native_report["sampling"]["keys"]["native sockets"] == ["samples"]


def test_both_autoencoders_agree_on_a_frame(native_report: dict[str, Any]) -> None:
    found = native_report["vae"]
    assert found["keys that one side lacks"] == []
    assert found["decoded"] < ROUNDING
    assert found["encoded"] < ROUNDING


def test_both_autoencoders_make_clips_of_one_shape(native_report: dict[str, Any]) -> None:
    # not of the same pixels: in the native one frames also attend to later frames, which the published one forbids
    assert native_report["vae"]["clips"] == [[5, 32, 64, 3], [5, 32, 64, 3]]


def test_our_decode_node_takes_a_native_vae_whole_and_in_tiles(native_report: dict[str, Any]) -> None:
    assert native_report["vae"]["native VAE in our node"] == [0, 0]
    assert native_report["vae"]["tiles matter"]


def test_other_vaes_are_refused_by_name(native_report: dict[str, Any]) -> None:
    assert "an image VAE" in native_report["foreign"]["image"]
    assert "object" in native_report["foreign"]["unknown"]
    assert all("HunyuanVideo Load VAE" in message for message in native_report["foreign"].values())


def test_our_models_make_room_and_come_back_whole(native_report: dict[str, Any]) -> None:
    assert native_report["eviction"] == {
        "kind": "ModelPatcher",
        "device": "cpu:0",
        "turns": [[1, 0], [0, 1], [1, 0]],
    }
