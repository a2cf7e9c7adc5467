# SPDX-License-Identifier: Apache-2.0
"""Coordinates inside texts: writing fractions exactly, and checking what is written before a training run meets it."""

import re
from collections.abc import Callable

from ..model.control_tokens_llava_st import check_control_tokens
from ..model.coordinates_llava_st import check_position
from ..model.inline_coordinates_llava_st import INLINE_COORDINATE, check_order, read_coordinate
from ..model.inline_spelling_llava_st import check_spelling
from .samples import EDGE_SLACK


_MEDIA_MARK = re.compile(r"<(?:video|image)>")


def fraction_text(letter: str, position: float) -> str:
    """A position of the axis `letter` ("t", "h" or "w") in the inline syntax, exactly: `repr` gives back the same float.

    Raises:
        ValueError: naming the position, where it is no fraction in [0, 1].
    """
    return f"<{letter}{check_position(position, f'A position <{letter}…>')!r}>"


def fraction_span_text(start: float, end: float) -> str:
    """A span in fractions of the clip in the inline syntax; its order is checked with the text that it stands in."""
    return f"{{{fraction_text('t', start)}{fraction_text('t', end)}}}"


def estimate_length(text: str) -> int:
    """About how many tokens a text takes: a quarter of its characters, and one for each inline coordinate."""
    rest, count = INLINE_COORDINATE.subn("", text)
    return count + len(rest) // 4


def check_text(text: str, kind: str | None, to_position: Callable[[str, float, str], float] | None = None) -> None:
    """
    Refuses what the processor would refuse in the middle of a training run.

    Args:
        text: of one message.
        kind: "image" or "video", what the conversation is about; None for text alone.
        to_position: turns seconds and pixels into positions, as `read_coordinate` takes it, where the medium is at hand. Without
            it, only the unit is checked against `kind`.

    Raises:
        ValueError: naming a coordinate that cannot be read or is misspelt, a reversed or incomplete box or span, a mark `<video>` or
            `<image>`, or a token of the model.
    """
    if (mark := _MEDIA_MARK.search(text)) is not None:
        about = "the chat template writes it before the first question" if kind else "the sample has no video or image"
        raise ValueError(f"The text holds {mark[0]!r}, but {about}: {text[:100]!r}.")
    check_control_tokens(text)
    check_spelling(text)

    def check_unit(axis: str, value: float, written: str) -> float:
        if axis == "temporal" and kind == "image":
            raise ValueError(f"{written} is a time, but the sample has an image.")
        if value < (0 if axis == "temporal" else -EDGE_SLACK):
            raise ValueError(f"{written} lies before the start of the {kind}.")
        return value

    values = {}
    for match in INLINE_COORDINATE.finditer(text):
        value = read_coordinate(match, (to_position or check_unit) if kind else None)[1]
        values[match.start()] = (value, None if to_position else match["unit"])  # with the medium at hand, all are fractions
    check_order(text, values)
