# SPDX-License-Identifier: Apache-2.0
"""Choice of one detection per frame, so that they follow one object and agree with the boxes of an answer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..model.checks_llava_st import is_finite_number
from ..model.results_llava_st import Box


# Detections of a frame that are compared with those of the next one: those with the highest score plus agreement.
MAX_CANDIDATES = 32


@dataclass(frozen=True)
class Detections:
    """
    Objects that a detector found in a frame.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the frame.
        scores: (N,) in [0, 1].
        masks: N masks as COCO run-length encoding; None for a detector without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    masks: tuple[str, ...] | None = None

    def __post_init__(self):
        boxes = np.asarray(self.boxes, dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(self.scores, dtype=np.float64).reshape(-1)
        if len(boxes) != len(scores) or (self.masks is not None and len(self.masks) != len(scores)):
            raise ValueError(
                f"Detections must have one score, and one mask if any, for each of {len(boxes)} boxes; got {len(scores)} scores."
            )
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)

    def selected(self, places: np.ndarray) -> "Detections":
        """The detections at `places`, indices or booleans."""
        masks = None if self.masks is None else tuple(np.asarray(self.masks, dtype=object)[places])
        return Detections(self.boxes[places], self.scores[places], masks)


@dataclass(frozen=True)
class Linking:
    """
    Weights of `choose_track`.

    Args:
        agreement: weight of the IoU of a detection with the box of the answer.
        motion: weight of the IoU of the detections in two consecutive frames.
        min_agreement: detections whose IoU with the box of the answer is below this are not of this object.

    Raises:
        ValueError: for a negative number, and for `min_agreement` above 1.
    """

    agreement: float = 1.0
    motion: float = 1.0
    min_agreement: float = 0.3

    def __post_init__(self):
        for name in ("agreement", "motion", "min_agreement"):
            value = getattr(self, name)
            if not is_finite_number(value) or value < 0 or (name == "min_agreement" and value > 1):
                raise ValueError(f"{name} must be a number from 0{' to 1' if name == 'min_agreement' else ' on'}, got {value!r}.")


def pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) IoU of each of (N, 4) with each of (M, 4) boxes x1, y1, x2, y2; 0 for empty boxes."""
    first, second = (np.asarray(boxes, dtype=np.float64) for boxes in (first, second))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)  # (N, M)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def within_frame(detections: Detections, width: int, height: int) -> Detections:
    """Detections with boxes clipped to a frame of this size in pixels, without those that are outside it or not finite."""
    boxes = np.clip(detections.boxes, 0, (width, height, width, height))
    kept = np.isfinite(boxes).all(axis=1) & np.isfinite(detections.scores) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Detections(boxes, detections.scores, detections.masks).selected(kept)


def choose_track(detections: Mapping[int, Detections], answer_boxes: Mapping[int, Box], linking: Linking) -> dict[int, Box]:
    """
    Chooses at most one detection per frame, with the highest sum, over all frames, of score, agreement with the box of the answer and
    overlap with the choice in the frame before (as action tubes are linked: Gkioxari and Malik, CVPR 2015), by dynamic programming.

    In each frame the box of the answer, or no box if the answer has none there, is another choice, of score 0 and of agreement
    `min_agreement`. So the track continues through frames in which the object is not detected.

    Args:
        detections: `{frame: detections}` in the order of the frames.
        answer_boxes: `{frame: box}` of the answer; without them score and overlap decide.
        linking: weights.

    Returns:
        `{frame: box}` of the frames in which a detection was chosen.
    """
    nothing = np.full((1, 4), np.nan)
    candidates: list[tuple[int, Detections, np.ndarray]] = []
    totals: list[np.ndarray] = []
    origins: list[np.ndarray] = []
    for frame, found in detections.items():
        answer = answer_boxes.get(frame)
        own = nothing if answer is None else np.array([answer.xyxy])
        agreement = np.zeros(len(found.scores)) if answer is None else pairwise_iou(found.boxes, own)[:, 0]
        gain = found.scores + linking.agreement * agreement  # (N,)
        kept = np.argsort(-gain, kind="stable")[:MAX_CANDIDATES]
        if answer is not None:
            kept = kept[agreement[kept] >= linking.min_agreement]
        without = 0.0 if answer is None else linking.agreement * linking.min_agreement
        boxes, gain = np.concatenate([found.boxes[kept], own]), np.append(gain[kept], without)  # (N + 1, …), the last one: no detection
        if candidates:
            overlap = np.nan_to_num(pairwise_iou(candidates[-1][2], boxes))
            through = totals[-1][:, None] + linking.motion * overlap  # (before, N + 1)
            origins.append(through.argmax(axis=0))
            gain = gain + through.max(axis=0)
        candidates.append((frame, found.selected(kept), boxes))
        totals.append(gain)
    track: dict[int, Box] = {}
    place = int(totals[-1].argmax()) if totals else 0
    for number in range(len(candidates) - 1, -1, -1):
        frame, found, _ = candidates[number]
        if place < len(found.scores):
            track[frame] = as_box(found, place, frame)
        place = int(origins[number - 1][place]) if number else 0
    return dict(sorted(track.items()))


def as_box(found: Detections, place: int, frame: int) -> Box:
    """Detection `place` of a frame as a `Box`, rounded as the boxes of answers."""
    x1, y1, x2, y2 = (round(float(side), 2) for side in found.boxes[place])
    mask = None if found.masks is None else found.masks[place]
    return Box(x1, y1, x2, y2, frame=frame, score=round(float(found.scores[place]), 4), mask=mask)


__all__ = ["Detections", "Linking", "choose_track", "pairwise_iou", "within_frame"]
