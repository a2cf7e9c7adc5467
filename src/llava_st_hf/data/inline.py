# SPDX-License-Identifier: Apache-2.0
"""Coordinates inside texts: writing fractions exactly, and checking what is written before a training run meets it."""

import re
from collections.abc import Callable

from ..configuration_llava_st import SPECIAL_TOKENS
from ..coordinates import INLINE_COORDINATE, INLINE_LETTERS, check_position, read_coordinate
from .samples import EDGE_SLACK


_ANY = re.sub(r"\?P<\w+>", "?:", INLINE_COORDINATE.pattern)
_T, _H, _W = (_ANY.replace("[thw]", letter) for letter in INLINE_LETTERS)
_SPAN = re.compile(rf"\{{\s*{_T}[\s,]*{_T}\s*\}}")
_BOX = re.compile(rf"\[\s*{_W}[\s,]*{_H}[\s,]*{_W}[\s,]*{_H}\s*\]")
_MEDIA_MARK = re.compile(r"<(?:video|image)>")
# What only the processor and the chat template may write.
_CONTROL = re.compile("|".join(map(re.escape, [*SPECIAL_TOKENS.values(), "<|im_start|>", "<|im_end|>", "<|endoftext|>"])))


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
        ValueError: naming a coordinate that cannot be read, a reversed box or span, a mark `<video>` or `<image>`, or a token
            of the model.
    """
    if "<" not in text:
        return
    if (mark := _MEDIA_MARK.search(text)) is not None:
        about = "the chat template writes it before the first question" if kind else "the sample has no video or image"
        raise ValueError(f"The text holds {mark[0]!r}, but {about}: {text[:100]!r}.")
    if (token := _CONTROL.search(text)) is not None:
        raise ValueError(f"The text holds the model's own token {token[0]!r}: {text[:100]!r}.")

    def check_unit(axis: str, value: float, written: str) -> float:
        if axis == "temporal" and kind == "image":
            raise ValueError(f"{written} is a time, but the sample has an image.")
        if value < (0 if axis == "temporal" else -EDGE_SLACK):
            raise ValueError(f"{written} lies before the start of the {kind}.")
        return value

    places = {}
    for match in INLINE_COORDINATE.finditer(text):
        places[match.start()] = (read_coordinate(match, (to_position or check_unit) if kind else None)[1], match["unit"])
    for span in _SPAN.finditer(text):
        (start, _), (end, _) = found = [places[span.start() + m.start()] for m in INLINE_COORDINATE.finditer(span[0])]
        if start > end and _comparable(found, to_position):
            raise ValueError(f"The span {span[0]!r} ends before it starts.")
    for box in _BOX.finditer(text):
        found = [places[box.start() + m.start()] for m in INLINE_COORDINATE.finditer(box[0])]
        for low, high in (found[0::2], found[1::2]):
            if low[0] > high[0] and _comparable([low, high], to_position):
                raise ValueError(f"The box {box[0]!r} is reversed: boxes are [left, top, right, bottom].")


def _comparable(found: list[tuple[float, str | None]], to_position) -> bool:
    """Whether values are of one unit; with the medium at hand all of them are fractions."""
    return to_position is not None or len({unit for _, unit in found}) == 1
