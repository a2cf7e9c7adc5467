# SPDX-License-Identifier: Apache-2.0
"""`check_spelling`: misspelt coordinates, spans and boxes raise an error that names them; other markup is accepted."""

import re
from contextlib import suppress
from time import process_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_st_hf.model.coordinates_llava_st import COORDINATE_TOKEN
from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE
from llava_st_hf.model.inline_spelling_llava_st import check_spelling


NEAR_MISSES = [
    "<t0,4>", "<t,5>", "<t1,234.5s>", "<t0·5>",  # no decimal point
    "<t1:30>", "<t1:30s>", "<t00:01:30.5>", "<t1m30s>", "<t1 min 30 s>", "<t1'30>",  # minutes
    "<t 0.5>", "< t0.5 >", "<t0.5 s>", "<w 320 px>", "<t 5>", "<t5 >", "<w\u200b0.5>", "<t\u00a00.5>", "<t\n0.5>",  # blanks
    "<T0.5>", "<T1>", "<W320px>", "<w320PX>", "<t5S>",  # capitals
    "<t0.5sec>", "<t90 seconds>", "<t500ms>", "<t1.5h>", "<w50%>", "<h120 pixels>", "<t5frames>", "<w0.5em>",  # units
    "<t=0.5>", "<t:0.5>", "<t_0.5>", '<t"0.5">', "<t(0.5)>", "<t−0.5>", "<t~3>", "<t+ 0.5>",  # signs before the number
    "<t0.5/>", "<t1/2>", "<t0..5>", "<t0.1-0.4>", "<t0.5 to 0.9>", "<w0.1,h0.2>", "<w0 h0 w1 h1>", "<w320x240>",  # several numbers
    "<t0.5 and", "<t0.5", "<w320px and", "{<t0<t1>}", "{<t0.5<t0.9>}",  # no closing bracket
    "<tNone>", "<tNaN>", "<t nan>", "<ttensor(0.5)>", "<tnp.float64(0.5)>", "<wundefined>",  # printed by a program
    "<x0.5>", "<y320px>", "<TEMP-7>", "<TEMP-1000>", "<TEMP-0.5>", "<TEMP_007>", "<temp-007>", "<WIDTH 50>",  # other names
    "&lt;t0.5&gt;", "＜t0.5＞", "<t0.5＞",  # other brackets
    "<w0.5><h 1>", "<t0.5><t0,6>",  # next to a valid one
]  # fmt: skip


@pytest.mark.parametrize("written", NEAR_MISSES)
@pytest.mark.parametrize("around", ["{}", "What happens at {}"])
def test_check_spelling_misspelt_coordinate_raises_with_its_text_and_the_syntax(written, around):
    with pytest.raises(ValueError, match=r"is not a coordinate\. Write <t0\.409>") as error:
        check_spelling(around.format(written))
    tags = re.findall("[<\uff1c][^<>]*[>\uff1e]", written)
    (misspelt,) = [tag for tag in tags if not INLINE_COORDINATE.match(tag)] or [written.lstrip("{")[:3]]
    assert repr(misspelt)[:-1] in str(error.value)


@pytest.mark.parametrize("written", ["<H1>", "<h1 >", "< h2>", "<h1/>"])
def test_check_spelling_html_heading_variants_raise(written):
    with pytest.raises(ValueError, match=f"'{written}' is an HTML heading"):
        check_spelling(f"{written}News")


