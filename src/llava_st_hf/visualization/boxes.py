# SPDX-License-Identifier: Apache-2.0
"""Boxes, masks and labels on the pixels of an image or frame. Lines and masks are drawn by the annotators of supervision.

Labels are not drawn by supervision, whose annotators use one font for all characters, and may move labels over each other at the edges of
an image.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .colours import BLACK, Colour, readable_on
from .text import blend, line_height, shortened, text_mask, text_width


Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom excluded
# A label is at most this fraction of the width of the image.
_LABEL_WIDTH = 0.45


@dataclass(frozen=True)
class DrawnBox:
    """
    A box to draw.

    Args:
        xyxy: xmin, ymin, xmax, ymax in pixels of the image.
        colour: of its lines and its label.
        label: printable text, or None. It is shortened to fit.
        score: printable text after the label, which is not shortened, or None.
        interpolated: whether its sides are drawn thin; its corners keep their width.
        mask: of the object, boolean (height, width) of the image, or None.
    """

    xyxy: tuple[float, float, float, float]
    colour: Colour
    label: str | None = None
    score: str | None = None
    interpolated: bool = False
    mask: np.ndarray | None = None


def import_supervision():
    """Imports supervision. Raises `ImportError` with the installation command if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "OpenCV")  # optional: supervision draws with NumPy where it is missing
            import supervision
    except ImportError as error:
        raise ImportError("Drawing needs supervision and matplotlib: pip install 'llava-st-hf[draw]'") from error
    return supervision


@lru_cache(maxsize=64)
def _annotator(colour: Colour, width: int):
    supervision = import_supervision()
    red, green, blue = colour
    # supervision draws on pixels in the order blue, green, red; those here are red, green, blue.
    return supervision.BoxAnnotator(supervision.Color(blue, green, red), width)


