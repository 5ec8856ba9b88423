"""A streamed model under ComfyUI's own memory management: it tells the truth and obeys."""

from __future__ import annotations

import pytest

from .conftest import report_of


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict:
    """Blocks on the device after each situation; there is room for 12 of 16."""
    return report_of("in_residency.py", tmp_path_factory.mktemp("residency"))


def test_it_keeps_what_fits_beside_a_run(kept):
    assert kept["what fits"] == kept["again"] == 12
    assert kept["a larger run"] == 4
    assert kept["a smaller run"] == 12


def test_it_gives_memory_to_other_models_and_takes_it_back(kept):
    assert kept["the other model"] == 8
    assert kept["beside another model"] <= 4
    assert kept["the other model is sent away"] == 12


def test_it_gives_memory_back_when_asked(kept):
    assert kept["everything unloaded"] == 0
    assert kept["after that"] == 12
    assert kept["some memory asked for"] == 6


def test_a_budget_is_not_exceeded(kept):
    assert kept["a budget"] == 3


def test_the_users_options_hold(kept):
    assert kept["NO_VRAM"] == 0
    assert kept["LOW_VRAM"] == 12
    assert kept["HIGH_VRAM"] == 16
    assert kept["a reserve"] == 10


def test_the_host_knows_it_by_a_telling_name_and_its_clones(kept):
    assert kept["sizes"] == [16, "HunyuanVideo"]
    assert kept["clone"] == [True, True]


def test_the_sampler_gives_the_same_bits_however_much_is_kept(kept):
    runs = kept["runs"]
    assert runs["patcher"] == "StreamedPatcher"
    assert runs["kept"][0] == runs["kept"][1] > 0
    assert runs["streamed"] == [True, 0]
    assert runs["again"] == [True, True]


def test_an_interrupt_leaves_nothing_on_the_device_and_the_next_run_is_the_same(kept):
    assert kept["runs"]["stopped"] == ["stopped", 0]
    assert kept["runs"]["after"] is True
    assert kept["runs"]["unloaded"] == [0, True]
