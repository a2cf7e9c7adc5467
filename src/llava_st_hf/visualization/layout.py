# SPDX-License-Identifier: Apache-2.0
"""Arrangement of images: scaling, captions above them, rows and columns."""

from collections.abc import Sequence

import numpy as np
import PIL.Image

from .colours import INK, WHITE, Colour
from .fonts import printable
from .text import paragraph


CAPTION_SIZE = 13  # of the font, in pixels
# Pictures of images whose shorter side is less than this many pixels are enlarged by a whole factor, so that lines and text have room.
_SMALLEST_PICTURE = 360


def as_image(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image:
    """
    Returns an RGB copy of an image.

    Args:
        image: of any mode, or uint8 (height, width, 3).
    """
    return (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB").copy()


def resized(image: PIL.Image.Image, scale: float) -> PIL.Image.Image:
    """The image at another size, at least one pixel in each direction."""
    if scale == 1:
        return image
    method = PIL.Image.Resampling.BICUBIC if scale > 1 else PIL.Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)


def picture_scale(width: int, height: int) -> float:
    """Factor by which a picture of an image is larger than it: 1, or a whole number for small images."""
    return float(max(1, -(-_SMALLEST_PICTURE // max(1, min(width, height))))) if min(width, height) < _SMALLEST_PICTURE / 2 else 1.0


def add_caption(image: PIL.Image.Image, text: str, background: Colour = WHITE, ink: Colour = INK) -> PIL.Image.Image:
    """Adds text above an image, in as many lines as it needs."""
    lines = paragraph([(printable(text)[0], None)], CAPTION_SIZE, image.width, None, background, ink)
    return one_above_another([PIL.Image.fromarray(lines), image], gap=0) if len(lines) else image


def side_by_side(images: Sequence[PIL.Image.Image], gap: int = 6) -> PIL.Image.Image:
    """Pastes one or more images into a row, `gap` pixels apart."""
    lefts = np.cumsum([0, *(image.width + gap for image in images)]).tolist()
    return _paste(images, [(left, 0) for left in lefts], (lefts[-1] - gap, max(image.height for image in images)))


def one_above_another(images: Sequence[PIL.Image.Image], gap: int = 6) -> PIL.Image.Image:
    """Pastes one or more images into a column, `gap` pixels apart."""
    tops = np.cumsum([0, *(image.height + gap for image in images)]).tolist()
    return _paste(images, [(0, top) for top in tops], (max(image.width for image in images), tops[-1] - gap))


def _paste(images, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> PIL.Image.Image:
    whole = PIL.Image.new("RGB", size, WHITE)
    for image, corner in zip(images, corners, strict=False):
        whole.paste(image, corner)
    return whole
