# SPDX-License-Identifier: Apache-2.0
"""Inline coordinates: syntax and values of coordinates written inside a text.

`<t0.409>`, `<h0.442>` and `<w0.352>` are fractions of the clip, the height and the width; `<t1.8s>` is in seconds, `<h120px>` and
`<w320px>` are in pixels. A span is `{<t…><t…>}`, a box `[<w…><h…><w…><h…>]` (left, top, right, bottom).
"""

import math
import re
from collections.abc import Callable, Mapping

from .coordinates_llava_st import check_position


INLINE_LETTERS = {"t": "temporal", "h": "height", "w": "width"}

# `<t>`, `<tnan>` and HTML's `<h1>` match so that an error can name them; `<table>` or `<h1 class=…>` do not.
# The alternatives of a number exclude each other, so that long runs of digits are matched in linear time.
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?nan|[+-]?inf"
INLINE_COORDINATE = re.compile(rf"<(?P<letter>[thw])(?P<number>{_NUMBER})?(?P<unit>s|px)?>")

COORDINATE_ADVICE = (
    "Write <t0.409>, <h0.442> or <w0.352> for a fraction of the clip, the height or the width; <t1.8s> for seconds; <w320px> for pixels."
)

# Spans and boxes of inline coordinates, for the check of their order.
_ANY = re.sub(r"\?P<\w+>", "?:", INLINE_COORDINATE.pattern)
_T, _H, _W = (_ANY.replace("[thw]", letter) for letter in INLINE_LETTERS)
_SPAN = re.compile(rf"\{{\s*{_T}[\s,]*{_T}\s*\}}")
_BOX = re.compile(rf"\[\s*{_W}[\s,]*{_H}[\s,]*{_W}[\s,]*{_H}\s*\]")

# HTML headings, and the text around an `<h1>` that is the bottom edge: some programs print 1.0 as 1.
_HEADING = re.compile(r"<h[1-6]>")
_WIDTH_BEFORE = re.compile(rf"<w(?:{_NUMBER})>(?P<separator>[\s,]*)")
_BOX_END = re.compile(r"\s*\]")


def read_coordinate(match: re.Match, to_position: Callable[[str, float, str], float] | None = None) -> tuple[str, float]:
    """Converts one coordinate to `(axis, position)`; the position is a fraction in [0, 1].

    Args:
        match: of `INLINE_COORDINATE`, or of a pattern that contains it, in the whole text: `<h1>` is the bottom edge directly after a
            width in fractions, and at the end of a box; anywhere else it is an HTML heading, which is an error.
        to_position: turns `(axis, value, written)` into a fraction, where the value is in seconds or pixels; without it units are
            an error.

    Raises:
        ValueError: naming the coordinate as written, if it has no number, is an HTML heading, is not finite, lies outside [0, 1],
            or has a unit of another axis or one that needs a video or image.
    """
    written, axis, unit = match[0], INLINE_LETTERS[match["letter"]], match["unit"]
    if match["number"] is None:
        raise ValueError(f"The coordinate {written!r} has no number. {COORDINATE_ADVICE}")
    if _HEADING.fullmatch(written) and not (written == "<h1>" and _follows_width(match)):
        raise heading_error(written)
    value = float(match["number"])
    if not math.isfinite(value):
        raise ValueError(f"The coordinate {written!r} is not a finite number.")
    if unit is None:
        return axis, check_position(value, f"The coordinate {written!r}")
    if (unit == "s") != (axis == "temporal"):
        raise ValueError(f"The coordinate {written!r} has the wrong unit: <t…> takes s (seconds), <h…> and <w…> take px (pixels).")
    if to_position is None:
        unit_name = "seconds" if unit == "s" else "pixels"
        raise ValueError(f"The coordinate {written!r} is in {unit_name}, but there is no video or image before it.")
    return axis, to_position(axis, value, written)


def _follows_width(match: re.Match) -> bool:
    text, start = match.string, match.start()
    before = _WIDTH_BEFORE.fullmatch(text, max(text.rfind("<", 0, start), 0), start)
    return before is not None and (not before["separator"] or _BOX_END.match(text, match.end()) is not None)


def heading_error(written: str) -> ValueError:
    """Returns the error for an HTML heading where a coordinate may be meant."""
    return ValueError(
        f"{written!r} is an HTML heading, which is not allowed in a prompt. As a coordinate, write <h1.0> for the bottom edge, "
        "a fraction like <h0.442>, or <h1px> for pixels."
    )


def check_order(text: str, values: Mapping[int, tuple[float, str | None]]) -> None:
    """
    Raises an error for spans that end before they start, and boxes whose right or bottom edge is before the left or top one.

    Args:
        text: of any length.
        values: index of the first character of each inline coordinate in `text` → its value, and the unit of that value ("s", "px", or
            None for a fraction). Only values of one unit are compared.

    Raises:
        ValueError: naming the span or box as written.
    """

    def reversed_pair(first: int, last: int) -> bool:
        (low, low_unit), (high, high_unit) = values[first], values[last]
        return low_unit == high_unit and low > high

    for span in _SPAN.finditer(text):
        start, end = _starts(span)
        if reversed_pair(start, end):
            raise ValueError(f"The span {span[0]!r} ends before it starts.")
    for box in _BOX.finditer(text):
        x1, y1, x2, y2 = _starts(box)
        if reversed_pair(x1, x2) or reversed_pair(y1, y2):
            raise ValueError(f"The box {box[0]!r} is reversed: boxes are [left, top, right, bottom].")


def _starts(group: re.Match) -> list[int]:
    """Index of the first character, in the whole text, of each inline coordinate of a span or box."""
    return [found.start() for found in INLINE_COORDINATE.finditer(group.string, group.start(), group.end())]