def visible_rectangle(xyxy: Sequence[float], width: int, height: int, line_width: int) -> Rectangle | None:
    """
    The rectangle, in whole pixels and both ends included, on which the lines of a box are drawn: clipped so that the lines are within the
    image. None if the box is outside the image, or is not finite.
    """
    if not all(map(math.isfinite, xyxy)):
        return None
    (x1, x2), (y1, y2) = sorted(xyxy[::2]), sorted(xyxy[1::2])
    if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
        return None
    half = line_width // 2
    sides = []
    for low, high, length in ((x1, x2, width), (y1, y2, height)):
        first, last = min(half, (length - 1) // 2), max(length - 1 - half, length // 2)
        sides.append([round(min(max(end, first), last)) for end in (low, high)])
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2


def draw_lines(pixels: np.ndarray, xyxy: Sequence[float], colour: Colour, line_width: int, interpolated: bool = False) -> Rectangle | None:
    """
    Draws the lines of a box in place, with a dark edge that keeps them visible on a background of their colour.

    Args:
        pixels: (height, width, 3) uint8.
        xyxy: in pixels, any order of the ends; clipped to the image.
        line_width: in pixels.

    Returns:
        The rectangle of the lines, both ends included; None if the box is outside the image, or not finite.
    """
    height, width = pixels.shape[:2]
    rectangle = visible_rectangle(xyxy, width, height, line_width)
    if rectangle is None:
        return None
    # Of interpolated boxes the corners alone have the full width: the annotator draws on parts of the image that end within the sides.
    x1, y1, x2, y2 = rectangle
    length = max(4, min(x2 - x1, y2 - y1) // 4)
    extra_width = 2 * max(1, round(line_width / 4))  # of the dark edge, both sides together
    margin = line_width + extra_width + 1
    whole = (x1 - margin, y1 - margin, x2 + margin + 1, y2 + margin + 1)
    columns, rows = ([(low - margin, low + length), (high - length, high + margin + 1)] for low, high in ((x1, x2), (y1, y2)))
    corners = [(left, top, right, bottom) for left, right in columns for top, bottom in rows] if interpolated else []
    width_of_sides = max(1, line_width // 2) if interpolated else line_width
    for extra, shade in ((extra_width, BLACK), (0, colour)):
        _draw_rectangle(pixels, rectangle, whole, shade, width_of_sides + extra)
        for corner in corners:
            _draw_rectangle(pixels, rectangle, corner, shade, line_width + extra)
    return rectangle


def _draw_rectangle(pixels: np.ndarray, rectangle: Rectangle, part: Rectangle, colour: Colour, line_width: int) -> None:
    """Draws the lines of a rectangle within a part of the image. The time grows with the number of pixels that supervision is given."""
    left, top = max(part[0], 0), max(part[1], 0)
    region = pixels[top : max(part[3], 0), left : max(part[2], 0)]
    if region.size:
        corners = np.array([rectangle], np.float32) - np.array([left, top, left, top], np.float32)
        detections = import_supervision().Detections(xyxy=corners)
        _annotator(colour, line_width).annotate(region, detections, custom_color_lookup=np.zeros(1, int))


def draw_masks(pixels: np.ndarray, boxes: Sequence[DrawnBox]) -> None:
    """Draws the masks of boxes in place, half transparent."""
    supervision = import_supervision()
    for box in boxes:
        if box.mask is not None and box.mask.any():
            red, green, blue = box.colour
            annotator = supervision.MaskAnnotator(supervision.Color(blue, green, red), opacity=0.45)
            detections = supervision.Detections(xyxy=supervision.mask_to_xyxy(box.mask[None]), mask=box.mask[None])
            annotator.annotate(pixels, detections, custom_color_lookup=np.zeros(1, int))


@lru_cache(maxsize=256)
def label_pixels(text: str, size: int, colour: Colour) -> np.ndarray:
    """A label, (height, width, 3) uint8: text in black or white on a colour."""
    padding = max(2, size // 4)
    pixels = np.empty((line_height(size) + 2, text_width(text, size) + 2 * padding, 3), np.uint8)
    pixels[:] = colour
    blend(pixels, text_mask(text, size), padding, 1, readable_on(colour))
    pixels.flags.writeable = False  # it is cached
    return pixels


def place(box: Rectangle, width: int, height: int, image: tuple[int, int], occupied: Sequence[Rectangle]) -> Rectangle | None:
    """
    The place of a label: the first at a corner of its box, else the nearest above or below it, that is within the image and free.

    Args:
        box: rectangle of the lines of the box.
        width, height: of the label, in pixels.
        image: width and height of the image, in pixels.
        occupied: rectangles that the label may not cover.
    """
    x1, y1, x2, y2 = box
    last_x, last_y = image[0] - width, image[1] - height
    if last_x < 0 or last_y < 0:
        return None
    corners = [(x1, y1 - height), (x1, y2 + 1), (x2 - width, y1 - height), (x2 - width, y2 + 1)]
    inside = [(x1, y1), (x2 - width, y2 - height)]
    places = [(x, y) for x, y in corners if 0 <= y <= last_y] + inside
    places += [(x1, y) for y in sorted(range(0, last_y + 1, max(1, height // 2)), key=lambda y: abs(y - y1))]
    for x, y in places:
        x, y = min(max(x, 0), last_x), min(max(y, 0), last_y)
        if not any(x < right and left < x + width and y < bottom and top < y + height for left, top, right, bottom in occupied):
            return x, y, x + width, y + height
    return None


def _label_text(box: DrawnBox, size: int, width: float) -> str:
    """Label and score of a box, together at most `width` pixels wide, if the score alone is not wider."""
    if not box.label:
        return box.score or ""
    end = f" {box.score}" if box.score else ""
    return (shortened(box.label, size, width - text_width(end, size)) + end).strip()


def draw_labelled(
    pixels: np.ndarray, boxes: Sequence[DrawnBox], line_width: int, font_size: int, occupied: Sequence[Rectangle] = ()
) -> list[DrawnBox]:
    """
    Draws masks, then the lines of boxes, later ones on top, then labels, so that no line crosses a label.

    Args:
        pixels: (height, width, 3) uint8, changed in place.
        line_width, font_size: in pixels.
        occupied: rectangles that labels may not cover. Labels do not cover each other either.

    Returns:
        The boxes whose labels have no free place; they are not drawn.
    """
    height, width = pixels.shape[:2]
    if not boxes:
        return []
    draw_masks(pixels, boxes)
    rectangles = [draw_lines(pixels, box.xyxy, box.colour, line_width, box.interpolated) for box in boxes]
    taken, left_out = list(occupied), []
    for box, rectangle in zip(boxes, rectangles, strict=True):
        if rectangle is None or not (box.label or box.score):
            continue
        text = _label_text(box, font_size, _LABEL_WIDTH * width - font_size)
        label = label_pixels(text, font_size, box.colour) if text else None
        found = None if label is None else place(rectangle, label.shape[1], label.shape[0], (width, height), taken)
        if found is None:
            left_out.append(box)
            continue
        left, top, right, bottom = found
        pixels[top:bottom, left:right] = label
        taken.append(found)
    return left_out
