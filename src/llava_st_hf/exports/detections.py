# SPDX-License-Identifier: Apache-2.0
"""Answers as `supervision.Detections` (https://supervision.roboflow.com/latest/detection/core/), in memory."""

from typing import TYPE_CHECKING, Any

from ..model.results_llava_st import Box
from .tracks import Track, read_answers, read_tracks


if TYPE_CHECKING:
    import supervision


def to_supervision(grounding) -> "dict[int, supervision.Detections] | supervision.Detections":
    """
    The boxes of an answer for supervision's annotators, trackers and metrics.

    Args:
        grounding: a `Grounding` or an answer dictionary.

    Returns: For a video `{frame: Detections}` for every frame with boxes, in the order of frames, with indices in the file from 0. For an
        image one `Detections`. Boxes are in pixels, clipped to the image or frame, those of the answer and, in videos, interpolated ones
        between them. `tracker_id` is the number of the event from 1 (None for images); `class_id` numbers the labels (captions, else the
        query) from 0, and `confidence` is the expected IoU, NaN for boxes without score, None if there are no scores; `mask` is set where
        all boxes have masks. `data` has, per box, "class_name" (the label, as in supervision's `from_vlm`), "caption", "interpolated"
        and, in videos, "time" (seconds from the start of the container, NaN where unknown).

    Raises:
        ValueError: for an answer that is not valid or has no media.
        ImportError: if supervision is not installed.
    """
    (answer,) = read_answers(grounding if not isinstance(grounding, list | tuple) else list(grounding))
    notes: list[str] = []
    tracks = read_tracks([answer])
    labels = {label: number for number, label in enumerate(dict.fromkeys(track.label for track in tracks))}
    if not answer.is_video:
        return _detections([(track, box) for track in tracks for box in track.boxes(notes)], labels, is_video=False)
    frames: dict[int, list[tuple[Track, Box]]] = {}
    for track in tracks:
        for frame, box in track.frame_boxes(notes).items():
            frames.setdefault(frame, []).append((track, box))
    return {frame: _detections(frames[frame], labels, is_video=True) for frame in sorted(frames)}


def _detections(found: list[tuple[Track, Box]], labels: dict[str, int], is_video: bool) -> "supervision.Detections":
    import numpy as np

    try:
        import supervision
    except ModuleNotFoundError as error:
        raise ImportError("to_supervision needs supervision: pip install 'llava-st-hf[export]'.") from error
    data: dict[str, Any] = {
        "class_name": np.array([track.label for track, _ in found], dtype=str),
        "caption": np.array([track.text or "" for track, _ in found], dtype=str),
        "interpolated": np.array([box.interpolated for _, box in found], dtype=bool),
    }
    if is_video:
        data["time"] = np.array([np.nan if box.time is None else box.time for _, box in found], dtype=float)
    scores = [box.score for _, box in found]
    masks = None
    if found and all(box.mask is not None for _, box in found):
        from pycocotools import mask

        size = [found[0][0].media.height, found[0][0].media.width]
        masks = np.stack([mask.decode({"size": size, "counts": box.mask}).astype(bool) for _, box in found])
    return supervision.Detections(
        xyxy=np.array([box.xyxy for _, box in found], dtype=float).reshape(-1, 4),
        mask=masks,
        confidence=None if all(s is None for s in scores) else np.array([np.nan if s is None else s for s in scores], dtype=float),
        class_id=np.array([labels[track.label] for track, _ in found], dtype=int),
        tracker_id=np.array([track.number for track, _ in found], dtype=int) if is_video else None,
        data=data,
    )
