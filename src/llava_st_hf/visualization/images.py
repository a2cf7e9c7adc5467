# SPDX-License-Identifier: Apache-2.0
"""Labelled images: boxes with labels, and the text of the answer with each phrase on the colour of its box."""

import re
from collections.abc import Sequence

import numpy as np
import PIL.Image

from ..model.coordinates_llava_st import COORDINATE_TOKEN
from ..model.results_llava_st import Grounding
from .boxes import DrawnBox, draw_labelled
from .colours import SMALLEST_WITH_TEXT, Colour, font_size_for, line_width_for
from .fonts import printable
from .layout import as_image, one_above_another, picture_scale, resized
from .text import Run, paragraph
from .tracks import Track, check_size, scaled
from .videos import NO_EVENTS


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
            Boxes are clipped to the image; boxes outside it and those with NaN or infinity are not drawn. A label for which there is no
            room is left out.
        line_width: in pixels; by default 1/240 of the shorter side, at least 2.
    """
    pixels = np.array(as_image(image))
    height, width = pixels.shape[:2]
    drawn = [
        DrawnBox((box[0], box[1], box[2], box[3]), colour, None if label is None else printable(label)[0]) for box, colour, label in boxes
    ]
    draw_labelled(pixels, drawn, line_width or line_width_for(width, height), font_size_for(width, height))
    return PIL.Image.fromarray(pixels)


def draw_image(
    image: PIL.Image.Image, groundings: Sequence[Grounding], tracks: Sequence[Track], scale: float | None = None
) -> tuple[PIL.Image.Image, list[str]]:
    """
    Draws the objects of answers on an image, and the text of the answers below it.

    Args:
        image: upright, of any mode; transparent pixels are drawn on white.
        groundings: the answers that `tracks` are from.
        tracks: objects to draw.
        scale: size of the image in the picture as a multiple of the original; None for 1, or a whole number for small images.

    Returns:
        The picture, and notes on what of the answers is not in it.

    Raises:
        ValueError: if the image is not the one that the answers are about.
    """
    for grounding in groundings:
        if grounding.media is not None:
            check_size(grounding.media, "image", image.width, image.height)
    factor = picture_scale(image.width, image.height) if scale is None else scale
    enlarged = resized(_opaque(image), factor)
    pixels, size = np.array(enlarged), (image.width, image.height)
    height, width = pixels.shape[:2]
    has_text = min(width, height) >= SMALLEST_WITH_TEXT
    font_size, notes = font_size_for(width, height), [] if tracks else [NO_EVENTS]
    boxes = []
    for track in tracks:
        for box in track.event.boxes:
            if box.xmax < 0 or box.ymax < 0 or box.xmin > size[0] or box.ymin > size[1]:
                notes.append(f"The box {list(box.xyxy)} is outside the image; it is not drawn.")
            else:
                boxes.append(scaled(box, track, factor, size, has_text, with_text=True))
    if boxes and not has_text:
        notes.append(f"Images of {width}x{height} pixels have no room for text: labels are left out. Draw with a larger scale.")
    for box in draw_labelled(pixels, boxes, line_width_for(width, height), font_size):
        notes.append(f"There is no room for the label {box.label!r} without covering another one.")
    parts = [PIL.Image.fromarray(pixels)]
    for grounding in groundings if has_text else ():
        own = [track for track in tracks if track.grounding is grounding]
        runs = caption_runs(grounding, own)
        if any(text.strip() for text, _ in runs):
            name: list[Run] = [(f"{own[0].name}: ", None)] if own and own[0].name else []
            parts.append(PIL.Image.fromarray(paragraph([*name, *runs], font_size, width)))
    return one_above_another(parts, gap=0), notes


def caption_runs(grounding: Grounding, tracks: Sequence[Track]) -> list[Run]:
    """
    The text of an answer without coordinates, each phrase of an object on the colour of its box.

    Args:
        tracks: the objects of the answer.

    Returns:
        Printable texts with the colour behind them or None.
    """
    text = re.sub(r"\s+", " ", re.sub(r"[\[{(]?\s*[\]})]", " ", COORDINATE_TOKEN.sub("", grounding.text))).strip()
    text = re.sub(r" ([.,;:])", r"\1", text)
    runs: list[Run] = []
    position = 0
    for track in tracks:
        caption = track.event.caption
        found = text.find(caption, position) if caption and track.event.boxes else -1
        if caption and found >= 0:
            runs += [(text[position:found], None), (text[found : found + len(caption)], track.colour)]
            position = found + len(caption)
    runs.append((text[position:], None))
    return [(printable(part)[0], colour) for part, colour in runs if part]


def _opaque(image: PIL.Image.Image) -> PIL.Image.Image:
    """An RGB copy of an image; transparent pixels become white."""
    if "A" in image.getbands() or "transparency" in image.info:
        layers = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, (255, 255, 255, 255)), layers).convert("RGB")
    return as_image(image)
