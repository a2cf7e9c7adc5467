# SPDX-License-Identifier: Apache-2.0
"""What the figures of grounding are, as functions of arrays.

Boxes are `x1, y1, x2, y2` and spans `start, end`, in any unit as long as prediction and truth have the same. What is reversed or
has no extent has area (or length) 0, and so has what holds a NaN, which stands for an answer that is missing: its IoU is 0. No
function returns NaN.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np


# Of a bootstrap, drawn at a time: 32 MiB of indices.
_DRAWN_AT_ONCE = 2**22


class Tubelets:
    """
    Boxes per frame of many rows, kept box after box, so that millions of them take no object each.

    Args:
        tubelets: `{frame: box}` of each row; None where a row has none.
    """

    def __init__(self, tubelets: Iterable[Mapping[int, Sequence[float]] | None] = ()):
        self._lengths, self._frames, self._corners = array("q"), array("q"), array("d")
        for tubelet in tubelets:
            self.append(tubelet)

    def append(self, tubelet: Mapping[int, Sequence[float]] | None) -> None:
        """
        Adds a row.

        Raises:
            ValueError: where a box has not four corners.
        """
        tubelet = tubelet or {}
        for box in tubelet.values():
            if len(box) != 4:
                raise ValueError(f"A box is x1, y1, x2, y2, not {box!r:.100}.")
        self._lengths.append(len(tubelet))
        self._frames.extend(tubelet)
        self._corners.extend(chain.from_iterable(tubelet.values()))

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) frames of each row."""
        return np.array(self._lengths, dtype=np.int64)

    @property
    def frames(self) -> np.ndarray:
        """(M,) frame of each box, row after row."""
        return np.array(self._frames, dtype=np.int64)

    @property
    def boxes(self) -> np.ndarray:
        """(M, 4) the boxes, row after row."""
        return np.array(self._corners, dtype=np.float64).reshape(-1, 4)


def _extents(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """high - low where that is positive, else 0; 0 for NaN as well, which `fmax` passes over."""
    return np.fmax(high - low, 0.0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is no whole or one without bounds."""
    sound = (whole > 0) & np.isfinite(whole) & np.isfinite(part)
    return np.divide(part, whole, out=np.zeros(whole.shape), where=sound)


def box_iou(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """
    Area of the intersection over area of the union, of each pair of boxes; 0 where both are empty.

    Args:
        pred, truth: (N, 4).

    Returns:
        (N,) in [0, 1].
    """
    pred, truth = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (pred, truth))
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        overlap = _extents(np.maximum(pred[:, :2], truth[:, :2]), np.minimum(pred[:, 2:], truth[:, 2:])).prod(axis=1)
        areas = [_extents(boxes[:, :2], boxes[:, 2:]).prod(axis=1) for boxes in (pred, truth)]
        return _ratio(overlap, areas[0] + areas[1] - overlap)


def temporal_iou(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """
    tIoU: length of the intersection over length of the union, of each pair of spans; 0 where both are empty.

    Args:
        pred, truth: (N, 2).

    Returns:
        (N,) in [0, 1].
    """
    pred, truth = (np.asarray(spans, dtype=np.float64).reshape(-1, 2) for spans in (pred, truth))
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        overlap = _extents(np.maximum(pred[:, 0], truth[:, 0]), np.minimum(pred[:, 1], truth[:, 1]))
        return _ratio(overlap, _extents(pred[:, 0], pred[:, 1]) + _extents(truth[:, 0], truth[:, 1]) - overlap)


def spatial_iou(pred: Tubelets, truth: Tubelets) -> np.ndarray:
    """
    sIoU: mean box IoU over the frames in which prediction and truth both have a box; 0 where there is none.

    A prediction of a single right box gets 1: it says how good boxes are, not how many there are.

    Args:
        pred, truth: of the same N rows.

    Returns:
        (N,) in [0, 1].
    """
    total, shared = _shared_iou(pred, truth)
    return _ratio(total, shared)


def tubelet_iou(pred: Tubelets, truth: Tubelets) -> np.ndarray:
    """
    vIoU (Zhang et al., "Where Does It Exist", 2020): sum of box IoU over the frames in which prediction and truth both have a box, over
    the number of frames in which either has one; 0 where neither has any.

    Both have to count the same frames: a truth with boxes in frames that the model was not shown makes 1 impossible.

    Args:
        pred, truth: of the same N rows.

    Returns:
        (N,) in [0, 1].
    """
    total, shared = _shared_iou(pred, truth)
    return _ratio(total, pred.lengths + truth.lengths - shared)


def _shared_iou(pred: Tubelets, truth: Tubelets) -> tuple[np.ndarray, np.ndarray]:
    """`(sum of IoU over shared frames, number of shared frames)`, each (N,) floats."""
    if len(pred) != len(truth):
        raise ValueError(f"There are {len(pred)} predicted tubelets and {len(truth)} true ones.")
    rows = [np.repeat(np.arange(len(tubelets)), tubelets.lengths) for tubelets in (pred, truth)]
    # Frames by their rank, so that row and frame make one number however large a frame is.
    frames, ranks = np.unique(np.concatenate([pred.frames, truth.frames]), return_inverse=True)
    split = len(rows[0])
    places = rows[0] * len(frames) + ranks[:split], rows[1] * len(frames) + ranks[split:]
    _, in_pred, in_truth = np.intersect1d(places[0], places[1], assume_unique=True, return_indices=True)
    iou = box_iou(pred.boxes[in_pred], truth.boxes[in_truth])
    row = rows[0][in_pred]
    return np.bincount(row, iou, minlength=len(pred)), np.bincount(row, minlength=len(pred)).astype(float)


def recall_at(ious: np.ndarray, threshold: float) -> float:
    """Per cent of the rows whose IoU is at least `threshold`; 0 of no rows."""
    return 100 * mean_iou(np.asarray(ious) >= threshold)


def mean_iou(ious: np.ndarray) -> float:
    """Mean over the rows, as a fraction; 0 of no rows."""
    ious = np.asarray(ious, dtype=np.float64)
    return float(ious.mean()) if ious.size else 0.0


def bootstrap_interval(values: np.ndarray, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Between which bounds the mean lies if other samples of the same kind are drawn: the percentile bootstrap.

    Rows are drawn with replacement, as many as there are, `resamples` times; the bounds cut off equal shares of the resampled means at
    either end. It takes time in proportion to rows and resamples, and about 100 MiB whatever their number.

    Args:
        values: (N,) or (N, K): K figures of the same rows, drawn together.
        confidence: share of the resampled means between the bounds.
        resamples: how often rows are drawn.
        seed: of the draws; the same values give the same bounds.

    Returns:
        `(low, high)`, of the shape of one row; 0 where there are no rows.

    Raises:
        ValueError: where `confidence` is not between 0 and 1, or `resamples` below 1.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"A bootstrap takes a confidence between 0 and 1 and resamples, got {confidence=} and {resamples=}.")
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    generator, count = np.random.default_rng(seed), len(values)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    means = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(count, size=(min(at_once, resamples - start), count))
        drawn += np.arange(len(drawn))[:, None] * count
        # How often each row was drawn, times its values: one product for all figures.
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means.append(times.astype(float) @ values / count)
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
