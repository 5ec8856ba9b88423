"""The text that chooses blocks."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hyvideo_nodes.hyvideo_core.config import HYVIDEO_T2_CFGDISTILL, tiny
from hyvideo_nodes.hyvideo_core.errors import OptionError
from hyvideo_nodes.hyvideo_core.lora import describe_blocks, parse_blocks
from hyvideo_nodes.hyvideo_core.lora.targets import layers_of

CONFIG = tiny(num_double_blocks=4, num_single_blocks=6)


def chosen(text: str) -> str:
    blocks = parse_blocks(text, CONFIG)
    return describe_blocks([layer for layer in layers_of(CONFIG).values() if layer in blocks])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", "double 0-3, single 0-5, other"),
        ("double 0-1, single all", "double 0-1, single 0-5"),
        ("double", "double 0-3"),
        ("Single 2 , other", "single 2, other"),
        ("single 0-1 3 5", "single 0-1 3 5"),
        ("single 0-1, 3, double 2", "double 2, single 0-1 3"),
        ("all, not single 3-5", "double 0-3, single 0-2, other"),
        ("not double", "single 0-5, other"),
        ("not other, not single 1 2", "double 0-3, single 0 3-5"),
        ("double 0-3, not double 1-2", "double 0 3"),
        ("double 1-2, not double", "nothing"),
        ("double 0 - 1", None),
    ],
)
def test_texts_choose_blocks_from_left_to_right(text, expected):
    if expected is None:
        with pytest.raises(OptionError):
            chosen(text)
    else:
        assert chosen(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "all,", "tripel 1", "3", "not", "double 4", "single 3-1", "double a", "double all 1", "all 3"],
)
def test_texts_outside_the_grammar_are_refused_with_an_example(text):
    with pytest.raises(OptionError, match=r"write for example|give numbers from 0 to"):
        parse_blocks(text, CONFIG)


def test_numbers_are_those_of_the_model_at_hand():
    parse_blocks("double 0-19, single 0-39", HYVIDEO_T2_CFGDISTILL)
    with pytest.raises(OptionError, match="asks for 0-19 of 4 double blocks; give numbers from 0 to 3"):
        parse_blocks("double 0-19", CONFIG)


@given(st.text(alphabet="abdeglnotsiu 0123456789-,", max_size=40) | st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    with suppress(OptionError):
        parse_blocks(text, CONFIG)


@given(st.sets(st.integers(0, 3)), st.sets(st.integers(0, 5)), st.booleans())
def test_what_a_report_says_chooses_the_same_again(doubles, singles, has_other):
    def is_chosen(layer):
        if layer.block is None:
            return has_other
        part, index = layer.block
        return index in (doubles if part == "double_blocks" else singles)

    layers = [layer for layer in layers_of(CONFIG).values() if is_chosen(layer)]
    if layers:
        blocks = parse_blocks(describe_blocks(layers), CONFIG)
        assert [layer for layer in layers_of(CONFIG).values() if layer in blocks] == layers
