# SPDX-License-Identifier: Apache-2.0
"""Coordinates inside a text: values, units, HTML headings, and the order of spans and boxes."""

import re
from contextlib import suppress
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE, check_order, read_coordinate


positions = st.floats(0, 1)


def read_last(text):
    return read_coordinate(list(INLINE_COORDINATE.finditer(text))[-1])


@given(st.sampled_from("thw"), positions)
def test_inline_coordinate_parsed_value_equals_the_written_one(letter, position):
    axis, read = read_coordinate(INLINE_COORDINATE.fullmatch(f"<{letter}{position!r}>"))
    assert axis[0] == letter and read == position


@pytest.mark.parametrize("written", ["<t>", "<hnan>", "<winf>", "<t1.2>", "<t-0.5>", "<h3s>", "<t40px>", "<t3s>"])
def test_read_coordinate_invalid_value_raises_with_the_text(written):
    with pytest.raises(ValueError, match=written):
        read_coordinate(INLINE_COORDINATE.fullmatch(written))


@pytest.mark.parametrize("text", ["<table>", "<h1 class=x>", "<width>", "t0.5", "<t 0.5>"])
def test_inline_coordinate_does_not_match_other_markup(text):
    assert INLINE_COORDINATE.search(text) is None


@pytest.mark.parametrize(
    "text",
    [
        start + unit * 100_000 + end
        for start in ("<t", "<t0.", "<w1e", "{<t", "[<w0.1><h")
        for unit in ("0", " ", ",")
        for end in ("", "x", ">")
    ]
    + ["<w0.1>" + " " * 100_000 + "<h1>", "<h1>" * 25_000, "{<t0.1>" * 15_000, "[<w0.1><h0.1><w0.2>" * 5_000],
    ids=lambda text: repr(text[:12]),
)
def test_inline_coordinates_of_100000_characters_take_less_than_one_second(text):
    began = process_time()
    values = {}
    for match in INLINE_COORDINATE.finditer(text):
        values[match.start()] = (0.5, None)
        with suppress(ValueError):
            read_coordinate(match)
    check_order(text, values)
    assert process_time() - began < 1


# HTML headings


@pytest.mark.parametrize("level", range(1, 7))
@pytest.mark.parametrize("before", ["", "x ", "<t1>", "<h0.5>", "<w0.5>, ", "<w0.5>\n", "[<w0.5> ", "<w320px>", "<w> ", "<WIDTH-050>"])
def test_read_coordinate_html_heading_raises(level, before):
    with pytest.raises(ValueError, match=rf"'<h{level}>' is an HTML heading.*write <h1.0> for the bottom"):
        read_last(f"{before}<h{level}>")


@given(positions, st.sampled_from(["", "The dog ", "[", "<h1 class=x>", "a < b "]), st.sampled_from(["", "]", " Now", "</h1>"]))
def test_read_coordinate_h1_directly_after_a_width_is_the_bottom_edge(width, before, after):
    assert read_last(f"{before}<w{width!r}><h1>{after}") == ("height", 1.0)


@given(st.text(" ,\n\t", max_size=4), st.text(" \n", max_size=2))
def test_read_coordinate_h1_at_the_end_of_a_box_is_the_bottom_edge_for_any_separator(separator, end):
    assert read_last(f"[{separator.join(['<w0>', '<h0>', '<w1>', '<h1>'])}{end}]") == ("height", 1.0)


@pytest.mark.parametrize("level", range(2, 7))
def test_read_coordinate_h2_to_h6_after_a_width_raises(level):
    with pytest.raises(ValueError, match=rf"'<h{level}>' is an HTML heading"):
        read_last(f"<w0.5><h{level}>")


@pytest.mark.parametrize("written", ["<h1.0>", "<h1.>", "<h0>", "<w1>", "<t1>"])
def test_read_coordinate_0_and_1_that_are_not_headings_are_positions(written):
    assert read_coordinate(INLINE_COORDINATE.fullmatch(written))[1] in (0.0, 1.0)


# Order


def values_of(text):
    return {match.start(): (float(match["number"]), match["unit"]) for match in INLINE_COORDINATE.finditer(text)}


@given(positions, positions, st.text(" ,", max_size=3))
def test_check_order_span_raises_only_if_reversed(start, end, separator):
    text = f"When {{<t{start!r}>{separator}<t{end!r}>}}?"
    if start <= end:
        check_order(text, values_of(text))
    else:
        with pytest.raises(ValueError, match=re.escape(f"<t{end!r}>}}' ends before it starts")):
            check_order(text, values_of(text))


@given(st.tuples(positions, positions, positions, positions))
def test_check_order_box_raises_only_if_reversed(box):
    x1, y1, x2, y2 = box
    text = f"At [<w{x1!r}> <h{y1!r}>, <w{x2!r}> <h{y2!r}>]."
    if x1 <= x2 and y1 <= y2:
        check_order(text, values_of(text))
    else:
        with pytest.raises(ValueError, match="is reversed"):
            check_order(text, values_of(text))


def test_check_order_different_units_are_not_compared():
    for text in ("{<t5s><t0.5>}", "[<w32px><h0.5><w0.9><h9px>]"):
        check_order(text, values_of(text))
