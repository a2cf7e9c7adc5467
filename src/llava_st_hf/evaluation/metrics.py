# SPDX-License-Identifier: Apache-2.0
"""Grounding metrics as functions of arrays: IoU of boxes, spans and tubelets, means, recalls and bootstrap intervals.

Boxes are `x1, y1, x2, y2` and spans `start, end`. Prediction and ground truth must have the same unit. A box or span that is reversed,
empty or contains NaN has area (length) 0, so its IoU is 0; NaN marks a missing answer. No function returns NaN.

Pairs of boxes are compared row by row. `torchvision.ops.box_iou` computes the (N, N) matrix of all pairs, of which only the diagonal is
needed here.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np


# Number of int64 row indices that a bootstrap draws at a time: 32 MiB.
_DRAWN_AT_ONCE = 2**22


class Tubelets:
    """
    The tubelets of many samples in flat arrays, so that millions of boxes need no Python objects.

    Args:
        tubelets: `{frame: box}` of each sample; None for a sample without a tubelet.
    """

    def __init__(self, tubelets: Iterable[Mapping[int, Sequence[float]] | None] = ()):
        self._lengths, self._frames, self._corners = array("q"), array("q"), array("d")
        for tubelet in tubelets:
            self.append(tubelet)

    def append(self, tubelet: Mapping[int, Sequence[float]] | None) -> None:
        """
        Adds a sample.

        Raises:
            ValueError: if a box does not have four numbers.
        """
        tubelet = tubelet or {}
        for box in tubelet.values():
            if len(box) != 4:
                raise ValueError(f"A box must be x1, y1, x2, y2; got {box!r:.100}.")
        self._lengths.append(len(tubelet))
        self._frames.extend(tubelet)
        self._corners.extend(chain.from_iterable(tubelet.values()))

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) number of boxes of each sample."""
        return np.array(self._lengths, dtype=np.int64)

    @property
    def frames(self) -> np.ndarray:
        """(M,) frame of each box, sample after sample."""
        return np.array(self._frames, dtype=np.int64)

    @property
    def boxes(self) -> np.ndarray:
        """(M, 4) boxes, sample after sample."""
        return np.array(self._corners, dtype=np.float64).reshape(-1, 4)


def _extents(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`high - low`, or 0 where that is negative or NaN (`fmax` ignores NaN)."""
    return np.fmax(high - low, 0.0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, or 0 where `whole` is 0 or one of them is not finite."""
    sound = (whole > 0) & np.isfinite(whole) & np.isfinite(part)
    return np.divide(part, whole, out=np.zeros(whole.shape), where=sound)


def box_iou(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """
    Computes the IoU of each pair of boxes, area of the intersection over area of the union; 0 where both are empty.

    Args:
        pred, truth: (N, 4), paired row by row.

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
    Computes the tIoU of each pair of spans, length of the intersection over length of the union; 0 where both are empty.

    Args:
        pred, truth: (N, 2), paired row by row.

    Returns:
        (N,) in [0, 1].
    """
    pred, truth = (np.asarray(spans, dtype=np.float64).reshape(-1, 2) for spans in (pred, truth))
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        overlap = _extents(np.maximum(pred[:, 0], truth[:, 0]), np.minimum(pred[:, 1], truth[:, 1]))
        return _ratio(overlap, _extents(pred[:, 0], pred[:, 1]) + _extents(truth[:, 0], truth[:, 1]) - overlap)


def spatial_iou(pred: Tubelets, truth: Tubelets) -> np.ndarray:
    """
    Computes the sIoU of each pair of tubelets: mean box IoU over the frames in which both have a box; 0 where there is no such frame.

    A prediction with a single correct box gets 1: sIoU measures the quality of boxes, not their number.

    Args:
        pred, truth: of the same N samples.

    Returns:
        (N,) in [0, 1].
    """
    total, shared = _shared_iou(pred, truth)
    return _ratio(total, shared)


def tubelet_iou(pred: Tubelets, truth: Tubelets) -> np.ndarray:
    """
    Computes the vIoU of each pair of tubelets (Zhang et al., "Where Does It Exist", CVPR 2020): sum of box IoU over the frames in which
    both have a box, divided by the number of frames in which at least one has a box; 0 where neither has any.

    Both must use the same frames: if the ground truth has boxes at frames that the model was not shown, 1 cannot be reached.

    Args:
        pred, truth: of the same N samples.

    Returns:
        (N,) in [0, 1].
    """
    total, shared = _shared_iou(pred, truth)
    return _ratio(total, pred.lengths + truth.lengths - shared)


def _shared_iou(pred: Tubelets, truth: Tubelets) -> tuple[np.ndarray, np.ndarray]:
    """`(sum of box IoU over shared frames, number of shared frames)`, each (N,) floats."""
    if len(pred) != len(truth):
        raise ValueError(f"Prediction and ground truth must have the same number of tubelets; got {len(pred)} and {len(truth)}.")
    rows = [np.repeat(np.arange(len(tubelets)), tubelets.lengths) for tubelets in (pred, truth)]
    # Frames are replaced by their rank, so that sample and frame fit into one int64 key for any frame index.
    frames, ranks = np.unique(np.concatenate([pred.frames, truth.frames]), return_inverse=True)
    split = len(rows[0])
    keys = rows[0] * len(frames) + ranks[:split], rows[1] * len(frames) + ranks[split:]
    _, in_pred, in_truth = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    iou = box_iou(pred.boxes[in_pred], truth.boxes[in_truth])
    row = rows[0][in_pred]
    return np.bincount(row, iou, minlength=len(pred)), np.bincount(row, minlength=len(pred)).astype(float)


def recall_at(ious: np.ndarray, threshold: float) -> float:
    """Percentage of the samples whose IoU is at least `threshold`; 0 without samples."""
    return 100 * mean_iou(np.asarray(ious) >= threshold)


def mean_iou(ious: np.ndarray) -> float:
    """Mean over the samples, as a fraction; 0 without samples."""
    ious = np.asarray(ious, dtype=np.float64)
    return float(ious.mean()) if ious.size else 0.0


def bootstrap_interval(values: np.ndarray, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Computes a percentile bootstrap confidence interval of the mean.

    N samples are drawn with replacement `resamples` times; the bounds are quantiles of the resampled means. Needs about 100 MiB for any
    number of samples, and time proportional to samples times resamples.

    Args:
        values: (N,) or (N, K): K metrics of the same samples, which are drawn together.
        confidence: fraction of the resampled means between the bounds.
        resamples: number of draws of N samples.
        seed: of the draws; the same values give the same bounds.

    Returns:
        `(low, high)`, each of shape () or (K,); 0 without samples.

    Raises:
        ValueError: if `confidence` is not between 0 and 1, or `resamples` is below 1.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence must be between 0 and 1 and resamples at least 1; got {confidence=} and {resamples=}.")
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    generator, count = np.random.default_rng(seed), len(values)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    means = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(count, size=(min(at_once, resamples - start), count))
        drawn += np.arange(len(drawn))[:, None] * count
        # (draws, N) counts of each sample times its values: one matrix product for all metrics.
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means.append(times.astype(float) @ values / count)
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
