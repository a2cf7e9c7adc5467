# SPDX-License-Identifier: Apache-2.0
"""Check for misspelled inline coordinates, spans and boxes, which would be tokenized as ordinary text."""

import re
from itertools import pairwise

from .coordinates_llava_st import COORDINATE_TOKEN
from .inline_coordinates_llava_st import COORDINATE_ADVICE, INLINE_COORDINATE, heading_error


# Text that resembles a coordinate. "<" may come from an input method (＜); "&lt;" is only matched before a decimal number, because
# "&lt;h1&gt;" is the correct escape of a heading.
_OPEN = "[<\uff1c]\\s*"
_CLOSE = "[>\uff1e]"
# Between letter and number. A comma is matched only directly after a lower-case letter: `array<T, 3>` is code.
_BETWEEN = r"(?:[thw],|[thwTHW](?:[^\w<>,;]|_){0,4})"
_UNITS = (
    "s|secs?|seconds?|ms|msecs?|milliseconds?|m|mins?|minutes?|h|hrs?|hours?|f|fr|frames?|px|pix|pixels?|pt|r?em|cm|mm|pct|percent|e|x|to"
)
# After the first digit: digits, signs, units, and further numbers with the letter of their axis, as in `<w0 h0 w1 h1>`.
# The alternatives are mutually exclusive, which prevents catastrophic backtracking.
_AXIS = r"[thw](?=[\s=:]{0,8}\d)"
_REST = rf"(?:[\d_]|[^\w<>\uff1e]|(?<![^\W\d_])(?:(?!{_AXIS})(?i:{_UNITS})(?![^\W\d_])|{_AXIS})){{0,120}}"
_PRINTED = r"(?:np\.|numpy\.|torch\.)?(?:tensor|float\d\d|array)\("
_HEADING = re.compile(r"<\s*[hH][1-6]\s*/?>")
_TAIL = re.compile("[^<>\n]{0,24}>?")  # text quoted in the error after a near miss without a closing bracket
_NEAR_MISS = re.compile(
    "|".join(
        (
            rf"{_OPEN}{_BETWEEN}\d{_REST}{_CLOSE}",
            # A decimal number, or one with a unit, is not an identifier in code: an error even without a closing bracket.
            r"(?:[<\uff1c]|&lt;)\s*[thwTHW][\s=:\"'+-]{0,4}\d{0,20}\.\d",
            r"[<\uff1c]\s*[thw]\d{1,20}(?:s|px)(?!\w)",
            r"[<\uff1c]\s*[thw]\d{1,20}(?=\s{0,20}<[thw][\d.])",
            # Values printed by a program instead of a number.
            rf"{_OPEN}[thw][\s=:]{{0,4}}(?:[+-]?(?i:nan|inf|infinity|none|null|undefined)|{_PRINTED}[^<>]{{0,80}}){_CLOSE}",
            # Axes named x or y, if the number can only be a coordinate.
            rf"{_OPEN}[xy]\s*[+-]?(?:\d{{0,20}}\.\d{{1,20}}|\d{{1,20}}(?:\.\d{{0,20}})?\s*px){_CLOSE}",
            # Misspelled bin tokens; the correct form has capital letters, a hyphen and three digits.
            rf"{_OPEN}(?:(?:TEMP|HEIGHT|WIDTH)[-_\s]*\.?\d[\d.]{{0,40}}|(?i:temp|height|width)-\d\d\d)\s*{_CLOSE}",
        )
    )
)


