# SPDX-License-Identifier: Apache-2.0
"""Drawing what an answer says: boxes on pictures, spans on a time line. Nothing here reads a file or knows of a model.

All functions give new images and leave those that they are given as they are.
"""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont


Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
# Blue against orange, which those who cannot tell red from green see as well.
TRUTH_COLOUR: Colour = (0, 150, 255)
ANSWER_COLOUR: Colour = (255, 130, 0)

_BACKGROUND, _INK, _RAIL = (255, 255, 255), (40, 40, 40), (225, 225, 225)
_FONT_SIZE = 13  # pixels
_TRACK = 18  # pixels in height of one span on a time line


def as_image(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image:
    """
    An RGB copy of a picture.

    Args:
        image: of any mode, or uint8 `(height, width, 3)`.
    """
    return (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB").copy()


def draw_boxes(
    image: PIL.Image.Image | np.ndarray,
    boxes: Sequence[tuple[Sequence[float], Colour, str | None]],
    line_width: int | None = None,
) -> PIL.Image.Image:
    """
    A picture with boxes drawn on it, the later ones above.

    Args:
        image: of any mode, or uint8 `(height, width, 3)`.
        boxes: `(box, colour, label)` of each: x1, y1, x2, y2 in pixels of the picture, in any order of the ends, and the label beside it
            or None. What lies outside is drawn along the edge; a box with a NaN or an infinity is left out.
        line_width: in pixels; None for one that suits the size of the picture.
    """
    drawn = as_image(image)
    draw = PIL.ImageDraw.Draw(drawn)
    line_width = line_width or max(2, round(max(drawn.size) / 200))
    clipped = []
    for box, colour, label in boxes:
        if not all(map(math.isfinite, box)):
            continue
        xs, ys = (
            sorted(min(max(corner, 0), size - 1) for corner in corners)
            for corners, size in zip((box[::2], box[1::2]), drawn.size, strict=True)
        )
        # A dark seam on both sides keeps a line visible on a ground of its own colour.
        draw.rectangle((xs[0] - 1, ys[0] - 1, xs[1] + 1, ys[1] + 1), outline=_INK, width=line_width + 2)
        draw.rectangle((xs[0], ys[0], xs[1], ys[1]), outline=colour, width=line_width)
        clipped.append(((xs[0], ys[0], xs[1], ys[1]), colour, label))
    taken: list[tuple[float, float, float, float]] = []
    for corners, colour, label in clipped:  # after all boxes, so that no line goes through a word
        if label:
            taken.append(_draw_label(draw, drawn.size, corners, colour, label, taken))
    return drawn


def _draw_label(draw, size, box, colour: Colour, label: str, taken) -> tuple[float, float, float, float]:
    """Writes at the first free corner of a box, and says where."""
    left, top, right, bottom = draw.textbbox((0, 0), label, font=_font())
    width, height = right - left + 6, bottom - top + 6
    places = [(box[0], box[1] - height), (box[2] - width, box[3]), (box[0], box[3]), (box[2] - width, box[1] - height), (box[0], box[1])]
    inside = [(min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))) for x, y in places]
    rectangles = [(x, y, x + width, y + height) for x, y in inside]
    free = [place for place in rectangles if not any(_overlap(place, other) for other in taken)]
    place = (free or rectangles)[0]
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + 3 - left, place[1] + 3 - top), label, fill=(0, 0, 0), font=_font())
    return place


def _overlap(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_timeline(
    width: int, spans: Sequence[tuple[tuple[float, float] | None, Colour, str]], marks: Sequence[float] = ()
) -> PIL.Image.Image:
    """
    Spans below each other on a line that stands for the whole clip.

    Args:
        width: of the picture, in pixels.
        spans: `(span, colour, label)` of each, as fractions of the clip; a track stays empty where the span is None.
        marks: fractions of the clip at which to draw a thin line across.
    """
    image = PIL.Image.new("RGB", (width, _TRACK * len(spans) + 6), _BACKGROUND)
    draw = PIL.ImageDraw.Draw(image)
    start = 8 + max((draw.textlength(label, font=_font()) for _, _, label in spans), default=0)
    length = max(width - start - 2, 1)
    for number, (span, colour, label) in enumerate(spans):
        top = 3 + number * _TRACK
        draw.text((2, top + 1), label, fill=_INK, font=_font())
        draw.rectangle((start, top + 2, start + length, top + _TRACK - 4), fill=_RAIL)
        if span is not None and all(map(math.isfinite, span)):
            low, high = (start + length * min(max(position, 0.0), 1.0) for position in sorted(span))
            draw.rectangle((low, top + 2, max(high, low + 1), top + _TRACK - 4), fill=colour)
    for mark in marks:
        x = start + length * min(max(mark, 0.0), 1.0)
        draw.line((x, 1, x, image.height - 2), fill=_INK)
    return image


def add_caption(image: PIL.Image.Image, text: str) -> PIL.Image.Image:
    """The picture with a line of words above."""
    whole = PIL.Image.new("RGB", (image.width, image.height + _FONT_SIZE + 6), _BACKGROUND)
    PIL.ImageDraw.Draw(whole).text((2, 1), text, fill=_INK, font=_font())
    whole.paste(image, (0, _FONT_SIZE + 6))
    return whole


def side_by_side(images: Sequence[PIL.Image.Image], gap: int = 6) -> PIL.Image.Image:
    """Pictures in one row, `gap` pixels apart. There has to be one at least."""
    whole = PIL.Image.new("RGB", (sum(i.width for i in images) + gap * (len(images) - 1), max(i.height for i in images)), _BACKGROUND)
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + gap
    return whole


def one_above_another(images: Sequence[PIL.Image.Image], gap: int = 6) -> PIL.Image.Image:
    """Pictures in one column, `gap` pixels apart. There has to be one at least."""
    whole = PIL.Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images) + gap * (len(images) - 1)), _BACKGROUND)
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height + gap
    return whole


def _font():
    return PIL.ImageFont.load_default(_FONT_SIZE)
