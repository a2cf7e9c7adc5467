# SPDX-License-Identifier: Apache-2.0
"""Answers as immutable objects: events with a time span in seconds and bounding boxes in pixels of the original image or video.

The pipeline returns dictionaries that `json.dumps` accepts; `Grounding.from_dict` converts one to objects, and `to_dict` back. Frames are
numbered from 0, seconds count from the start of the container, pixels are those of the upright original image or frame.
"""

import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .checks_llava_st import Within, check_keys, checked_integer, checked_list, checked_number, checked_text, optional, shown
from .media_info_llava_st import MediaInfo


SIDES = ("xmin", "ymin", "xmax", "ymax")
_ENDS = ("start", "end")
_SECONDS = "a finite number of seconds, or None"
_BIN = "the index of a bin, from 0, or None"
# Two times that differ by less than this many seconds are the same: results are rounded to milliseconds.
_SAME_TIME = 1e-3


@dataclass(frozen=True)
class Span:
    """
    A time span.

    Args:
        start, end: in seconds from the start of the container; equal for a single moment.
        score: expected temporal IoU; None without scores.
    """

    start: float
    end: float
    score: float | None = None

    def __post_init__(self):
        _set(self, {name: checked_number(getattr(self, name), name, "a finite number of seconds") for name in _ENDS})
        _set(self, {"score": _score(self.score, "score")})
        if self.start > self.end:
            raise ValueError(f"The span starts at {self.start:g} s, after its end at {self.end:g} s.")

    @property
    def duration(self) -> float:
        """Seconds between start and end."""
        return self.end - self.start


@dataclass(frozen=True)
class Box:
    """
    A bounding box.

    Args:
        xmin, ymin, xmax, ymax: edges in pixels of the upright original image or frame.
        time: seconds from the start of the container; None in images, and where the frame rate is unknown.
        frame: index of the frame in the file, from 0; None in images and between two frames.
        score: expected IoU of the box; None without scores.
        interpolated: whether the box was computed from its neighbours in time, or copied from the nearest one.
        bins: generated bins of time, xmin, ymin, xmax and ymax in a video, of the last four in an image; None without scores.
        mask: of the object, as COCO run-length encoding: the compressed `counts` at the size of the media; None without masks.
    """

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    time: float | None = None
    frame: int | None = None
    score: float | None = None
    interpolated: bool = False
    bins: tuple[int | None, ...] | None = None
    mask: str | None = None

    def __post_init__(self):
        _set(self, {side: checked_number(getattr(self, side), side, "a finite number of pixels") for side in SIDES})
        if self.xmin > self.xmax or self.ymin > self.ymax:
            raise ValueError(f"The box {shown(list(self.xyxy))} must have xmin <= xmax and ymin <= ymax.")
        _set(self, {"time": optional(self.time, "time", checked_number, _SECONDS), "score": _score(self.score, "score")})
        _set(self, {"frame": optional(self.frame, "frame", checked_integer, 0, "the index of a frame, from 0, or None")})
        _set(self, {"bins": _bins(self.bins, (4, 5)), "mask": optional(self.mask, "mask", checked_text)})
        if not isinstance(self.interpolated, bool):
            raise ValueError(f"interpolated must be True or False, got {shown(self.interpolated)}.")

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """`(xmin, ymin, xmax, ymax)` in pixels."""
        return self.xmin, self.ymin, self.xmax, self.ymax

    @property
    def xywh(self) -> tuple[float, float, float, float]:
        """`(xmin, ymin, width, height)` in pixels."""
        return self.xmin, self.ymin, self.xmax - self.xmin, self.ymax - self.ymin

    @property
    def area(self) -> float:
        """In square pixels."""
        return (self.xmax - self.xmin) * (self.ymax - self.ymin)

    def clipped(self, width: float, height: float) -> "Box":
        """The part of the box within an image or frame of this size in pixels; of area 0 if the box is outside."""
        xmin, xmax = (min(max(x, 0.0), width) for x in (self.xmin, self.xmax))
        ymin, ymax = (min(max(y, 0.0), height) for y in (self.ymin, self.ymax))
        return replace(self, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)


