# SPDX-License-Identifier: Apache-2.0
"""What an answer means: spans, boxes and tubelets in seconds and pixels of the original file.

`parse_answer` reads any text a model may write, well formed or not, and never raises on it: what can be read is returned,
and what could not be is said in plain notes.
"""

import re
from dataclasses import asdict, dataclass, field

from .coordinates import AXES, COORDINATE_TOKEN, TOKEN_NAMES, bin_to_position, check_position


@dataclass(frozen=True)
class Media:
    """A picture or (a clip of) a video, as far as it takes to turn positions into seconds and pixels and back.

    Args:
        kind: "image" or "video".
        width, height: of the original file as a person sees it (rotation applied), in pixels.
        fps: frames per second of the file; None where unknown (frames given without metadata) and for images.
        first_frame, last_frame: the clip that the model sees, as indices of the original frames, both included. Positions
            in time are fractions of this clip.
    """

    kind: str
    width: int
    height: int
    fps: float | None = None
    first_frame: int = 0
    last_frame: int = 0

    def time(self, position: float) -> float | None:
        """Seconds from the start of the file at a fraction of the clip; None where the frame rate is unknown."""
        if self.fps is None:
            return None
        return round((self.first_frame + position * (self.last_frame - self.first_frame)) / self.fps, 3)

    def frame(self, position: float) -> int:
        """Index of the original frame at a fraction of the clip."""
        return self.first_frame + round(position * (self.last_frame - self.first_frame))

    def box(self, positions: tuple[float, float, float, float]) -> dict[str, float]:
        """`{"xmin", "ymin", "xmax", "ymax"}` in pixels of a box given as fractions (x1, y1, x2, y2)."""
        scale = (self.width, self.height, self.width, self.height)
        return {name: round(p * s, 2) for name, p, s in zip(("xmin", "ymin", "xmax", "ymax"), positions, scale, strict=True)}

    def time_position(self, seconds: float, written: str) -> float:
        """Fraction of the clip at `seconds` from the start of the file.

        Raises:
            ValueError: naming `written`, for a picture, an unknown frame rate, or a time outside the clip.
        """
        if self.kind != "video":
            raise ValueError(f"{written} is a time, but the media before it is an image.")
        if self.fps is None:
            raise ValueError(f"{written} is in seconds, but the frame rate of the video is unknown. Pass video_metadata with fps.")
        frames = self.last_frame - self.first_frame
        frame = seconds * self.fps
        # The clip's last frame is shown until the next one would be: its whole duration belongs to it.
        if not self.first_frame - 0.5 <= frame <= self.last_frame + 1.5:
            start, end = self.first_frame / self.fps, (self.last_frame + 1) / self.fps
            raise ValueError(f"{written} lies outside the clip, which goes from {start:g} to {end:g} seconds.")
        return min(max((frame - self.first_frame) / frames, 0.0), 1.0) if frames else 0.0

    def pixel_position(self, axis: str, pixels: float, written: str) -> float:
        """Fraction of the height or width at `pixels` from the top or left.

        Raises:
            ValueError: naming `written`, where it lies outside the picture by more than a pixel.
        """
        length = self.width if axis == "width" else self.height
        if not -1 <= pixels <= length + 1:
            raise ValueError(f"{written} lies outside the {self.kind}, whose {axis} is {length} pixels.")
        return check_position(min(max(pixels / length, 0.0), 1.0), written)

    def to_dict(self) -> dict:
        return asdict(self)


