# SPDX-License-Identifier: Apache-2.0
"""Charts of an evaluation as SVG, which a page can hold as they are."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


# Pixels.
WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 46, 52
_BAR, _INK, _FAINT, _MEAN = "#4878a8", "#333333", "#dddddd", "#c8500a"
_TICKS = 5  # at most, above 0


@dataclass(frozen=True)
class Bar:
    """
    One bar of a chart of means.

    Args:
        label: what it is of; each line of it on a line of its own.
        mean: its height, in [0, 1].
        low, high: of its interval.
    """

    label: str
    mean: float
    low: float
    high: float


def histogram(values: np.ndarray, title: str, axis: str, bins: int = 20) -> str:
    """
    How many of the values lie where in [0, 1], with their mean as a line.

    Args:
        values: (N,) in [0, 1].
        title: above the chart.
        axis: what the values are.
        bins: of equal width.
    """
    counts, _ = np.histogram(values, bins=bins, range=(0.0, 1.0))
    tick = _tick_step(int(counts.max()))
    top = tick * max(1, -(-int(counts.max()) // tick))
    step = _plot_width() / bins
    parts = [_gridline(count / top, f"{count}") for count in range(0, top + 1, tick)]
    for place, count in enumerate(counts):
        x, y = _LEFT + place * step, _height(count / top)
        hint = f"{place / bins:.2f} to {(place + 1) / bins:.2f}: {count}"
        parts.append(_bar(x + 1, y, step - 2, hint))
    parts += [_text(_LEFT + share * _plot_width(), HEIGHT - _BOTTOM + 16, f"{share:g}", "middle") for share in (0, 0.25, 0.5, 0.75, 1)]
    if len(values):
        x = _LEFT + float(np.mean(values)) * _plot_width()
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" stroke="{_MEAN}" stroke-width="2"/>')
    note = f"{axis}; the line is the mean of {len(values)}; {int((np.asarray(values) == 0).sum())} are 0"
    return _chart(title, note, parts)


def bar_chart(bars: Sequence[Bar], title: str, axis: str) -> str:
    """
    Means with their intervals.

    Args:
        bars: from left to right.
        title: above the chart.
        axis: what the bars are cut by.
    """
    parts = [_gridline(share, f"{share:g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    step = _plot_width() / max(len(bars), 1)
    for number, bar in enumerate(bars):
        x, middle = _LEFT + (number + 0.2) * step, _LEFT + (number + 0.5) * step
        parts.append(_bar(x, _height(bar.mean), 0.6 * step, f"{bar.mean:.3f} ({bar.low:.3f} to {bar.high:.3f})"))
        low, high = _height(bar.low), _height(bar.high)
        whisker = f"M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 5:.1f} {low:.1f}h10M{middle - 5:.1f} {high:.1f}h10"
        parts.append(f'<path d="{whisker}" stroke="{_INK}" fill="none"/>')
        parts += [
            _text(middle, HEIGHT - _BOTTOM + 14 + 12 * line, words, "middle", 11) for line, words in enumerate(bar.label.splitlines())
        ]
    return _chart(title, axis, parts)


def _plot_width() -> int:
    return WIDTH - _LEFT - _RIGHT


def _height(share: float) -> float:
    """Where a share of the full height is, from the top of the chart."""
    return HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - _TOP - _BOTTOM)


def _tick_step(count: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … with which few steps reach `count`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power * _TICKS >= count:
                return factor * power
        power *= 10


def _bar(x: float, y: float, width: float, hint: str) -> str:
    height = HEIGHT - _BOTTOM - y
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{_BAR}">'
    return f"{shape}<title>{html.escape(hint)}</title></rect>"


def _gridline(share: float, label: str) -> str:
    y = _height(share)
    line = f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_INK if share == 0 else _FAINT}"/>'
    return line + _text(_LEFT - 6, y + 4, label, "end")


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text {place} fill="{_INK}">{html.escape(words)}</text>'


def _chart(title: str, axis: str, parts: Sequence[str]) -> str:
    """The parts with what stands above and below them."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" role="img">'
    )
    words = [
        f'<title>{html.escape(title)}</title><rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 22, title, size=14, weight="600"),
        _text(_LEFT + _plot_width() / 2, HEIGHT - 8, axis, "middle"),
    ]
    return head + "".join([*words, *parts]) + "</svg>"
