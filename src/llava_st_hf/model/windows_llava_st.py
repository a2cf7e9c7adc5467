# SPDX-License-Identifier: Apache-2.0
"""Merging of events that were found in several windows of one video."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np


# Distance between the end of an event and that of its window, as a fraction of the window, up to which the event may continue outside.
EDGE = 0.05
# Temporal IoU, of two events or of their parts in the period that both windows contain, from which on they are the same event.
SAME_SPAN = 0.5
# Mean IoU of their boxes in this period below which they are events of different objects.
SAME_BOXES = 0.3
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class WindowEvent:
    """
    An event that was found in a window of a video.

    Args:
        start, end: seconds from the start of the container.
        windows: start and end of each window in which it was found, in seconds, ascending. One before events are merged.
        presence: probability that the event is one that the question describes.
        agreement: mean probability of the tokens of the description, of which the presence is computed; None for a merged event.
        span_score: expected temporal IoU of the span; None if it is unknown.
        score: expected vIoU of the event; None if it is unknown.
        caption: description in the answer; None if there is none.
        boxes: `(seconds, entry)` in the order of time; the entry is an element of "boxes" of an answer.
    """

    start: float
    end: float
    windows: tuple[tuple[float, float], ...]
    presence: float
    agreement: float | None = None
    span_score: float | None = None
    score: float | None = None
    caption: str | None = None
    boxes: tuple[tuple[float, dict], ...] = ()

    @property
    def window(self) -> tuple[float, float]:
        """Start of the first window and end of the last one."""
        return min(start for start, _ in self.windows), max(end for _, end in self.windows)

    @property
    def order(self) -> tuple:
        """Sort key, equal only for events with the same values."""
        boxes = tuple((time, tuple(entry["box"][side] for side in _SIDES)) for time, entry in self.boxes)
        return self.start, self.end, self.windows, -self.presence, -(self.span_score or 0.0), self.caption or "", boxes

    def continues(self, clip: tuple[float, float]) -> tuple[bool, bool]:
        """Whether the event may have begun before its window and may end after it; not where the window begins or ends with the clip."""
        first, last = self.window
        edge = EDGE * min(end - start for start, end in self.windows)
        return first > clip[0] and self.start - first <= edge, last < clip[1] and last - self.end <= edge


def merge_events(events: Iterable[WindowEvent], clip: tuple[float, float]) -> list[WindowEvent]:
    """
    Merges events of different windows that are the same event, or parts of one.

    Two events are merged if their spans, or the parts of them in the period that both windows contain, have a temporal IoU of at least
    `SAME_SPAN`; or if the earlier one may end after its window, the later one may have begun before its window, and they touch. If both
    have boxes in the period of both, the mean IoU of these must be at least `SAME_BOXES`. Merging is repeated until no two events are the
    same. The result does not depend on the order of `events`.

    Args:
        events: of all windows.
        clip: start and end of the clip that the windows divide, in seconds.

    Returns:
        The events in the order of time, without boxes outside their spans. Each of `events` is in exactly one of them.
    """
    current = sorted(events, key=lambda event: event.order)
    while True:
        groups = _connected(current, lambda one, other: is_same_event(one, other, clip))
        if len(groups) == len(current):
            return [replace(event, boxes=_inside(event.boxes, event.start, event.end)) for event in current]
        current = sorted((_joined(group, clip) for group in groups), key=lambda event: event.order)


def _inside(boxes: Sequence[tuple[float, dict]], start: float, end: float) -> tuple[tuple[float, dict], ...]:
    """The boxes at times from `start` to `end`."""
    return tuple((time, entry) for time, entry in boxes if start <= time <= end)


def _connected(events: Sequence[WindowEvent], is_same: Callable[[WindowEvent, WindowEvent], bool]) -> list[list[WindowEvent]]:
    """Groups of events, each connected by pairs that are the same."""
    group = list(range(len(events)))
    for one, other in combinations(range(len(events)), 2):
        if group[one] != group[other] and is_same(events[one], events[other]):
            old, new = group[other], group[one]
            group = [new if number == old else number for number in group]
    return [[event for event, own in zip(events, group, strict=True) if own == number] for number in sorted(set(group))]


def is_same_event(one: WindowEvent, other: WindowEvent, clip: tuple[float, float]) -> bool:
    """Whether two events of different windows are one; see `merge_events`. Two events of one window are not, but for equal spans."""
    first, second = sorted((one, other), key=lambda event: event.order)
    common = max(first.window[0], second.window[0]), min(first.window[1], second.window[1])
    spans = (first.start, first.end), (second.start, second.end)
    if first.windows == second.windows:
        return spans[0] == spans[1] and _boxes_agree(first, second, common)
    touches = second.start - first.end <= EDGE * min(end - start for start, end in (*first.windows, *second.windows))
    continued = touches and first.continues(clip)[1] and second.continues(clip)[0]
    parts = [(max(start, common[0]), min(end, common[1])) for start, end in spans]
    overlapping = temporal_iou(*spans) >= SAME_SPAN or (all(start < end for start, end in parts) and temporal_iou(*parts) >= SAME_SPAN)
    return (continued or overlapping) and _boxes_agree(first, second, common)


def temporal_iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """IoU of two spans; that of two equal times is 1."""
    if one == other:
        return 1.0
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    joint = max(one[1], other[1]) - min(one[0], other[0]) if shared else (one[1] - one[0]) + (other[1] - other[0])
    return shared / joint if joint > 0 else 0.0


def _boxes_agree(first: WindowEvent, second: WindowEvent, common: tuple[float, float]) -> bool:
    """Whether the boxes of two events are on the same object at the times of both; True where there is no such time."""
    times, corners = zip(*(_track(event) for event in (first, second)), strict=True)
    if not all(map(len, times)):
        return True
    low, high = max(times[0][0], times[1][0], common[0]), min(times[0][-1], times[1][-1], common[1])
    if low > high:  # one after the other: the last box of the first event and the first box of the second
        return first.end > second.start or _box_iou(corners[0][-1:], corners[1][:1]).item() >= SAME_BOXES
    moments = np.unique([low, high, *(time for own in times for time in own if low <= time <= high)])
    boxes = [np.stack([np.interp(moments, own, side) for side in sides.T], axis=1) for own, sides in zip(times, corners, strict=True)]
    return float(_box_iou(*boxes).mean()) >= SAME_BOXES


def _track(event: WindowEvent) -> tuple[np.ndarray, np.ndarray]:
    """Times of the boxes, `(num_boxes,)`, and their corners, `(num_boxes, 4)`."""
    corners = [[entry["box"][side] for side in _SIDES] for _, entry in event.boxes]
    return np.array([time for time, _ in event.boxes]), np.array(corners).reshape(-1, 4)


def _box_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU of boxes, `(num_boxes, 4)` each, pair by pair; 0 for two boxes without area."""
    shared = np.clip(np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]), 0, None).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def _joined(group: Sequence[WindowEvent], clip: tuple[float, float]) -> WindowEvent:
    """
    One event of several.

    Start and end are those of the event with the highest score whose own start or end is not at the edge of its window, if there is one,
    else the earliest start and the latest end. Each box is that of the event in whose window its time is furthest from the edges.
    """
    if len(group) == 1:
        return group[0]
    ranked = sorted(group, key=lambda event: (-event.presence * (1.0 if event.span_score is None else event.span_score), event.order))
    start = next((event.start for event in ranked if not event.continues(clip)[0]), min(event.start for event in group))
    end = next((event.end for event in ranked if not event.continues(clip)[1]), max(event.end for event in group))
    if start > end:
        start, end = min(event.start for event in group), max(event.end for event in group)
    boxes = []
    for event in group:
        for time, entry in event.boxes:
            owners = [other for other in group if other.boxes and other.boxes[0][0] <= time <= other.boxes[-1][0]]
            if min(owners, key=lambda other: _distance(other, time)) is event:
                boxes.append((time, entry))
    return WindowEvent(
        start=start,
        end=end,
        windows=tuple(sorted({window for event in group for window in event.windows})),
        presence=max(event.presence for event in group),
        span_score=_mean([(event.span_score, event.end - event.start) for event in group]),
        score=_mean([(event.score, event.end - event.start) for event in group]),
        caption=next((event.caption for event in ranked if event.caption is not None), None),
        boxes=_inside(sorted(boxes, key=lambda box: (box[0], tuple(box[1]["box"][side] for side in _SIDES))), start, end),
    )


def _distance(event: WindowEvent, time: float) -> tuple:
    """Sort key: negative distance in seconds from a time to the edges of the window of an event."""
    return -min(time - event.window[0], event.window[1] - time), event.order


def _mean(values: Sequence[tuple[float | None, float]]) -> float | None:
    """Mean of the known values, weighted by seconds."""
    known = [(value, max(seconds, 1e-3)) for value, seconds in values if value is not None]
    return round(sum(value * weight for value, weight in known) / sum(weight for _, weight in known), 4) if known else None


__all__ = ["WindowEvent", "is_same_event", "merge_events", "temporal_iou"]
