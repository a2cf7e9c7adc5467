# SPDX-License-Identifier: Apache-2.0
"""Answers as immutable objects: events with a time span in seconds and bounding boxes in pixels of the original image or video.

The pipeline returns dictionaries that `json.dumps` accepts; `Grounding.from_dict` converts one to objects, and `to_dict` back. Frames are
numbered from 0, seconds count from the start of the container, pixels are those of the upright original image or frame.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .checks_llava_st import is_finite_number
from .media_info_llava_st import MediaInfo


SIDES = ("xmin", "ymin", "xmax", "ymax")
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
        _check_numbers(self, ("start", "end"))
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
        _check_numbers(self, SIDES)
        if self.xmin > self.xmax or self.ymin > self.ymax:
            raise ValueError(f"The box {list(self.xyxy)} must have xmin <= xmax and ymin <= ymax.")

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
            moment the first is kept.
    """

    boxes: tuple[Box, ...] = ()

    def __post_init__(self):
        kept: dict[float, Box] = {}
        for box in self.boxes:
            if (moment := box.frame if box.time is None else box.time) is not None:
                kept.setdefault(moment, box)
        object.__setattr__(self, "boxes", tuple(kept[moment] for moment in sorted(kept)))

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Box]:
        return iter(self.boxes)

    def box_at(self, seconds: float) -> Box | None:
        """The box at a time in seconds: see `Event.box_at`. None if the tubelet is empty or its boxes have no times."""
        timed = [box for box in self.boxes if box.time is not None]
        return _between(timed, [box.time for box in timed], seconds, _SAME_TIME, {"time": seconds, "frame": None})

    def box_at_frame(self, frame: int, seconds: float | None = None) -> Box | None:
        """
        The box in a frame: that of the answer where it has one, else interpolated by time, or by frame index where times are unknown.

        Args:
            frame: index in the file.
            seconds: display time of this frame; None if unknown.
        """
        for box in self.boxes:
            if box.frame == frame:
                return box
        where = {"time": seconds, "frame": frame}
        if seconds is not None and (timed := [box for box in self.boxes if box.time is not None]):
            return _between(timed, [box.time for box in timed], seconds, 0.0, where)
        framed = [box for box in self.boxes if box.frame is not None]
        return _between(framed, [box.frame for box in framed], frame, 0.0, where)


