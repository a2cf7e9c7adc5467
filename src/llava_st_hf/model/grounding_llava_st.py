# SPDX-License-Identifier: Apache-2.0
"""What an answer means: spans, boxes and tubelets in seconds and pixels of the original file.

`parse_answer` reads any text a model may write, well formed or not, and never raises on it: what can be read is returned,
and what could not be is said in plain notes.
"""

import re
from bisect import bisect_left
from dataclasses import asdict, dataclass, field

from .coordinates_llava_st import AXES, COORDINATE_TOKEN, TOKEN_NAMES, bin_to_position, check_position


# Seconds before the first frame of a file that still mean this frame.
START_SLACK = 0.5


@dataclass(frozen=True)
class MediaInfo:
    """A picture or (a clip of) a video, as far as it takes to turn positions into seconds and pixels and back.

    Args:
        kind: "image" or "video".
        width, height: of the original file as a person sees it (rotation applied), in pixels.
        fps: frames per second of the file; None where unknown (frames given without metadata) and for images.
        start_time: seconds from the start of the container at which frame 0 of the file is displayed.
        first_frame, last_frame: the clip that the model sees, as indices of the original frames, both included. Positions
            in time are fractions of this clip.
        frame_times: seconds from the start of the container of each of those frames, where the frame rate varies; None where
            frame i is displayed at start_time + i / fps.
        frames: indices of the original frames that the clip is made of, where it leaves some out unevenly; None if evenly.
            Then positions are fractions of this list, and `frame_times` has one entry for each of it.
        end_time: with `frame_times`, seconds at which the last of those frames leaves the screen; None if as long after it as a
            frame of the mean rate lasts.
        notes: what a reader of the answer must know of the file, such as that its end is missing.
    """

    kind: str
    width: int
    height: int
    fps: float | None = None
    first_frame: int = 0
    last_frame: int = 0
    frame_times: tuple[float, ...] | None = None
    frames: tuple[int, ...] | None = None
    end_time: float | None = None
    start_time: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        count = self.last_frame - self.first_frame + 1 if self.frames is None else len(self.frames)
        for name in ("frame_times", "frames", "notes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON makes lists of them
        if self.frame_times is not None and len(self.frame_times) != count:
            raise ValueError(f"frame_times must have one entry for each of {count} frames, got {len(self.frame_times)}.")

    def time(self, position: float) -> float | None:
        """Seconds from the start of the file at a fraction of the clip; None where the frame rate is unknown."""
        if self.frame_times is not None:
            return round(_at(self.frame_times, position), 3)
        if self.fps is None:
            return None
        return round(self.start_time + (self.first_frame + position * (self.last_frame - self.first_frame)) / self.fps, 3)

    def frame(self, position: float) -> int:
        """Index of the original frame at a fraction of the clip."""
        if self.frames is not None:
            return round(_at(self.frames, position))
        return self.first_frame + round(position * (self.last_frame - self.first_frame))

    def box(self, positions: tuple[float, float, float, float]) -> dict[str, float]:
        """`{"xmin", "ymin", "xmax", "ymax"}` in pixels of a box given as fractions (x1, y1, x2, y2)."""
        scale = (self.width, self.height, self.width, self.height)
        return {name: round(p * s, 2) for name, p, s in zip(("xmin", "ymin", "xmax", "ymax"), positions, scale, strict=True)}

    def time_position(self, seconds: float, written: str) -> float:
        """Fraction of the clip at `seconds` from the start of the container.

        A time up to `START_SLACK` seconds before the first frame of the file is that frame: many pictures start slightly later
        than their sound, and people write 0 for the start.

        Raises:
            ValueError: naming `written`, for a picture, an unknown frame rate, or a time outside the clip.
        """
        if self.kind != "video":
            raise ValueError(f"{written} is a time, but the media before it is an image.")
        if self.frame_times is not None:
            return self._position_in_times(self.frame_times, seconds, written)
        if self.fps is None:
            raise ValueError(f"{written} is in seconds; the frame rate of the video is unknown. Give fps or timestamps of the video item.")
        frames = self.last_frame - self.first_frame
        if self.first_frame == 0 and self.start_time - START_SLACK <= seconds < self.start_time and seconds >= 0:
            return 0.0
        frame = (seconds - self.start_time) * self.fps
        # The clip's last frame is shown until the next one would be: its whole duration belongs to it.
        if not self.first_frame - 0.5 <= frame <= self.last_frame + 1.5:
            start, end = (self.start_time + frame / self.fps for frame in (self.first_frame, self.last_frame + 1))
            raise ValueError(f"{written} lies outside the clip, which goes from {start:g} to {end:g} seconds.")
        return min(max((frame - self.first_frame) / frames, 0.0), 1.0) if frames else 0.0

    def _position_in_times(self, times: tuple[float, ...], seconds: float, written: str) -> float:
        mean_gap = 1 / (self.fps or 1)
        end = self.end_time if self.end_time is not None else times[-1] + mean_gap
        # Half a frame of slack at either end, as at a constant rate.
        if self.first_frame == 0 and times[0] - START_SLACK <= seconds < times[0] and seconds >= 0:
            return 0.0
        if not times[0] - mean_gap / 2 <= seconds <= end + mean_gap / 2:
            raise ValueError(f"{written} lies outside the clip, which goes from {times[0]:g} to {end:g} seconds.")
        after = bisect_left(times, seconds)
        if after in (0, len(times)):
            return 0.0 if after == 0 or len(times) == 1 else 1.0
        before = times[after - 1]
        return (after - 1 + (seconds - before) / (times[after] - before)) / (len(times) - 1)

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
        # What most videos do not have is left out.
        rare = ("frame_times", "frames", "end_time", "start_time", "notes")
        return {name: value for name, value in asdict(self).items() if value or name not in rare}


def _at(values: tuple, position: float) -> float:
    """What stands at a fraction of the way through `values`, in between two of them if need be."""
    place = position * (len(values) - 1)
    before = min(int(place), len(values) - 1)
    after = min(before + 1, len(values) - 1)
    return values[before] + (place - before) * (values[after] - values[before])


_T, _H, _W = (rf"<{TOKEN_NAMES[axis]}-(\d{{3}})>" for axis in AXES)
_SEP = r"[\s,]*"
_COLON = r"\s*(?::\s*)?"  # so written, and not \s*:?\s*, blanks are scanned once
# A bracket may be missing or followed by blanks; blanks alone are not part of a box, so that a scan stays linear.
_OPEN = r"(?:\[[\s,]*)?"
_CORNERS = rf"{_W}{_SEP}{_H}{_SEP}{_W}{_SEP}{_H}"
_SPATIAL = r"<(?:WIDTH|HEIGHT)-\d{3}>"
# Longest reading first: a time with its box, a box, a span, what is left of a broken box, a time alone.
_ITEM = re.compile(
    rf"(?P<moment>{_T}{_COLON}{_OPEN}{_CORNERS}{_SEP}\]?)"
    rf"|(?P<box>{_OPEN}{_CORNERS}{_SEP}\]?)"
    rf"|(?P<span>(?:\{{\s*)?{_T}(?:{_SEP}|\s*(?:to|and|-|–)\s*){_T}(?!{_COLON}{_OPEN}{_SPATIAL})\s*\}}?)"
    rf"|(?P<broken>(?:{_T}{_COLON})?{_OPEN}(?:{_SPATIAL}{_SEP})+\]?)"
    rf"|(?P<time>{_T}(?:\s*:)?)"
)
# Words of the answer's frame, which say nothing of what happens.
_FRAME_WORDS = re.compile(r"object bounding box(?:es)?\s*:?|\b(?:starts|ends)\s+(?:in|at)\b", re.IGNORECASE)
# … and those that lead into a time.
_LEAD = re.compile(
    r"\b(?:(?:and|then)\s+){0,2}(?:(?:in|during|within)\s+the\s+(?:span|period|time\s+(?:range|period|frame))(?:\s+of)?"
    r"|during|between|from|at)\s*[{(\[]*\s*$",
    re.IGNORECASE,
)
_END_BEFORE = re.compile(r"\b(?:ends?|until|ending)\b[^.<]{0,20}$", re.IGNORECASE)
_START_BEFORE = re.compile(r"\b(?:starts?|starting)\b[^.<]{0,20}$", re.IGNORECASE)
_NOTHING_MORE = re.compile(r"[\s,]*(?:<[A-Z]*-?\d*)?\Z")
_PART_OF_TOKEN = re.compile(r"<(?:[A-Z]{1,6}(?:-\d{0,3})?)?$")


@dataclass
class _Event:
    start: float | None = None
    end: float | None = None
    words: list[str] = field(default_factory=list)
    moments: list[tuple[float | None, tuple[float, float, float, float]]] = field(default_factory=list)

    # Whether words stood before the event's span: then its caption ends with it.
    is_led: bool = False

    def caption(self) -> str | None:
        return _clean(" ".join(self.words))

    def is_placeless(self) -> bool:
        return self.start is None and self.end is None and not self.moments

    def is_empty(self) -> bool:
        return self.is_placeless() and not self.caption()


def _clean(caption: str) -> str | None:
    caption = re.sub(r"\s+", " ", _FRAME_WORDS.sub(" ", caption))
    caption = re.sub(r" +([.,;:])", r"\1", caption)
    caption = re.sub(r"([.,;:])(?: ?[,;:])+", r"\1", caption).strip(" ,.;:[]{}()")  # what stood between was a coordinate
    caption = re.sub(r"^(?:(?:and|then)\b[ ,]*){1,2}|(?:[ ,]+(?:and|then)){1,2}$", "", caption, flags=re.IGNORECASE)
    return re.sub(r" +", " ", caption) if re.search(r"\w", caption) else None


def _in_order(low: float, high: float, what: str, notes: list[str]) -> tuple[float, float]:
    if low <= high:
        return low, high
    notes.append(f"{what} is reversed; its ends were put in order.")
    return high, low


class _Reader:
    """Reads the events of one answer, in positions. Notes go to `notes`."""

    def __init__(self, text: str, num_temporal_bins: int, num_spatial_bins: int, is_video: bool, notes: list[str]):
        self.text, self.is_video, self.notes = text, is_video, notes
        self.num_bins = {"TEMP": num_temporal_bins, "HEIGHT": num_spatial_bins, "WIDTH": num_spatial_bins}
        self.events: list[_Event] = []
        self.event = _Event()

    def read(self) -> list[_Event]:
        cursor = 0
        for item in _ITEM.finditer(self.text):
            before, cursor = self.text[cursor : item.start()], item.end()
            positions = [self._position(*token) for token in COORDINATE_TOKEN.findall(item[0])]
            getattr(self, f"_read_{item.lastgroup}")(item, before, positions)
        rest = self.text[cursor:]
        if _PART_OF_TOKEN.search(rest):
            self.notes.append(f"The answer ends within a token, {rest[rest.rindex('<') :]!r}.")
            rest = rest[: rest.rindex("<")]
        if self.is_video or not self.event.moments:  # in a picture, what follows the last box has none
            self.event.words.append(rest)
        self._close()
        return self.events

    def _close(self):
        if not self.event.is_empty():
            self.events.append(self.event)
        self.event = _Event()

    def _position(self, name: str, number: str) -> float:
        last = self.num_bins[name] - 1
        if int(number) > last:
            self.notes.append(f"<{name}-{number}> is no token of this model; it was read as the last one, {last}.")
        return bin_to_position(min(int(number), last), last + 1)

    def _corners(self, item: re.Match, corners: list[float]) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = corners
        if x1 > x2 or y1 > y2:
            self.notes.append(f"The box {item[0].strip()} is reversed; its corners were put in order.")
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def _is_last(self, item: re.Match) -> bool:
        """Whether no words follow: the answer may have been cut off here."""
        return _NOTHING_MORE.match(self.text, item.end()) is not None

    def _read_span(self, item: re.Match, before: str, positions: list[float]):
        event = self.event
        before = _LEAD.sub("", before.rstrip())
        if event.start is None and not event.moments:
            event.words.append(before)
        elif event.is_led and re.match(r"\s*[.;!?]", before):  # "A {…}. B {…}."
            self._close()
            self.event.words.append(before)
        else:  # "{…} A. {…} B."
            event.words.append(before)
            self._close()
        event = self.event
        event.is_led = event.caption() is not None
        event.start, event.end = _in_order(positions[0], positions[1], f"The span {item[0].strip()}", self.notes)

    def _read_moment(self, item: re.Match, before: str, positions: list[float]):
        self.event.words.append(before)
        self.event.moments.append((positions[0], self._corners(item, positions[1:])))

    def _read_box(self, item: re.Match, before: str, positions: list[float]):
        if not self.is_video and self.event.moments and _clean(before):  # in a picture each box grounds the phrase before it
            self._close()
        self.event.words.append(before)
        self.event.moments.append((None, self._corners(item, positions)))

    def _read_broken(self, item: re.Match, before: str, positions: list[float]):
        self.event.words.append(before)
        written = item[0].strip()
        if self._is_last(item):
            self.notes.append(f"The answer ends within a box, {written!r}.")
        else:
            self.notes.append(f"{written!r} is no box: it takes <WIDTH><HEIGHT><WIDTH><HEIGHT>.")

    def _read_time(self, item: re.Match, before: str, positions: list[float]):
        event, written = self.event, item[0].strip()
        is_end, is_start = _END_BEFORE.search(before), _START_BEFORE.search(before)
        opens_span = re.search(r"\{\s*$", before)
        before = _LEAD.sub("", before.rstrip())
        if is_end:
            event.end = positions[0]
        elif is_start:
            event.start = positions[0]
        elif event.moments and self._is_last(item):
            self.notes.append(f"The answer ends within a moment, {written!r} without its box.")
        elif written.endswith(":"):
            self.notes.append(f"The moment {written!r} has no box.")
        elif opens_span and self._is_last(item):
            self.notes.append(f"The answer ends within a span, {'{' + written!r}.")
        elif event.is_placeless():
            event.start = event.end = positions[0]
        elif event.start == event.end and not event.moments and _clean(before):  # "At …, A. At …, B."
            event.words.append(before)
            self._close()
            self.event.start = self.event.end = positions[0]
            return
        else:
            self.notes.append(f"The time {written!r} belongs to no span or box and was left out.")
        event.words.append(before)


def parse_answer(
    text: str,
    media: MediaInfo | None,
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
    notes: list[str] = [] if media is None else [*media.notes]
    result = {"text": text, "events": [], "notes": notes}
    if media is None:
        if COORDINATE_TOKEN.search(text):
            notes.append("The answer has coordinates, but the question had no image or video to place them in.")
        return result
    is_video = media.kind == "video"
    events = _Reader(text, num_temporal_bins, num_spatial_bins, is_video, notes).read()
    if not is_video and any(e.start is not None or e.end is not None or any(t is not None for t, _ in e.moments) for e in events):
        notes.append("The answer gives times, but the question was about an image; they are left out.")

    asked = span is not None or start is not None or box is not None
    if not asked and all(event.is_placeless() for event in events):
        notes.append("The answer names no time or place that could be read.")
        return result
    if not events:
        notes.append("The answer says nothing.")
        return result
    if is_video and media.fps is None:
        notes.append("The frame rate of the video is unknown, so times are left out.")

    for number, event in enumerate(events):
        given = number == 0 and len(events) == 1
        if given and span is not None and event.start is None and event.end is None:
            event.start, event.end = span
        if given and start is not None:
            # What the question gave stands; a time alone in the answer is then the end that was asked for.
            if event.end is not None and event.end < start:
                notes.append(f"The answer's end lies before the start at {media.time(start)} s that the question gave, and was left out.")
                event.end = None
            event.start = start
        if event.start is not None and event.end is not None:
            event.start, event.end = _in_order(event.start, event.end, "The event's span", notes)
        if given and box is not None and not event.moments:
            event.moments = [(start, box)]
        if is_video and event.start is None and event.end is None and (times := [t for t, _ in event.moments if t is not None]):
            event.start, event.end = min(times), max(times)  # a tubelet without a span lasts as long as its boxes
        if is_video and media.fps is None and event.start is not None and event.end is not None:
            notes.append(f"Event {number + 1} goes from frame {media.frame(event.start)} to frame {media.frame(event.end)}.")
        if is_video or event.moments or event.caption():  # a time alone is nothing in a picture
            result["events"].append(_to_units(event, media, is_video))
    return result


def _to_units(event: _Event, media: MediaInfo, is_video: bool) -> dict:
    caption = event.caption()
    if not is_video:
        return {"caption": caption, "boxes": [{"box": media.box(corners)} for _, corners in event.moments]}
    boxes = []
    for position, corners in event.moments:
        time, frame = (None, None) if position is None else (media.time(position), media.frame(position))
        boxes.append({"time": time, "frame": frame, "box": media.box(corners)})
    return {
        "start": None if event.start is None else media.time(event.start),
        "end": None if event.end is None else media.time(event.end),
        "caption": caption,
        "boxes": boxes,
    }
