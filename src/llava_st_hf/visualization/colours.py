# SPDX-License-Identifier: Apache-2.0
"""Colours of boxes, spans and text, and sizes of lines and text for an image."""

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
# Blue and orange can also be distinguished with red-green colour blindness.
TRUTH_COLOUR: Colour = (0, 150, 255)
ANSWER_COLOUR: Colour = (255, 130, 0)
# Of the events of an answer, or of several answers, in order. They begin with pairs that red-green colour blindness leaves different.
PALETTE: tuple[Colour, ...] = (
    *(ANSWER_COLOUR, TRUTH_COLOUR, (255, 225, 30), (215, 110, 245), (60, 205, 100), (250, 90, 110), (40, 215, 215), (175, 150, 120)),
)
WHITE, INK, RAIL = (255, 255, 255), (40, 40, 40), (225, 225, 225)
BLACK = (0, 0, 0)
# Frames and images whose shorter side is below this many pixels have no room for text.
SMALLEST_WITH_TEXT = 120


def palette_colour(index: int) -> Colour:
    """The colour of an event or answer; colours repeat after the end of `PALETTE`."""
    return PALETTE[index % len(PALETTE)]


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever has more contrast on a colour."""
    red, green, blue = colour
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else WHITE


def check_colour(colour, name: str) -> Colour:
    """Returns a colour as a tuple. Raises `ValueError`, naming the argument, unless it is three whole numbers from 0 to 255."""
    try:
        red, green, blue = (int(value) for value in colour)
        valid = all(0 <= value <= 255 for value in (red, green, blue)) and not isinstance(colour, (str, bytes))
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"{name} must have (red, green, blue) from 0 to 255 for each colour; got {colour!r}.")
    return red, green, blue


def line_width_for(width: int, height: int) -> int:
    """Width in pixels of the lines of boxes in an image: 1/240 of the shorter side, at least 2."""
    return max(2, round(min(width, height) / 240))


def font_size_for(width: int, height: int) -> int:
    """Size in pixels of text in an image: 1/34 of the shorter side, at least 11."""
    return max(11, round(min(width, height) / 34))
