# SPDX-License-Identifier: Apache-2.0
"""Drawing of grounding results with Pillow: boxes on images and spans on a timeline.

All functions return new images and do not change their inputs. Boxes are drawn here and not by `torchvision.utils.draw_bounding_boxes`,
which writes every label at the top left corner: the labels of two boxes that nearly coincide would cover each other.
"""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont


Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
# Blue and orange can also be distinguished with red-green colour blindness.
TRUTH_COLOUR: Colour = (0, 150, 255)
ANSWER_COLOUR: Colour = (255, 130, 0)

_BACKGROUND, _INK, _RAIL = (255, 255, 255), (40, 40, 40), (225, 225, 225)
_FONT = PIL.ImageFont.load_default(13)  # pixels
_LINE = 19  # pixels in height of a line of text
_TRACK = 18  # pixels in height of one span on a timeline


def as_image(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image:
    """
    Returns an RGB copy of an image.

    Args:
        image: of any mode, or uint8 (height, width, 3).
    """
    return (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB").copy()


def draw_boxes(
    image: PIL.Image.Image | np.ndarray,
    boxes: Sequence[tuple[Sequence[float], Colour, str | None]],
    line_width: int | None = None,
) -> PIL.Image.Image:
    """
    Draws boxes on a copy of an image, later ones on top.

    Args:
        image: of any mode, or uint8 (height, width, 3).
        boxes: `(box, colour, label)` of each: x1, y1, x2, y2 in pixels of the image, in any order of the ends, and its label or None.
            Boxes are clipped to the image; boxes with NaN or infinity are skipped.
        line_width: in pixels; by default 1/200 of the longer side, at least 2.
    """
    drawn = as_image(image)
    draw = PIL.ImageDraw.Draw(drawn)
    line_width = line_width or max(2, round(max(drawn.size) / 200))
    labels = []
    for box, colour, label in boxes:
        if not all(map(math.isfinite, box)):
            continue
        (x1, x2), (y1, y2) = (sorted(min(max(end, 0), side - 1) for end in box[axis::2]) for axis, side in enumerate(drawn.size))
        # A dark edge on both sides keeps a line visible on a background of its own colour.
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_INK, width=line_width + 2)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=line_width)
        if label:
            labels.append(((x1, y1, x2, y2), colour, label))
    occupied: list[tuple[float, ...]] = []
    for corners, colour, label in labels:  # after all boxes, so that no line crosses a label
        occupied.append(_draw_label(draw, drawn.size, corners, colour, label, occupied))
    return drawn


def _draw_label(draw, size: tuple[int, int], box, colour: Colour, label: str, occupied) -> tuple[float, ...]:
    """Draws a label at the first corner of a box where it covers no other label; returns its rectangle in pixels."""
    left, top, right, bottom = draw.textbbox((0, 0), label, font=_FONT)
    width, height = right - left + 6, bottom - top + 6
    rectangles = []
    for x, y in ((box[0], box[1] - height), (box[2] - width, box[3]), (box[0], box[3]), (box[2] - width, box[1] - height), box[:2]):
        x, y = min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))
        rectangles.append((x, y, x + width, y + height))
    free = (a for a in rectangles if not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in occupied))
    rectangle = next(free, rectangles[0])
    draw.rectangle(rectangle, fill=colour)
    draw.text((rectangle[0] + 3 - left, rectangle[1] + 3 - top), label, fill=(0, 0, 0), font=_FONT)
    return rectangle


def draw_timeline(
    width: int, spans: Sequence[tuple[tuple[float, float] | None, Colour, str]], marks: Sequence[float] = ()
) -> PIL.Image.Image:
    """
    Draws spans below each other, on tracks that represent the whole clip.

    Args:
        width: of the result, in pixels.
        spans: `(span, colour, label)` of each, as fractions of the clip; None leaves the track empty.
        marks: fractions of the clip at which a thin vertical line is drawn.
    """
    image = PIL.Image.new("RGB", (width, _TRACK * len(spans) + 6), _BACKGROUND)
    draw = PIL.ImageDraw.Draw(image)
    start = 8 + max((draw.textlength(label, font=_FONT) for _, _, label in spans), default=0)
    length = max(width - start - 2, 1)
    for number, (span, colour, label) in enumerate(spans):
        top = 3 + number * _TRACK
        draw.text((2, top + 1), label, fill=_INK, font=_FONT)
        draw.rectangle((start, top + 2, start + length, top + _TRACK - 4), fill=_RAIL)
        if span is not None and all(map(math.isfinite, span)):
            low, high = (start + length * min(max(position, 0.0), 1.0) for position in sorted(span))
            draw.rectangle((low, top + 2, max(high, low + 1), top + _TRACK - 4), fill=colour)
    for mark in marks:
        x = start + length * min(max(mark, 0.0), 1.0)
        draw.line((x, 1, x, image.height - 2), fill=_INK)
    return image


def add_caption(image: PIL.Image.Image, text: str) -> PIL.Image.Image:
    """Adds a line of text above an image."""
    line = PIL.Image.new("RGB", (image.width, _LINE), _BACKGROUND)
    PIL.ImageDraw.Draw(line).text((2, 1), text, fill=_INK, font=_FONT)
    return one_above_another([line, image], gap=0)


def side_by_side(images: Sequence[PIL.Image.Image], gap: int = 6) -> PIL.Image.Image:
    """Pastes one or more images into a row, `gap` pixels apart."""
    lefts = np.cumsum([0, *(image.width + gap for image in images)]).tolist()
    return _paste(images, [(left, 0) for left in lefts], (lefts[-1] - gap, max(image.height for image in images)))


def one_above_another(images: Sequence[PIL.Image.Image], gap: int = 6) -> PIL.Image.Image:
    """Pastes one or more images into a column, `gap` pixels apart."""
    tops = np.cumsum([0, *(image.height + gap for image in images)]).tolist()
    return _paste(images, [(0, top) for top in tops], (max(image.width for image in images), tops[-1] - gap))


def _paste(images, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> PIL.Image.Image:
    whole = PIL.Image.new("RGB", size, _BACKGROUND)
    for image, corner in zip(images, corners, strict=False):
        whole.paste(image, corner)
    return whole