@dataclass(frozen=True)
class Tubelet:
    """
    The boxes of one object over time.

    Args:
        boxes: in any order. Those without time and frame are left out, since their place in the video is unknown; of several boxes at one
            moment the first is kept. Either all others have a time or none has.
    """

    boxes: tuple[Box, ...] = ()

    def __post_init__(self):
        placed = [box for box in _instances(self.boxes, "boxes", Box) if box.time is not None or box.frame is not None]
        if len({box.time is None for box in placed}) > 1:
            raise ValueError("boxes must all have a time, or all have a frame without a time: their order is unknown.")
        kept: dict[float, Box] = {}
        for box in placed:
            kept.setdefault(_moment(box), box)
        _set(self, {"boxes": tuple(kept[moment] for moment in sorted(kept))})

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Box]:
        return iter(self.boxes)

    @cached_property
    def _timed(self) -> tuple[list[float], list[Box]]:
        timed = [(box.time, box) for box in self.boxes if box.time is not None]
        return [time for time, _ in timed], [box for _, box in timed]

    @cached_property
    def _framed(self) -> dict[int, Box]:
        """The first box of each frame, in the order of frames."""
        first = {box.frame: box for box in reversed(self.boxes) if box.frame is not None}
        return {frame: first[frame] for frame in sorted(first)}

    def box_at(self, seconds: float) -> Box | None:
        """The box at a time in seconds: see `Event.box_at`. None if the tubelet is empty or its boxes have no times."""
        seconds = checked_number(seconds, "seconds")
        return _between(*self._timed, seconds, _SAME_TIME, {"time": seconds, "frame": None})

    def box_at_frame(self, frame: int, seconds: float | None = None) -> Box | None:
        """
        The box in a frame: that of the answer where it has one, else interpolated by time, or by frame index where times are unknown.

        Args:
            frame: index in the file.
            seconds: display time of this frame; None if unknown.

        Returns:
            As `Event.box_at`; None if the tubelet is empty, or if its boxes have only times and `seconds` is None.
        """
        if (box := self._framed.get(frame)) is not None:
            return box
        where = {"time": seconds, "frame": frame}
        if seconds is not None and self._timed[0]:
            return _between(*self._timed, seconds, 0.0, where)
        return _between(list(self._framed), list(self._framed.values()), frame, 0.0, where)


def _between(moments: list, boxes: list[Box], moment: float, tolerance: float, where: dict) -> Box | None:
    """
    Linear interpolation at a moment; the nearest box before the first and after the last one; None without boxes.

    Args:
        moments: of the boxes, ascending, in seconds or frame indices, like `moment`.
        tolerance: the nearest box itself is returned if it is at most this far from the moment.
        where: time and frame of the moment.
    """
    if not boxes:
        return None
    after = min(bisect_left(moments, moment), len(boxes) - 1)
    before = max(after - 1, 0)
    nearest = min((before, after), key=lambda index: abs(moments[index] - moment))
    if abs(moments[nearest] - moment) <= tolerance:
        return boxes[nearest]
    unknown = {"score": None, "bins": None, "mask": None, "interpolated": True, **where}
    if not moments[before] < moment < moments[after]:
        return replace(boxes[nearest], **unknown)
    weight = (moment - moments[before]) / (moments[after] - moments[before])
    sides = {s: round((1 - weight) * getattr(boxes[before], s) + weight * getattr(boxes[after], s), 2) for s in SIDES}
    return replace(boxes[before], **sides, **unknown)