PLAIN = [
    "<table>", "<td>", "<tr>", "<th>", "<tt>", "<hr>", "<html>", "<head>", "<title>", "<time>", "<template>", "</h1>", "<h1 hidden>",
    "<h1 class=x>", "<h1 class='x' id=\"1\">", '<h2 style="top:3px">', '<time datetime="2020-01-01">', "<time 12:30>", "&lt;h1&gt;",
    "<world>", "<think>", "<tool_call>", "<WIDTH", "<WIDTH>", "<TEMP>", "<width=320>", "<w3c>", "<w00t>", "<t3ch>", "<t-shirt>", "<hi5>",
    "<http://a.b/c1>", "<h@x.com>", "<hh:mm:ss>", "<t{start}>", "<w x h>", "<t,h,w>", "<x1>, <y1>", "<T>", "<W>", "List<T>",
    "std::array<T, 3>", "Map<T1, T2>", "a<t and w>h", "if x<w2 and y>3", "x<t1 && y>2", "a < t1, b > 2", "5 < t < 10", "t<0.5", "<3",
    "[1, 2] {3} [x] {", "a[i<w2]",
]  # fmt: skip
RIGHT = [
    "<t0.5>", "<t1.8s>", "<w320px>", "<TEMP-007>", "{<t0.5> , <t0.9>}", "[<w0.1>, <h0.2>, <w0.5>, <h0.9>]", "[<w0><h0><w1><h1>]",
    "(<t0.5>)", "[<t0.5s>] hello", "[<t0.5s> hello]", "[<t0.1>, <t0.3>, <t0.5>]", "<w0.1><h0.2>", "From <t0.2s> to <t1.1s>",
    '{"box": [<w0.1><h0.2><w0.5><h0.9>], "start": <t0.5>}', "<t0.2>:[<w0.1><h0.2><w0.5><h0.9>]<t0.3>:[<w0.1><h0.2><w0.5><h0.9>].",
    "[[<w0.1><h0.2><w0.5><h0.9>], [<w0.1><h0.2><w0.5><h0.9>]]", "[<WIDTH-010><HEIGHT-020>]", "{<TEMP-001>}", "{<TEMP-001><TEMP-002>",
    "<t>", "<t5px>", "<w1.7>",  # `read_coordinate` raises an error for these
]  # fmt: skip


@pytest.mark.parametrize("written", PLAIN + RIGHT)
def test_check_spelling_accepts_other_markup_and_valid_coordinates(written):
    check_spelling(written)
    check_spelling(f"See {written} now, {written}.")


numbers = st.one_of(st.floats(0, 99).map(lambda x: f"{x:.3f}"), st.integers(0, 10_000).map(str))
letters = st.sampled_from("thw")
blanks = st.text(" \t\n\u00a0", min_size=1, max_size=3)
near_misses = st.one_of(
    st.builds("<{}{}{}>".format, letters, blanks, numbers),
    st.builds("<{}{}{}>".format, letters, numbers, blanks),
    st.builds("<{}{}{}>".format, blanks, letters, numbers),
    st.builds("<{}{}>".format, st.sampled_from("THW"), numbers),
    st.builds("<{}{},{}>".format, letters, st.integers(0, 99), st.integers(0, 999)),
    st.builds("<{}{}:{:02}{}>".format, letters, st.integers(0, 99), st.integers(0, 59), st.sampled_from(["", "s", ".5", ":07"])),
    st.builds("<{}{}{}>".format, letters, numbers, st.sampled_from(["sec", "ms", "min", " s", " px", "%", "/", "PX", "frames", " pixels"])),
    st.builds("<{}{}{}>".format, letters, st.sampled_from(["=", ":", "= ", "_", '"', "(", "+ ", "±"]), numbers),
)


@given(near_misses, st.sampled_from(["{}", "at {}", "{} now", "<b>{}</b>", "[<t0.5>] {}", "{{{}<t0.5>}}"]))
@example("<t0.5 s>", "{}")
def test_check_spelling_generated_misspelt_coordinates_raise(written, around):
    with pytest.raises(ValueError, match=r"is not a coordinate|is an HTML heading"):
        check_spelling(around.format(written))


def begins_like_a_coordinate(text):
    return re.search(r"(?:[<\uff1c]|&lt;)\s*(?:[thwxyTHW]|TEMP|HEIGHT|WIDTH)", text) or COORDINATE_TOKEN.search(text)


@given(st.text(st.sampled_from("<>thwTHWabx019.,:[]{}()/= \n-s&;"), max_size=60))
@example("[<a>]{</t1>}")
def test_check_spelling_accepts_texts_without_the_beginning_of_a_coordinate(text):
    if not begins_like_a_coordinate(text):
        check_spelling(text)


tag_names = st.from_regex(r"/?[thwTHW][a-zA-Z]{1,10}", fullmatch=True).filter(
    lambda name: (
        name.lower().lstrip("/") not in ("ts", "wpx", "hpx", "tpx")
        and not re.fullmatch("(?i).(nan|inf|infinity|none|null|undefined)", name)
    )
)


