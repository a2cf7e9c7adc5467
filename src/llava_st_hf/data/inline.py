# SPDX-License-Identifier: Apache-2.0
"""Inline coordinates of training texts: writes fractions exactly, and checks texts before a training run uses them.

The syntax itself is that of `model.inline_coordinates_llava_st` and `model.inline_spelling_llava_st`.
"""

import re
from collections.abc import Callable

from ..model.control_tokens_llava_st import check_control_tokens
from ..model.coordinates_llava_st import check_position
from ..model.inline_coordinates_llava_st import INLINE_COORDINATE, check_order, read_coordinate
from ..model.inline_spelling_llava_st import check_spelling
from .samples import EDGE_SLACK


_MEDIA_MARK = re.compile(r"<(?:video|image)>")


def fraction_text(letter: str, position: float) -> str:
    """A position of the axis `letter` ("t", "h" or "w") in the inline syntax; the float is written exactly.

    Raises:
        ValueError: naming the position, where it is not a fraction in [0, 1].
    """
    return f"<{letter}{check_position(position, f'A position <{letter}…>')!r}>"


def fraction_span_text(start: float, end: float) -> str:
    """A span in fractions of the clip in the inline syntax; its order is checked by `check_text`."""
    return f"{{{fraction_text('t', start)}{fraction_text('t', end)}}}"


def estimate_length(text: str) -> int:
    """Estimates the number of tokens of a text: a quarter of its characters, plus one for each inline coordinate."""
    rest, count = INLINE_COORDINATE.subn("", text)
    return count + len(rest) // 4


def check_text(text: str, kind: str | None, to_position: Callable[[str, float, str], float] | None = None) -> None:
    """
    Raises an error for a text that the processor would not accept in the middle of a training run.

    Args:
        text: of one message.
        kind: "image" or "video", of the conversation; None for text alone.
        to_position: converts seconds and pixels to positions, as `read_coordinate` takes it, where the image or video is available.
            Without it, only the unit is checked against `kind`.

    Raises:
        ValueError: naming an invalid or misspelt coordinate, a reversed or incomplete box or span, a mark `<video>` or `<image>`, or a
            token of the model.
    """
    if (mark := _MEDIA_MARK.search(text)) is not None:
        reason = "the chat template writes it before the first question" if kind else "the sample has no video or image"
        raise ValueError(f"The text contains {mark[0]!r}, but {reason}: {text[:100]!r}.")
    check_control_tokens(text)
    check_spelling(text)

    def check_unit(axis: str, value: float, written: str) -> float:
        if axis == "temporal" and kind == "image":
            raise ValueError(f"{written} is a time, but the sample has an image.")
        if value < (0 if axis == "temporal" else -EDGE_SLACK):
            raise ValueError(f"{written} is before the start of the {kind}.")
        return value

    values = {}
    for match in INLINE_COORDINATE.finditer(text):
        value = read_coordinate(match, (to_position or check_unit) if kind else None)[1]
        values[match.start()] = (value, None if to_position else match["unit"])  # with `to_position`, all are fractions
    check_order(text, values)
