# SPDX-License-Identifier: Apache-2.0
"""Timelines, drawn by matplotlib: spans below each other, on rails that represent the whole clip or video."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from .boxes import import_supervision
from .colours import INK, RAIL, Colour
from .fonts import font_families, printable
from .text import line_height, text_width, wrap
from .tracks import Track


_FONT, _PADDING = 13, 3  # pixels
_ROW, _BAR = 18, 12  # height of a row with one line of text, and of its span, in pixels
_AXIS = 26  # height of the labels of the axis, in pixels
# The labels take at most this fraction of the width.
_LABELS = 0.42


def draw_timeline(
    width: int, spans: Sequence[tuple[tuple[float, float] | None, Colour, str]], marks: Sequence[float] = ()
) -> PIL.Image.Image:
    """
    Draws spans below each other, on rails that represent the whole clip.

    Args:
        width: of the result, in pixels.
        spans: `(span, colour, label)` of each, as fractions of the clip; None leaves the rail empty. Spans are clipped to the clip, those
            with NaN or infinity are left out.
        marks: fractions of the clip at which a thin vertical line is drawn.
    """
    return _draw(width, spans, marks, (0.0, 1.0), None)


def draw_spans(
    tracks: Sequence[Track],
    bounds: tuple[float, float],
    width: int = 960,
    marks: Sequence[float] = (),
    unit: str = "s",
) -> PIL.Image.Image:
    """
    Draws the spans of the events of one or several answers, with their captions and scores, above an axis in seconds or frames.

    Args:
        tracks: events, as returned by `make_tracks`.
        bounds: start and end of the axis: seconds, or indices of frames with another `unit`.
        width: of the result, in pixels.
        marks: positions on the axis at which a thin vertical line is drawn.
        unit: of the axis, "s" or "frame".
    """
    rows: list[tuple[tuple[float, float] | None, Colour, str]] = []
    for track in tracks:
        interval = None
        if unit == "s" and track.span is not None:
            interval = (track.span.start, track.span.end)
        elif unit != "s" and len(track.frames):
            interval = (float(track.frames[0]), float(track.frames[-1]))
        rows.append((interval, track.colour, track.title or "event"))
    return _draw(width, rows, marks, bounds, unit)


def _draw(
    width: int,
    rows: Sequence[tuple[tuple[float, float] | None, Colour, str]],
    marks: Sequence[float],
    bounds: tuple[float, float],
    unit: str | None,
) -> PIL.Image.Image:
    import_supervision()  # states how to install matplotlib, too
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    room = round(_LABELS * width)
    labels = [wrap([(printable(label)[0], None)], _FONT, room) if unit else [[(printable(label)[0], None)]] for _, _, label in rows]
    texts = [["".join(text for text, _ in line).rstrip() for line in lines] for lines in labels]
    heights = [max(_ROW, line_height(_FONT) * len(lines)) for lines in texts]
    left = 8 + min(max((text_width(line, _FONT) for lines in texts for line in lines), default=0), width // 2)
    height = sum(heights) + 2 * _PADDING + (_AXIS if unit else 0)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # a point is a pixel
    canvas = FigureCanvasAgg(figure)
    low, high = bounds if bounds[1] > bounds[0] else (bounds[0] - 0.5, bounds[0] + 0.5)
    right = 14 if unit else 2  # the last number of the axis extends beyond its end
    plot_width = max(width - left - right, 1)
    bottom = height - sum(heights) - 2 * _PADDING
    axes = figure.add_axes((left / width, bottom / height, plot_width / width, (height - bottom) / height))
    axes.set(xlim=(low, high), ylim=(height - bottom, 0), frame_on=False, yticks=[])
    pixel = (high - low) / plot_width
    top = float(_PADDING)
    family = list(font_families())
    for (interval, colour, _), lines, row_height in zip(rows, texts, heights, strict=True):
        middle = top + (row_height - _ROW) / 2 + 2
        _bar(axes, low, high, middle, RAIL)
        if interval is not None and all(map(math.isfinite, interval)):
            first, last = (min(max(position, low), high) for position in sorted(interval))
            _bar(axes, min(first, high - 2 * pixel), max(last, min(first, high - 2 * pixel) + 2 * pixel), middle, colour)
        for number, line in enumerate(lines):
            y = height - (top + (row_height - line_height(_FONT) * len(lines)) / 2 + (number + 0.5) * line_height(_FONT))
            style: Any = {"family": family, "fontsize": _FONT, "va": "center_baseline", "parse_math": False, "color": _fraction(INK)}
            figure.text(2 / width, y / height, line, **style)
        top += row_height
    for mark in marks:
        position = min(max(mark, low), high)
        axes.plot([position, position], [1, height - bottom - 2], color=_fraction(INK), linewidth=1, clip_on=False)
    if unit:
        axes.tick_params(axis="x", labelsize=_FONT - 2, length=3, labelcolor=_fraction(INK))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} {unit}" if unit == "s" else f"{value:g}")
        if unit != "s":
            from matplotlib.ticker import MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    else:
        axes.set_xticks([])
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _bar(axes, low: float, high: float, top: float, colour: Colour) -> None:
    """Draws a filled rectangle without smoothed edges, from `low` to `high` on the axis."""
    axes.add_patch(_rectangle((low, top), high - low, _BAR, colour))


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: Colour):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=_fraction(colour), linewidth=0, antialiased=False)


def _fraction(colour: Colour) -> tuple[float, float, float]:
    """The colour as matplotlib takes it, from 0 to 1."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255
