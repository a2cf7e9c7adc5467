# SPDX-License-Identifier: Apache-2.0
"""Lines and paragraphs of text as arrays of pixels, drawn by matplotlib, which chooses a font for each glyph and shapes complex scripts."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .colours import INK, WHITE, Colour, readable_on
from .fonts import font_families


Run = tuple[str, Colour | None]  # text, and the colour behind it or None
ELLIPSIS = "…"


def _renderer(width: int, height: int):
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(width, height, 72)  # at 72 dots per inch a point is a pixel


def _properties(size: int):
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=list(font_families()), size=size)


@lru_cache(maxsize=4096)
def _extent(text: str, size: int) -> tuple[float, float, float]:
    """Width of a text, its height above the baseline and its depth below it, in pixels."""
    width, height, descent = _renderer(1, 1).get_text_width_height_descent(text, _properties(size), ismath=False)
    return width, height - descent, descent


def text_width(text: str, size: int) -> int:
    """Width in pixels of a text in a font of `size` pixels."""
    return round(_extent(text, size)[0]) if text else 0


def line_height(size: int) -> int:
    """Height in pixels of a line of text in a font of `size` pixels."""
    return round(1.4 * size)


@lru_cache(maxsize=512)
def text_mask(text: str, size: int) -> np.ndarray:
    """
    Coverage of a line of text, (line height, width) uint8, with the baseline at the same place in all lines of this size.

    Args:
        text: as returned by `printable`.
        size: of the font, in pixels.
    """
    height, baseline = line_height(size), round(1.06 * size)
    if not text.strip():
        return np.zeros((height, max(text_width(text, size), 1)), np.uint8)
    margin = size  # for glyphs that extend beyond their width
    width = text_width(text, size)
    renderer = _renderer(width + 2 * margin, height)
    graphics = renderer.new_gc()
    graphics.set_foreground("black")
    renderer.draw_text(graphics, margin, baseline, text, _properties(size), 0, ismath=False)
    coverage = np.asarray(renderer.buffer_rgba())[..., 3]
    mask = np.ascontiguousarray(coverage[:, margin : margin + width + 1])
    mask.flags.writeable = False  # it is cached
    return mask


def shortened(text: str, size: int, width: float) -> str:
    """The text, or its beginning with "…", so that it is at most `width` pixels wide; empty if not even a character fits."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)  # characters that fit, and that do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if text_width(text[:middle].rstrip() + ELLIPSIS, size) <= width else (low, middle)
    return text[:low].rstrip() + ELLIPSIS if low else ""


def _tokens(text: str) -> list[str]:
    """Pieces between which a line may be broken: words with the space after them, and single wide (CJK) characters."""
    pieces = [""]
    for character in text:
        if unicodedata.east_asian_width(character) in "WF" and not unicodedata.combining(character):
            pieces += [character, ""]
        else:
            pieces[-1] += character
            if character == " ":
                pieces.append("")
    return [piece for piece in pieces if piece]


def wrap(runs: Sequence[Run], size: int, width: int, max_lines: int | None = None) -> list[list[Run]]:
    """
    Breaks runs of text into lines of at most `width` pixels. With more than `max_lines` lines, the last of them ends with "…".

    Args:
        runs: printable texts, each with the colour behind it or None.
    """
    lines: list[list[Run]] = [[]]
    used = 0.0
    for text, colour in runs:
        for token in _tokens(text):
            needed = text_width(token.rstrip(), size)
            if used + needed > width and lines[-1]:
                lines.append([])
                used = 0.0
            if needed > width:
                token = shortened(token, size, width)
            if not lines[-1] and not token.strip():
                continue
            same = lines[-1] and lines[-1][-1][1] == colour
            lines[-1] = [*lines[-1][:-1], (lines[-1][-1][0] + token, colour)] if same else [*lines[-1], (token, colour)]
            used += _extent(token, size)[0]
    lines = [line for line in lines if line]
    if max_lines is not None and len(lines) > max_lines:
        lines = lines[:max_lines]
        text, colour = lines[-1].pop()
        room = width - sum(text_width(part, size) for part, _ in lines[-1]) - text_width(ELLIPSIS, size)
        lines[-1].append(((shortened(text.rstrip(), size, room).rstrip(ELLIPSIS) if room > 0 else "") + ELLIPSIS, colour))
    return lines


def blend(pixels: np.ndarray, mask: np.ndarray, x: int, y: int, colour: Colour) -> None:
    """Draws a colour on pixels (height, width, 3) in place, where and as much as a mask (uint8) at (x, y) covers them."""
    left, top = max(x, 0), max(y, 0)
    region = pixels[top : y + mask.shape[0], left : x + mask.shape[1]]
    if region.size == 0:
        return
    cover = mask[top - y : top - y + region.shape[0], left - x : left - x + region.shape[1], None].astype(np.uint16)
    region[:] = (region * (255 - cover) + np.array(colour, np.uint16) * cover + 127) // 255


def paragraph(
    runs: Sequence[Run], size: int, width: int, max_lines: int | None = None, background: Colour = WHITE, ink: Colour = INK
) -> np.ndarray:
    """
    Text of several lines, (height, width, 3) uint8. Runs with a colour are drawn on it, as labels of boxes are.

    Args:
        runs: printable texts, each with the colour behind it or None.
        size: of the font, in pixels.
        width: of the result, in pixels.
    """
    height, padding = line_height(size), max(2, size // 4)
    lines = wrap(runs, size, width - 2 * padding, max_lines)
    pixels = np.empty((height * len(lines) + 2 * padding if lines else 0, width, 3), np.uint8)
    pixels[:] = background
    for number, line in enumerate(lines):
        x, y = padding, padding + number * height
        for text, colour in line:
            mask = text_mask(text, size)
            end = x + text_width(text.rstrip(), size)
            if colour is not None:
                pixels[y + 1 : y + height - 1, max(x - 2, 0) : end + 2] = colour
            blend(pixels, mask, x, y, ink if colour is None else readable_on(colour))
            x += text_width(text, size)
    return pixels
