# SPDX-License-Identifier: Apache-2.0
"""Charts of an evaluation report, drawn by matplotlib as SVG. The same values give the same bytes."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


_SIZE = (4.2, 2.8)  # inches
_BAR, _MEAN = "#4878a8", "#c8500a"
# Text stays text, so that it can be searched; ids of elements do not depend on the time.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "llava-st-hf", "text.parse_math": False, "font.size": 9, "axes.axisbelow": True}


def histogram(values: np.ndarray, title: str, label: str, bins: int = 20) -> bytes:
    """
    Draws a histogram with the counts above the bars and the mean as a line.

    Args:
        values: (N,) in [0, 1].
        title: of the chart.
        label: name of the values.
        bins: number of bins of equal width.
    """
    counts, edges = np.histogram(values, bins=bins, range=(0.0, 1.0))
    with mpl.rc_context(_STYLE):
        figure, axes = _chart(title, f"{label}; line: mean of {len(values)} samples; {int((np.asarray(values) == 0).sum())} are 0")
        bars = axes.bar(edges[:-1], counts, width=0.9 / bins, align="edge", color=_BAR)
        axes.bar_label(bars, [str(count) if count else "" for count in counts], fontsize=6, rotation=90, padding=2)
        axes.set(xlim=(0, 1), ylim=(0, 1.2 * max(counts.max(), 1)))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(values):
            axes.axvline(float(np.mean(values)), color=_MEAN)
        return _svg(figure)


def bar_chart(labels: Sequence[str], means: np.ndarray, lows: np.ndarray, highs: np.ndarray, title: str, label: str) -> bytes:
    """
    Draws means with their intervals.

    Args:
        labels: of the N bars, from left to right.
        means, lows, highs: (N,) in [0, 1].
        title: of the chart.
        label: quantity by which the samples are divided into bars.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _chart(title, label)
        # A bootstrap interval of few samples may not contain the mean by a rounding error.
        errors = np.maximum([np.subtract(means, lows), np.subtract(highs, means)], 0)
        bars = axes.bar(range(len(labels)), means, width=0.6, color=_BAR, yerr=errors, capsize=4)
        axes.bar_label(bars, [f"{mean:.3f}" for mean in means], fontsize=7, padding=2)  # above the interval
        axes.set(ylim=(0, 1.1))
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        return _svg(figure)


def _chart(title: str, label: str):
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
    axes.set_xlabel(label)
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