@dataclass(frozen=True)
class Event:
    """
    An event of a video, or an object of an image.

    Args:
        caption: description in the answer; None if there is none.
        start, end: in seconds from the start of the container; None where neither answer nor prompt contains them, and in images.
        boxes: all boxes of the answer, in its order; without times in images.
        score: expected vIoU of the event (IoU of an object of an image), between 0 and 1; None without scores.
        span_score: expected temporal IoU of the span; None without scores and in images.
        bins: generated bins of start and end; None without scores and in images.
        has_scores: whether the answer was generated with scores, even if this event has none.
        presence: probability that the event is one that the question describes; None unless it was asked with `window` or `all`.
    """

    caption: str | None = None
    start: float | None = None
    end: float | None = None
    boxes: tuple[Box, ...] = ()
    score: float | None = None
    span_score: float | None = None
    bins: tuple[int | None, ...] | None = None
    has_scores: bool = False
    presence: float | None = None

    def __post_init__(self):
        _set(self, {"caption": optional(self.caption, "caption", checked_text), "bins": _bins(self.bins, (2,))})
        _set(self, {name: optional(getattr(self, name), name, checked_number, _SECONDS) for name in _ENDS})
        _set(self, {name: _score(getattr(self, name), name) for name in ("score", "span_score", "presence")})
        _set(self, {"boxes": _instances(self.boxes, "boxes", Box)})
        if not isinstance(self.has_scores, bool):
            raise ValueError(f"has_scores must be True or False, got {shown(self.has_scores)}.")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise ValueError(f"start must be at most end, {self.end:g} s, got {self.start:g} s.")
        scores = (self.score, self.span_score, self.bins, *(box.bins for box in self.boxes))
        _set(self, {"has_scores": self.has_scores or any(score is not None for score in scores)})
        _ = self.tubelet  # raises an error if boxes have no common order

    @property
    def span(self) -> Span | None:
        """The time span; None unless start and end are known."""
        return None if self.start is None or self.end is None else Span(self.start, self.end, self.span_score)

    @cached_property
    def tubelet(self) -> Tubelet:
        """The boxes that have a time or frame, in the order of time."""
        return Tubelet(self.boxes)

    def box_at(self, seconds: float) -> Box | None:
        """
        The box at a time in seconds from the start of the container.

        Returns:
            The box of the answer at this time; else the linear interpolation between the boxes before and after it, or the nearest box at
            the ends of the span, with `interpolated=True`. None outside the span, or outside the boxes if there is no span.
        """
        times = [box.time for box in self.tubelet if box.time is not None]
        start = min(times, default=0.0) if self.start is None else self.start
        end = max(times, default=0.0) if self.end is None else self.end
        box = self.tubelet.box_at(seconds)
        return box if start - _SAME_TIME <= seconds <= end + _SAME_TIME else None

    @classmethod
    def from_dict(cls, event: Mapping[str, Any]) -> "Event":
        """
        Converts an event of an answer's `events`, or of an item of the type "event" of a stream.

        Raises:
            ValueError: naming the key that is missing, unknown or not valid.
        """
        check_keys(event, ("boxes",), ("caption", *_ENDS, "boxes", "score", "span_score", "bins", "presence"))
        boxes = []
        for number, entry in enumerate(checked_list(event["boxes"], "boxes")):
            with Within(f"boxes[{number}]"):
                boxes.append(_read_box(entry))
        values = {name: event.get(name) for name in ("caption", *_ENDS, "score", "span_score", "presence")}
        return cls(**values, boxes=tuple(boxes), bins=_read_bins(event.get("bins"), _ENDS), has_scores="score" in event)