@given(tag_names, st.sampled_from(["", " class=x1", ' id="t1"', "/", " width='3'", ">5"]))
def test_check_spelling_accepts_tags_of_other_languages(name, attributes):
    check_spelling(f"<{name}{attributes}>text</{name}>")


# Spans and boxes


def written_as(letters, separator=""):
    return separator.join(f"<{letter}0.{number}>" for number, letter in enumerate(letters, start=1))


@given(st.text("thw", min_size=1, max_size=6), st.sampled_from(["", " ", ",", ", ", "\n"]))
def test_check_spelling_brackets_with_anything_but_a_box_or_times_raise(letters, separator):
    text = f"At [{written_as(letters, separator)}]?"
    if letters == "whwh" or set(letters) == {"t"}:
        check_spelling(text)
    else:
        with pytest.raises(ValueError, match=rf"\[{re.escape(repr(written_as(letters, separator))[1:-1])}\]' is not a box"):
            check_spelling(text)


@given(st.text("thw", min_size=1, max_size=6), st.sampled_from(["", " ", ",", ", ", "\n"]))
def test_check_spelling_braces_with_anything_but_a_span_raise(letters, separator):
    text = f"In {{{written_as(letters, separator)}}}?"
    if letters == "tt":
        check_spelling(text)
    else:
        with pytest.raises(ValueError, match="is not a span"):
            check_spelling(text)


@pytest.mark.parametrize("separator", ["-", " to ", " – ", ";", " and ", "|"])
def test_check_spelling_invalid_separator_in_a_span_or_box_raises(separator):
    for text, message in ((f"{{{written_as('tt', separator)}}}", "is not a span"), (f"[{written_as('whwh', separator)}]", "is not a box")):
        with pytest.raises(ValueError, match=message):
            check_spelling(text)
    check_spelling(f"Between {written_as('tt', separator)}.")


@pytest.mark.parametrize("inner", ["whwh", "whw", "tt", "t"])
@pytest.mark.parametrize(
    "form", ["[{} is", "{}] is", "{{{} is", "{}}} is", "[{}}} is", "[a] {{{}] {{b}}", "[{} and [b]", "x] {}] [", "{{a [{}}} b]"]
)
def test_check_spelling_unbalanced_bracket_raises(inner, form):
    with pytest.raises(ValueError, match="has a bracket without its partner"):
        check_spelling(form.format(written_as(inner)))


def test_check_spelling_coordinate_tokens_count_as_coordinates_of_a_box():
    check_spelling("[<WIDTH-010><h0.2><w0.5><HEIGHT-090>]")
    with pytest.raises(ValueError, match="is not a box"):
        check_spelling("[<WIDTH-010><h0.2>]")


@pytest.mark.parametrize(
    "text",
    [
        "[<t1>x" * 20_000,
        "<t0" * 30_000,
        "<" + " " * 100_000,
        "<t0 " + "1 " * 50_000,
        "<t1>" + " " * 100_000,
        "[ " * 50_000,
        "<t1>,," * 20_000,
        "<t" + "0" * 100_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_check_spelling_long_texts_take_linear_time(text):
    start = process_time()
    with suppress(ValueError):
        check_spelling(text)
    assert process_time() - start < 5


def test_check_spelling_accepts_every_number_format():
    for number in ("1", "1.", ".5", "+.5e-3", "1E2", "-3"):
        for text in (f"<t{number}>", f"<w{number}px>", f"<t{number}s>"):
            assert INLINE_COORDINATE.fullmatch(text)
            check_spelling(text)


@pytest.mark.parametrize(
    "text", ["<w0 h0 " + "w0 h0 " * 30, "<w0h0" + "h 0" * 40, "<t0" + " h0" * 40, "<t1 " + "h" * 200, "<w1 " + "h m s " * 40]
)
def test_check_spelling_long_texts_without_closing_bracket_take_under_one_second(text):
    start = process_time()
    with suppress(ValueError):
        check_spelling(text * 20)
    assert process_time() - start < 1