_T, _H, _W = (rf"<{TOKEN_NAMES[axis]}-(\d{{3}})>" for axis in AXES)
_SEP = r"[\s,]*"
# A bracket may be missing or followed by blanks; blanks alone are not part of a box, so that a scan stays linear.
_OPEN = r"(?:\[[\s,]*)?"
_CORNERS = rf"{_W}{_SEP}{_H}{_SEP}{_W}{_SEP}{_H}"
# Longest reading first: a time with its box, a box, a span, a time alone, and what is left of a broken one.
_ITEM = re.compile(
    rf"(?P<moment>{_T}\s*:?\s*{_OPEN}{_CORNERS}{_SEP}\]?)"
    rf"|(?P<box>{_OPEN}{_CORNERS}{_SEP}\]?)"
    rf"|(?P<span>(?:\{{\s*)?{_T}(?:{_SEP}|\s*(?:to|and|-|–)\s*){_T}(?!\s*:?\s*{_OPEN}<(?:WIDTH|HEIGHT)-)\s*\}}?)"
    rf"|(?P<broken>{_OPEN}(?:<(?:WIDTH|HEIGHT)-\d{{3}}>{_SEP})+\]?)"
    rf"|(?P<time>{_T}(?:\s*:)?)"
)
# Words of the answer's frame, which say nothing of what happens.
_FRAME_WORDS = re.compile(
    r"object bounding box(?:es)?\s*:?|\b(?:starts|ends)\s+(?:in|at)\b|\bfrom\b(?=\s*$)"
    r"|^\W*(?:during(?: the (?:span|period) of)?|between|from|at|in the time (?:range|period))\b(?=\W*$)",
    re.IGNORECASE,
)
_END_BEFORE = re.compile(r"\b(?:ends?|until|ending)\b[^.<]{0,20}$", re.IGNORECASE)
_START_BEFORE = re.compile(r"\b(?:starts?|starting)\b[^.<]{0,20}$", re.IGNORECASE)


@dataclass
class _Event:
    start: float | None = None
    end: float | None = None
    caption: str = ""
    moments: list[tuple[float | None, tuple[float, float, float, float]]] = field(default_factory=list)

    def is_placeless(self) -> bool:
        return self.start is None and self.end is None and not self.moments

    def is_empty(self) -> bool:
        return self.is_placeless() and not _clean(self.caption)


def _clean(caption: str) -> str | None:
    caption = re.sub(r"\s+", " ", _FRAME_WORDS.sub(" ", caption)).strip(" \t\n,.;:[]{}()")
    caption = re.sub(r"^(?:and|then)\s+|^[,;.]\s*", "", caption, flags=re.IGNORECASE)
    return caption if re.search(r"\w", caption) else None


def _in_order(low: float, high: float, what: str, notes: list[str]) -> tuple[float, float]:
    if low <= high:
        return low, high
    notes.append(f"{what} is reversed; its ends were put in order.")
    return high, low