@dataclass(frozen=True)
class Grounding:
    """
    The answer to a question about an image or video.

    Args:
        text: the generated text with its coordinate tokens.
        events: of the answer, in its order.
        media: size, frame rate and clip of the image or video; None for a question without media.
        notes: what was ignored in the answer and why, and facts about the file.
        task: key of `TASKS`; None for a question in free text.
        query: text of the question; None if it is unknown or the task has none.
        source: path or URL of the image or video; None if it is unknown.
        presence: probability that what the question describes occurs in the video; None unless it was asked with `window` or `all`.

    Raises:
        ValueError: naming the value that is not valid: also a time in an image, and a frame after the end of the video.
    """

    text: str = ""
    events: tuple[Event, ...] = ()
    media: MediaInfo | None = None
    notes: tuple[str, ...] = ()
    task: str | None = None
    query: str | None = None
    source: str | None = None
    presence: float | None = None

    def __post_init__(self):
        _set(self, {"text": checked_text(self.text, "text"), "events": _instances(self.events, "events", Event)})
        _set(self, {"notes": tuple(checked_text(note, "notes") for note in checked_list(self.notes, "notes"))})
        if self.media is not None and not isinstance(self.media, MediaInfo):
            raise ValueError(f"media must be a MediaInfo or None, got {shown(self.media)}.")
        source = os.fspath(self.source) if isinstance(self.source, os.PathLike) else self.source
        for name, value in (("task", self.task), ("query", self.query), ("source", source)):
            _set(self, {name: optional(value, name, checked_text)})
        _set(self, {"presence": _score(self.presence, "presence")})
        for number, event in enumerate(self.events):
            with Within(f"events[{number}]"):
                self._check_event(event)

    def _check_event(self, event: Event) -> None:
        """Checks that the times, frames and bins of an event are those of an image or of this video."""
        if self.media is None:
            return
        is_timed = event.start is not None or event.end is not None or len(event.tubelet) > 0
        if not self.is_video and (is_timed or event.bins is not None or event.span_score is not None):
            raise ValueError("start, end, span_score, bins, and time and frame of boxes must be absent in an image.")
        for number, box in enumerate(event.boxes):
            if box.bins is not None and len(box.bins) != (5 if self.is_video else 4):
                raise ValueError(f"boxes[{number}]: bins must be of {'time and ' * self.is_video}{', '.join(SIDES)}; got {list(box.bins)}.")
            if self.is_video and box.frame is not None and box.frame > self.media.last_frame_of_file:
                raise ValueError(f"boxes[{number}]: frame must be at most {self.media.last_frame_of_file}, got {shown(box.frame)}.")

    @property
    def is_video(self) -> bool:
        """Whether the question was about a video."""
        return self.media is not None and self.media.kind == "video"

    def label(self, event: Event) -> str | None:
        """Text that describes an event: its caption, else the query."""
        return event.caption or self.query

    def frames(self, event: Event) -> range:
        """
        Frames of the video during an event, as indices in the file: from the frame nearest to its start to that nearest to its end,
        both included, so that a span of zero length has one frame. Without a span, or where the frame rate is unknown, from the first to
        the last box; empty without boxes.
        """
        boxes = [(box.frame, box.time) for box in event.tubelet if box.frame is not None]
        bounds = [frame for frame, _ in boxes]
        if self.media is not None and self.is_video and event.start is not None and event.end is not None:
            nearest = [self.media.frame_of_seconds(seconds) for seconds in (event.start, event.end)]
            if known := [frame for frame in nearest if frame is not None]:
                # Times are rounded to milliseconds: a box at an end of the span may be in the frame beside the nearest one.
                low, high = event.start - _SAME_TIME, event.end + _SAME_TIME
                bounds = known + [frame for frame, time in boxes if time is not None and low <= time <= high]
        return range(min(bounds), max(bounds) + 1) if bounds else range(0)

    def box_at_frame(self, event: Event, frame: int) -> Box | None:
        """The box of an event in a frame of `frames(event)`, interpolated where the answer has none; None in other frames."""
        if frame not in self.frames(event):
            return None
        return event.tubelet.box_at_frame(frame, None if self.media is None else self.media.seconds_of_frame(frame))

    def boxes_per_frame(self, event: Event) -> dict[int, Box]:
        """`{frame: box}` for every frame of `frames(event)`, interpolated where the answer has none; empty if it has no boxes."""
        if not event.tubelet:
            return {}
        seconds = (lambda frame: None) if self.media is None else self.media.seconds_of_frame
        boxes = {frame: event.tubelet.box_at_frame(frame, seconds(frame)) for frame in self.frames(event)}
        return {frame: box for frame, box in boxes.items() if box is not None}

    # JSON

    @classmethod
    def from_dict(
        cls,
        answer: Mapping[str, Any],
        *,
        task: str | None = None,
        query: str | None = None,
        source: str | os.PathLike | None = None,
    ) -> "Grounding":
        """
        Converts an answer of the pipeline, of a session, of `post_process_grounding` or of `to_dict`.

        Args:
            answer: `{"text", "events", "notes", "media"}` and, if known, "task", "query", "source" and "presence". The keys
                "generation" and "settings", which the lines of `llava-st ground --jsonl` have, are ignored.
            task, query, source: in place of those of `answer`.

        Raises:
            ValueError: naming the key that is missing, unknown or not valid.
        """
        names = ("text", "events", "notes", "media", "task", "query", "source", "presence", "generation", "settings")
        check_keys(answer, ("text", "events"), names)
        media, events = answer.get("media"), []
        if media is not None and not isinstance(media, MediaInfo):
            with Within("media"):
                media = MediaInfo.from_dict(media)
        for number, event in enumerate(checked_list(answer["events"], "events")):
            with Within(f"events[{number}]"):
                events.append(Event.from_dict(event))
        given: dict[str, Any] = {"task": task, "query": query, "source": source}
        texts = {name: answer.get(name) if value is None else value for name, value in given.items()}
        known = {"notes": answer.get("notes", ()), "presence": answer.get("presence"), **texts}
        return cls(text=answer["text"], events=tuple(events), media=media, **known)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that the pipeline returns, JSON-serializable."""
        known = {name: value for name in ("task", "query", "source", "presence") if (value := getattr(self, name)) is not None}
        # Without media, times show that the question was about a video.
        is_video = self.is_video or (self.media is None and any(e.start is not None or e.end is not None or e.tubelet for e in self.events))
        events = [_event_dict(event, is_video) for event in self.events]
        media = None if self.media is None else self.media.to_dict()
        return {"text": self.text, "events": events, "notes": list(self.notes), "media": media, **known}

    @classmethod
    def from_json(cls, text: str) -> "Grounding":
        """
        Reads what `to_json` returns.

        Raises:
            ValueError: if the text is not JSON, or as `from_dict`.
        """
        if not isinstance(text, (str, bytes, bytearray)):
            raise ValueError(f"text must be JSON, got {shown(text)}.")
        try:
            return cls.from_dict(json.loads(text))
        except RecursionError as error:
            raise ValueError("text must be the JSON of an answer; it has too many nested lists or dictionaries.") from error

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)


def _set(instance, values: dict[str, Any]) -> None:
    """Sets fields of a frozen dataclass while it is made."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _score(value, name: str) -> float | None:
    expected = "a number between 0 and 1, or None"
    score = optional(value, name, checked_number, expected)
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}.")
    return score