def check_spelling(text: str) -> None:
    """
    Raises an error for misspelled coordinates, spans and boxes, which would be tokenized as ordinary text or only in part.

    These are: `<`, spaces, a letter t, h or w and a number in any other spelling than that of `INLINE_COORDINATE` (`<t0,4>`, `<t1:30>`,
    `<t 0.5>`, `<T0.5>`, `<w50%>`); a bin token without its three digits; brackets `[…]` around coordinates other than a box
    or times; braces `{…}` around coordinates other than a span; and such brackets without a partner. Other markup is accepted.

    Raises:
        ValueError: naming the text, with the correct syntax.
    """
    if "<" not in text and "\uff1c" not in text and "&lt;" not in text:
        return
    for found in _NEAR_MISS.finditer(text):
        if INLINE_COORDINATE.match(text, found.start()) or COORDINATE_TOKEN.match(text, found.start()):
            continue
        written = found[0]
        if not written.endswith((">", "\uff1e")):
            written += next(_TAIL.finditer(text, found.end()))[0]
        if _HEADING.fullmatch(written):
            raise heading_error(written)
        raise ValueError(
            f"{written!r} is not a coordinate. {COORDINATE_ADVICE} Letters are small, there are no blanks, a number has a decimal point "
            "and no other sign; minutes are written as seconds (1:30 as <t90s>), per cent as a fraction (50 % as <w0.5>)."
        )
    _check_groups(text)


_LETTER_OF_TOKEN = {"TEMP": "t", "HEIGHT": "h", "WIDTH": "w"}
_COORDINATE = re.compile(rf"{INLINE_COORDINATE.pattern}|{COORDINATE_TOKEN.pattern}")
_ONE = re.sub(r"\?P<\w+>", "?:", _COORDINATE.pattern)
# Coordinates with only number separators between them.
_RUN = re.compile(rf"(?:{_ONE})(?:(?:[^\w<>\[\]{{}}()]|to|and){{0,20}}(?:{_ONE}))*")
_SEPARATORS = re.compile(r"[\s,]*")
_PARTNER = {"[": "]", "{": "}"}


def _check_groups(text: str) -> None:
    """Raises an error for brackets around coordinates other than a box, a span or a list of times. Groups of tokens only are accepted."""
    partners = None
    for run in _RUN.finditer(text):
        items = list(_COORDINATE.finditer(text, run.start(), run.end()))
        if all(item["letter"] is None for item in items):
            continue
        start, end = run.span()
        while start > 0 and text[start - 1].isspace():
            start -= 1
        while end < len(text) and text[end].isspace():
            end += 1
        opening = text[start - 1] if start > 0 and text[start - 1] in "[{" else ""
        closing = text[end] if end < len(text) and text[end] in "]}" else ""
        if not opening and not closing:
            continue
        written = text[start - len(opening) : end + len(closing)]
        letters = "".join(item["letter"] or _LETTER_OF_TOKEN[item["name"]] for item in items)
        if opening and _PARTNER[opening] == closing:
            is_plain = all(_SEPARATORS.fullmatch(text, a.end(), b.start()) for a, b in pairwise(items))
            if opening == "[" and not (set(letters) == {"t"} or (letters == "whwh" and is_plain)):
                raise ValueError(
                    f"{written!r:.300} is not a box. A box has four coordinates, left, top, right and bottom, with blanks or commas "
                    "between them: [<w0.1><h0.2><w0.5><h0.9>]. A single point is written without brackets: <w0.1><h0.2>."
                )
            if opening == "{" and not (letters == "tt" and is_plain):
                raise ValueError(
                    f"{written!r:.300} is not a span. A span has two times, with blanks or a comma between them: {{<t0.4><t0.6>}}. A "
                    "single time is written without braces: <t0.4>. A box is written in brackets: [<w0.1><h0.2><w0.5><h0.9>]."
                )
            continue
        if partners is None:
            partners = _bracket_partners(text)
        unpaired = (opening and start - 1 not in partners) or (closing and end not in partners)
        if (opening and closing) or unpaired:
            raise ValueError(
                f"{written!r:.300} has a bracket without its partner. A box is [<w0.1><h0.2><w0.5><h0.9>], a span {{<t0.4><t0.6>}}."
            )


def _bracket_partners(text: str) -> set[int]:
    """Indices of all square brackets and braces in `text` that have a partner of their kind."""
    paired: set[int] = set()
    for opening, closing in _PARTNER.items():
        waiting = []
        for found in re.finditer(rf"[{re.escape(opening + closing)}]", text):
            if found[0] == opening:
                waiting.append(found.start())
            elif waiting:
                paired |= {waiting.pop(), found.start()}
    return paired