def _corners(bins: list[str], num_spatial_bins: int, written: str, notes: list[str]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (bin_to_position(min(int(b), num_spatial_bins - 1), num_spatial_bins) for b in bins)
    if x1 > x2 or y1 > y2:
        notes.append(f"The box {written} is reversed; its corners were put in order.")
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _read_events(text: str, num_temporal_bins: int, num_spatial_bins: int, is_video: bool, notes: list[str]) -> list[_Event]:
    """The events of an answer, in positions."""

    def position(b: str) -> float:
        return bin_to_position(min(int(b), num_temporal_bins - 1), num_temporal_bins)

    events, event, cursor = [], _Event(), 0

    def close():
        nonlocal event
        if not event.is_empty():
            events.append(event)
        event = _Event()

    for item in _ITEM.finditer(text):
        before, cursor = text[cursor : item.start()], item.end()
        written = item.group(0).strip()
        bins = COORDINATE_TOKEN.findall(item.group(0))  # [(name, bin), …]
        numbers = [number for _, number in bins]
        if item["span"]:
            # What stood before a first span leads into it; before a later one, it is the end of the earlier caption.
            event.caption += f" {before}"
            if event.start is not None or event.moments:
                close()
            event.start, event.end = _in_order(position(numbers[0]), position(numbers[1]), f"The span {written}", notes)
        elif item["moment"]:
            event.caption += f" {before}"
            event.moments.append((position(numbers[0]), _corners(numbers[1:], num_spatial_bins, written, notes)))
        elif item["box"]:
            event.caption += f" {before}"
            event.moments.append((None, _corners(numbers, num_spatial_bins, written, notes)))
            if not is_video:  # in a picture each box grounds the phrase before it
                close()
        elif item["time"]:
            if _END_BEFORE.search(before):
                event.end = position(numbers[0])
            elif _START_BEFORE.search(before):
                event.start = position(numbers[0])
            elif cursor == len(text) and event.moments:
                notes.append(f"The answer ends within a moment, {written!r} without its box.")
            elif written.endswith(":"):
                notes.append(f"The moment {written!r} has no box.")
            elif cursor == len(text) and re.search(r"\{\s*$", before):
                notes.append(f"The answer ends within a span, {(before[-1:] + written)!r}.")
            else:
                event.start = event.end = position(numbers[0])
            event.caption += f" {before}"
        else:
            event.caption += f" {before}"
            notes.append(f"{written!r} is no box: it takes <WIDTH><HEIGHT><WIDTH><HEIGHT>.")
    event.caption += f" {text[cursor:]}"
    close()
    return events


def parse_answer(
    text: str,
    media: Media | None,
    num_temporal_bins: int,
    num_spatial_bins: int,
    span: tuple[float, float] | None = None,
    start: float | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> dict:
    """
    Reads a model's answer.

    Args:
        text: the answer, with coordinate tokens as text (`<TEMP-041>`).
        media: what the answer is about; without it, times and boxes cannot be told and the text alone is returned.
        num_temporal_bins, num_spatial_bins: bins of the time axis, and of height and width.
        span, start, box: what the question already gave, as fractions. It fills in what the answer leaves out: the span of
            an event asked to be described, the start of one whose end was asked for, the region of a caption.

    Returns:
        `{"text", "events", "notes"}`, JSON-ready. An event of a video has `start` and `end` (seconds from the start of the
        file, None where neither answer nor question tells), `caption` (None without one) and `boxes`, a list of
        `{"time": seconds, "frame": index, "box": {"xmin", "ymin", "xmax", "ymax"}}` in pixels; an event of a picture has
        `caption` and `boxes` without times. `notes` says in plain words what could not be read.
    """
    notes: list[str] = []
    result = {"text": text, "events": [], "notes": notes}
    if media is None:
        if COORDINATE_TOKEN.search(text):
            notes.append("The answer has coordinates, but the question had no image or video to place them in.")
        return result
    is_video = media.kind == "video"
    if is_video and media.fps is None:
        notes.append("The frame rate of the video is unknown, so times are left out; frames are given.")
    events = _read_events(text, num_temporal_bins, num_spatial_bins, is_video, notes)
    if not is_video and any(e.start is not None or e.end is not None or any(t is not None for t, _ in e.moments) for e in events):
        notes.append("The answer gives times, but the question was about an image; they are left out.")

    asked = span is not None or start is not None or box is not None
    if not asked and all(event.is_placeless() for event in events):
        notes.append("The answer names no time or place that could be read.")
        return result

    for number, event in enumerate(events):
        given = number == 0 and len(events) == 1
        if given and span is not None and event.start is None and event.end is None:
            event.start, event.end = span
        if given and start is not None and event.start is None:
            event.start = start
        if given and event.start is not None and event.end is not None:
            event.start, event.end = _in_order(event.start, event.end, "The event's span", notes)
        if given and box is not None and not event.moments:
            event.moments = [(start, box)]
        if is_video and event.start is None and event.end is None and (times := [t for t, _ in event.moments if t is not None]):
            event.start, event.end = min(times), max(times)  # a tubelet without a span lasts as long as its boxes
        result["events"].append(_to_units(event, media, is_video))
    return result


def _to_units(event: _Event, media: Media, is_video: bool) -> dict:
    caption = _clean(event.caption)
    if not is_video:
        return {"caption": caption, "boxes": [{"box": media.box(corners)} for _, corners in event.moments]}
    boxes = []
    for position, corners in event.moments:
        known = position is not None
        boxes.append(
            {"time": media.time(position) if known else None, "frame": media.frame(position) if known else None, "box": media.box(corners)}
        )
    return {
        "start": None if event.start is None else media.time(event.start),
        "end": None if event.end is None else media.time(event.end),
        "caption": caption,
        "boxes": boxes,
    }