def _bins(value, sizes: tuple[int, ...]) -> tuple[int | None, ...] | None:
    if value is None:
        return None
    bins = tuple(optional(index, "bins", checked_integer, 0, _BIN) for index in checked_list(value, "bins"))
    if len(bins) not in sizes:
        raise ValueError(f"bins must have {' or '.join(map(str, sizes))} entries, got {len(bins)}.")
    return bins


def _instances(values, name: str, kind: type) -> tuple:
    for value in checked_list(values, name):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must contain objects of the type {kind.__name__}, got {shown(value)}.")
    return tuple(values)


def _moment(box: Box) -> float:
    """Time of a placed box in seconds; its frame index where the time is unknown."""
    moment = box.frame if box.time is None else box.time
    assert moment is not None  # a box without both is not placed
    return moment


def _read_bins(bins, names: tuple[str, ...]) -> tuple[int | None, ...] | None:
    if bins is None:
        return None
    with Within("bins"):
        check_keys(bins, names, names)
        return tuple(optional(bins[name], name, checked_integer, 0, _BIN) for name in names)


def _read_box(entry: Any) -> Box:
    check_keys(entry, ("box",), ("time", "frame", "box", "bins", "score", "interpolated", "mask"))
    with Within("box"):
        check_keys(entry["box"], SIDES, SIDES)
    names = ("time", *SIDES) if "time" in entry else SIDES
    values = {name: entry[name] for name in ("time", "frame", "score", "interpolated", "mask") if name in entry}
    return Box(**entry["box"], **values, bins=_read_bins(entry.get("bins"), names))


def _event_dict(event: Event, is_video: bool) -> dict[str, Any]:
    boxes = []
    for box in event.boxes:
        entry: dict[str, Any] = {"time": box.time, "frame": box.frame} if is_video else {}
        entry["box"] = dict(zip(SIDES, box.xyxy, strict=True))
        if box.bins is not None:
            entry["bins"] = dict(zip((*(("time",) if len(box.bins) == 5 else ()), *SIDES), box.bins, strict=True))
        if box.score is not None or box.bins is not None:
            entry["score"] = box.score
        entry.update({name: value for name, value in (("interpolated", box.interpolated), ("mask", box.mask)) if value})
        boxes.append(entry)
    times = {"start": event.start, "end": event.end} if is_video else {}
    values: dict[str, Any] = {**times, "caption": event.caption, "boxes": boxes}
    if event.has_scores and is_video:
        values["bins"] = None if event.bins is None else dict(zip(_ENDS, event.bins, strict=True))
        values["span_score"] = event.span_score
    if event.has_scores:
        values["score"] = event.score
    return values if event.presence is None else {**values, "presence": event.presence}


__all__ = ["Box", "Event", "Grounding", "Span", "Tubelet"]