def _between(boxes: list[Box], moments: list, moment: float, tolerance: float, where: dict) -> Box | None:
    """Linear interpolation of `boxes` at `moment`; the first or last box outside them."""
    if not boxes:
        return None
    after = min(bisect_left(moments, moment), len(boxes) - 1)
    before = max(after - 1, 0)
    for index in (before, after):
        if abs(moments[index] - moment) <= tolerance:
            return boxes[index]
    unknown = {"score": None, "bins": None, "mask": None, "interpolated": True, **where}
    if not moments[before] < moment < moments[after]:
        return replace(boxes[0 if moment <= moments[0] else -1], **unknown)
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
        score: expected vIoU of the event (IoU of an object of an image); None without scores.
        span_score: expected temporal IoU of the span; None without scores and in images.
        bins: generated bins of start and end; None without scores and in images.
    """

    caption: str | None = None
    start: float | None = None
    end: float | None = None
    boxes: tuple[Box, ...] = ()
    score: float | None = None
    span_score: float | None = None
    bins: tuple[int | None, int | None] | None = None

    @property
    def span(self) -> Span | None:
        """The time span; None unless start and end are known."""
        return None if self.start is None or self.end is None else Span(self.start, self.end, self.span_score)

    @property
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
        tubelet = self.tubelet
        times = [box.time for box in tubelet if box.time is not None]
        start = min(times, default=0.0) if self.start is None else self.start
        end = max(times, default=0.0) if self.end is None else self.end
        return tubelet.box_at(seconds) if start - _SAME_TIME <= seconds <= end + _SAME_TIME else None


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
    """

    text: str = ""
    events: tuple[Event, ...] = ()
    media: MediaInfo | None = None
    notes: tuple[str, ...] = ()
    task: str | None = None
    query: str | None = None
    source: str | None = None

    @property
    def is_video(self) -> bool:
        return self.media is not None and self.media.kind == "video"

    def label(self, event: Event) -> str | None:
        """Text that describes an event: its caption, else the query."""
        return event.caption or self.query

    def frames(self, event: Event) -> range:
        """
        Frames of the video during an event, as indices in the file: from the frame nearest to its start to that nearest to its end,
        both included, so that a span of zero length has one frame. Without a span, from the first to the last box; empty without boxes.
        """
        bounds = [box.frame for box in event.tubelet if box.frame is not None]
        if self.is_video and event.start is not None and event.end is not None:
            nearest = [self.media.frame_of_seconds(seconds) for seconds in (event.start, event.end)]
            bounds = [frame for frame in nearest if frame is not None] or bounds
        return range(min(bounds), max(bounds) + 1) if bounds else range(0)

    def box_at_frame(self, event: Event, frame: int) -> Box | None:
        """The box of an event in a frame of `frames(event)`, interpolated where the answer has none; None in other frames."""
        if self.media is None or frame not in self.frames(event):
            return None
        return event.tubelet.box_at_frame(frame, self.media.seconds_of_frame(frame))

    def boxes_per_frame(self, event: Event) -> dict[int, Box]:
        """`{frame: box}` for every frame of an event; empty if it has no boxes."""
        if self.media is None:
            return {}
        tubelet, seconds = event.tubelet, self.media.seconds_of_frame
        boxes = {frame: tubelet.box_at_frame(frame, seconds(frame)) for frame in self.frames(event)} if len(tubelet) else {}
        return {frame: box for frame, box in boxes.items() if box is not None}

    # JSON

    @classmethod
    def from_dict(cls, answer: Mapping[str, Any], **known) -> "Grounding":
        """
        Converts an answer of the pipeline, of `post_process_grounding` or of `to_dict`.

        Args:
            answer: `{"text", "events", "notes", "media"}` and, if known, "task", "query" and "source". The key "generation" is ignored.
            known: `task`, `query` or `source`, in place of those of `answer`.

        Raises:
            ValueError: naming the key that is missing or not valid.
        """
        if not isinstance(answer, Mapping):
            raise ValueError(f"An answer is a dictionary with text, events, media and notes; got {type(answer).__name__}.")
        if unknown := set(answer) - {"text", "events", "media", "notes", "task", "query", "source", "generation"}:
            raise ValueError(f"{', '.join(sorted(map(str, unknown)))}: not a key of an answer.")
        media = answer.get("media")
        if media is not None and not isinstance(media, MediaInfo):
            try:
                media = MediaInfo(**media)
            except TypeError as error:
                raise ValueError(f"media={media!r:.200} is not a valid description of an image or video: {error}") from error
        texts = {name: known.get(name, answer.get(name)) for name in ("task", "query", "source")}
        return cls(
            text=answer.get("text", ""),
            events=tuple(_read_event(event, f"events[{number}]") for number, event in enumerate(answer.get("events", ()))),
            media=media,
            notes=tuple(answer.get("notes", ())),
            **texts,
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that the pipeline returns, JSON-serializable."""
        known = {name: value for name in ("task", "query", "source") if (value := getattr(self, name)) is not None}
        events = [_event_dict(event, self.is_video) for event in self.events]
        media = None if self.media is None else self.media.to_dict()
        return {"text": self.text, "events": events, "notes": list(self.notes), "media": media, **known}

    @classmethod
    def from_json(cls, text: str) -> "Grounding":
        """Reads what `to_json` returns. Raises a ValueError if the text is not valid."""
        return cls.from_dict(json.loads(text))

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)


def _check_numbers(value, names: tuple[str, ...]) -> None:
    for name in names:
        if not is_finite_number(getattr(value, name)):
            raise ValueError(f"{name} must be a finite number, got {getattr(value, name)!r}.")


def _read_event(event: Any, where: str) -> Event:
    if not isinstance(event, Mapping):
        raise ValueError(f"{where} must be a dictionary, got {event!r:.100}.")
    for name in ("start", "end"):
        if event.get(name) is not None and not is_finite_number(event[name]):
            raise ValueError(f"{where}: {name} must be in seconds or None, got {event[name]!r}.")
    bins = event.get("bins")
    return Event(
        caption=event.get("caption"),
        start=event.get("start"),
        end=event.get("end"),
        boxes=tuple(_read_box(box, f"{where}.boxes[{number}]") for number, box in enumerate(event.get("boxes", ()))),
        score=event.get("score"),
        span_score=event.get("span_score"),
        bins=None if bins is None else (bins.get("start"), bins.get("end")),
    )


def _read_box(entry: Any, where: str) -> Box:
    try:
        sides, bins = {side: entry["box"][side] for side in SIDES}, entry.get("bins")
        names = (*(("time",) if "time" in entry else ()), *SIDES)
        return Box(
            **sides,
            **{name: entry[name] for name in ("time", "frame", "score", "mask") if name in entry},
            interpolated=bool(entry.get("interpolated", False)),
            bins=None if bins is None else tuple(bins[name] for name in names),
        )
    except (TypeError, KeyError, AttributeError) as error:
        expected = '{"time", "frame", "box": {"xmin", "ymin", "xmax", "ymax"}}'
        raise ValueError(f"{where} must be {expected}; got {entry!r:.200}.") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _event_dict(event: Event, is_video: bool) -> dict[str, Any]:
    is_scored = event.bins is not None or event.score is not None or any(box.bins is not None for box in event.boxes)
    boxes = []
    for box in event.boxes:
        entry: dict[str, Any] = {"time": box.time, "frame": box.frame} if is_video else {}
        entry["box"] = dict(zip(SIDES, box.xyxy, strict=True))
        if box.bins is not None:
            entry["bins"] = dict(zip((*(("time",) if is_video else ()), *SIDES), box.bins, strict=True))
        if box.score is not None or box.bins is not None:
            entry["score"] = box.score
        entry.update({name: value for name, value in (("interpolated", box.interpolated), ("mask", box.mask)) if value})
        boxes.append(entry)
    times = {"start": event.start, "end": event.end} if is_video else {}
    values: dict[str, Any] = {**times, "caption": event.caption, "boxes": boxes}
    if is_scored and is_video:
        values["bins"] = None if event.bins is None else dict(zip(("start", "end"), event.bins, strict=True))
        values["span_score"] = event.span_score
    return {**values, "score": event.score} if is_scored else values


__all__ = ["Box", "Event", "Grounding", "Span", "Tubelet"]
