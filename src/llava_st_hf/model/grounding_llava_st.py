# SPDX-License-Identifier: Apache-2.0
"""Parser of generated answers: coordinate tokens → spans, boxes and tubelets in seconds and pixels of the original file.

Parsing never raises an exception for any generated text. Malformed answers are parsed as far as possible; `notes` lists what was
ignored and why. The time is linear in the length of the answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .coordinates_llava_st import AXES, COORDINATE_TOKEN, TOKEN_NAMES, bin_to_position
from .media_info_llava_st import MediaInfo
from .scores_llava_st import ScoredPosition, add_scores, check_calibration, refined_box, refined_pair, refined_times


_T, _H, _W = (rf"<{TOKEN_NAMES[axis]}-(\d{{3}})>" for axis in AXES)
_SEP = r"[\s,]*"
_COLON = r"\s*(?::\s*)?"  # not \s*:?\s*, which would scan blanks once per blank
# A bracket may be missing or followed by blanks; blanks alone are not part of a box, so that the time of a scan is linear.
_OPEN = r"(?:\[[\s,]*)?"
_CORNERS = rf"{_W}{_SEP}{_H}{_SEP}{_W}{_SEP}{_H}"
_SPATIAL = r"<(?:WIDTH|HEIGHT)-\d{3}>"
# Longest match first: a time with its box, a box, a span, the remains of an incomplete box, a time alone.
ANSWER_ITEM = re.compile(
    rf"(?P<moment>{_T}{_COLON}{_OPEN}{_CORNERS}{_SEP}\]?)"
    rf"|(?P<box>{_OPEN}{_CORNERS}{_SEP}\]?)"
    rf"|(?P<span>(?:\{{\s*)?{_T}(?:{_SEP}|\s*(?:to|and|-|–)\s*){_T}(?!{_COLON}{_OPEN}{_SPATIAL})\s*\}}?)"
    rf"|(?P<broken>(?:{_T}{_COLON})?{_OPEN}(?:{_SPATIAL}{_SEP})+\]?)"
    rf"|(?P<time>{_T}(?:\s*:)?)"
)
# The patterns below are applied to text in which every run of blanks is one space.
_BLANKS = re.compile(r"\s+")
# Text of the answer format that is not part of a caption.
_FORMAT_TEXT = re.compile(r"object bounding box(?:es)? ?:?|\b(?:starts|ends) (?:in|at)\b", re.IGNORECASE)
# … and text that introduces the time after it: "and then in the time range of {", "between", ". The time is".
_PERIOD = r"(?:time|span|period|interval)(?: (?:range|period|frame|span|interval))?(?: of(?: time)?)?"
_INTRODUCTION = re.compile(
    rf"(?:\b(?:(?:and|then|thus|so) ){{0,2}}(?:(?:in|during|within) the {_PERIOD}|during|between|from|at)"
    rf"|(?:^ ?|(?<=[.,;:!?])|(?<=[.,;:!?] ))(?:the )?{_PERIOD}(?: is| was)?)[ :{{(\[]*$",
    re.IGNORECASE,
)
_LONGEST_INTRODUCTION = 100  # characters
_END_BEFORE = re.compile(r"\b(?:ends?|until|ending)\b[^.<]{0,20}$", re.IGNORECASE)
_START_BEFORE = re.compile(r"\b(?:starts?|starting)\b[^.<]{0,20}$", re.IGNORECASE)
# A number before a box where a time token belongs, "12:" or "frame 12:"; "person 1:" is a caption.
_PLAIN_NUMBER = re.compile(
    r"(?:^|(?<=[.,;:!?)\]}] )|(?<=[.,;:!?)\]}])|\b(?:frame|time|timestamp|second|at) )[ (\[{]?(?P<number>\d{1,9}(?:\.\d{1,9})? ?s?) ?: ?$",
    re.IGNORECASE,
)
_LONGEST_PLAIN_NUMBER = 40  # characters
NOTHING_MORE = re.compile(r"[\s,]*(?:<[A-Z]*-?\d*)?\Z")
_PART_OF_TOKEN = re.compile(r"<(?:[A-Z]{1,6}(?:-\d{0,3})?)?$")


def _without_introduction(text: str) -> str:
    """`text` without words at its end that introduce the time after it."""
    text = text.rstrip()
    start = max(0, len(text) - _LONGEST_INTRODUCTION)
    found = _INTRODUCTION.search(text, start)
    return text if found is None else text[: found.start()]


@dataclass
class Event:
    start: float | None = None
    end: float | None = None
    words: list[str] = field(default_factory=list)
    moments: list[tuple[float | None, tuple[float, float, float, float]]] = field(default_factory=list)

    # Whether the caption came before the span: then the next span ends it.
    has_caption_first: bool = False

    def caption(self) -> str | None:
        return _clean(" ".join(self.words))

    def has_no_coordinates(self) -> bool:
        return self.start is None and self.end is None and not self.moments

    def is_empty(self) -> bool:
        return self.has_no_coordinates() and not self.caption()


def _clean(caption: str) -> str | None:
    caption = _BLANKS.sub(" ", _FORMAT_TEXT.sub(" ", _BLANKS.sub(" ", caption)))
    caption = re.sub(r" ([.,;:])", r"\1", caption)
    caption = re.sub(r"([.,;:])(?: ?[,;:])+", r"\1", caption).strip(" ,.;:[]{}()")  # the text between them was a coordinate
    caption = re.sub(r"^(?:(?:and|then)\b[ ,]*){1,2}|(?:[ ,]+(?:and|then)){1,2}$", "", caption, flags=re.IGNORECASE)
    return re.sub(r" +", " ", caption) if re.search(r"\w", caption) else None


def _in_order(low: float, high: float, what: str, notes: list[str]) -> tuple[float, float]:
    if low <= high:
        return low, high
    notes.append(f"{what} is reversed; its ends were put in order.")
    return high, low


class AnswerReader:
    """Parses the events of one answer, in positions. Notes are appended to `notes`."""

    def __init__(
        self,
        text: str,
        num_temporal_bins: int,
        num_spatial_bins: int,
        is_video: bool,
        notes: list[str],
        scored: dict[int, ScoredPosition | None],  # first character of a coordinate token → its position
    ):
        self.text, self.is_video, self.notes, self.scored = text, is_video, notes, scored
        self.num_bins = {"TEMP": num_temporal_bins, "HEIGHT": num_spatial_bins, "WIDTH": num_spatial_bins}
        self.events: list[Event] = []
        self.event = Event()
        self.cursor = 0  # end of the last item
        self.plain_numbers: list[str] = []  # before boxes, where a time token belongs

    def read(self) -> list[Event]:
        for item in ANSWER_ITEM.finditer(self.text):
            self.read_item(item)
        rest = self.text[self.cursor :]
        if _PART_OF_TOKEN.search(rest[-12:]):
            self.notes.append(f"The answer ends within a token, {rest[rest.rindex('<') :]!r}.")
            rest = rest[: rest.rindex("<")]
        if self.is_video or not self.event.moments:  # in an image, text after the last box is not the caption of a box
            self.event.words.append(rest)
        self._close()
        if self.plain_numbers:
            examples = ", ".join(map(repr, self.plain_numbers[:3])) + ", …" * (len(self.plain_numbers) > 3)
            self.notes.append(f"Plain numbers before boxes ({examples}) are not time tokens; the times of these boxes are unknown.")
        return _merge_repeated_spans(self.events)

    def read_item(self, item: re.Match) -> None:
        """Adds a match of `ANSWER_ITEM` in `text`, the first after `cursor`, to the current event or to a new one."""
        before, self.cursor = _BLANKS.sub(" ", self.text[self.cursor : item.start()]), item.end()
        positions = [self._position(token) for token in COORDINATE_TOKEN.finditer(self.text, item.start(), item.end())]
        getattr(self, f"_read_{item.lastgroup}")(item, before, positions)

    def _close(self):
        if not self.event.is_empty():
            self.events.append(self.event)
        self.event = Event()

    def _position(self, token: re.Match) -> float:
        if (scored := self.scored.get(token.start())) is not None:
            return scored
        name, number = token.groups()
        last = self.num_bins[name] - 1
        if int(number) > last:
            self.notes.append(f"<{name}-{number}> is not a token of this model; it was read as the last one, {last}.")
        return bin_to_position(min(int(number), last), last + 1)

    def _corners(self, item: re.Match, corners: list[float]) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = corners
        if x1 > x2 or y1 > y2:
            self.notes.append(f"The box {item[0].strip()} is reversed; its corners were put in order.")
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def _is_last(self, item: re.Match) -> bool:
        """Whether no text follows: the answer may have been cut off here."""
        return NOTHING_MORE.match(self.text, item.end()) is not None

    def _read_span(self, item: re.Match, before: str, positions: list[float]):
        event = self.event
        before = _without_introduction(before)
        if event.start is None and not event.moments:
            event.words.append(before)
        elif event.has_caption_first and re.match(r" ?[.;!?]", before):  # "A {…}. B {…}."
            self._close()
            self.event.words.append(before)
        else:  # "{…} A. {…} B."
            event.words.append(before)
            self._close()
        event = self.event
        event.has_caption_first = event.caption() is not None
        event.start, event.end = _in_order(positions[0], positions[1], f"The span {item[0].strip()}", self.notes)

    def _read_moment(self, item: re.Match, before: str, positions: list[float]):
        self.event.words.append(before)
        self.event.moments.append((positions[0], self._corners(item, positions[1:])))

    def _read_box(self, item: re.Match, before: str, positions: list[float]):
        if self.is_video:
            start = max(0, len(before) - _LONGEST_PLAIN_NUMBER)
            if (found := _PLAIN_NUMBER.search(before[start:])) is not None:
                self.plain_numbers.append(found["number"].strip())
                before = before[: start + found.start()]
        elif self.event.moments and _clean(before):  # in an image each box belongs to the phrase before it
            self._close()
        self.event.words.append(before)
        self.event.moments.append((None, self._corners(item, positions)))

    def _read_broken(self, item: re.Match, before: str, positions: list[float]):
        self.event.words.append(before)
        written = item[0].strip()
        if self._is_last(item):
            self.notes.append(f"The answer ends within a box, {written!r}.")
        else:
            self.notes.append(f"{written!r} is not a valid box, which is [<WIDTH><HEIGHT><WIDTH><HEIGHT>]; it was ignored.")

    def _read_time(self, item: re.Match, before: str, positions: list[float]):
        event, written = self.event, item[0].strip()
        is_end, is_start = _END_BEFORE.search(before), _START_BEFORE.search(before)
        opens_span = before.rstrip().endswith("{")
        before = _without_introduction(before)
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
        elif event.has_no_coordinates():
            event.start = event.end = positions[0]
        elif event.start == event.end and not event.moments and _clean(before):  # "At …, A. At …, B."
            event.words.append(before)
            self._close()
            self.event.start = self.event.end = positions[0]
            return
        else:
            self.notes.append(f"The time {written!r} does not belong to a span or box and was ignored.")
        event.words.append(before)


def _merge_repeated_spans(events: list[Event]) -> list[Event]:
    """
    Merges events with equal spans of which at most one has a caption: an answer that gives its span again in a sentence, as in
    "{…}, a man walks. The time is {…}.", names one event. Equal spans with a caption each stay separate events.
    """
    merged: list[Event] = []
    first: dict[tuple[float, float], Event] = {}  # span → the first event with it
    captioned: set[tuple[float, float]] = set()  # spans whose first event has a caption
    for event in events:
        if event.start is None or event.end is None:
            merged.append(event)
            continue
        span, has_caption = (event.start, event.end), event.caption() is not None
        earlier = first.setdefault(span, event)
        if earlier is event or (has_caption and span in captioned):
            merged.append(event)
        else:
            earlier.words += event.words
            earlier.moments += event.moments
        if has_caption:
            captioned.add(span)
    return merged


def parse_answer(
    text: str,
    media: MediaInfo | None,
    num_temporal_bins: int,
    num_spatial_bins: int,
    span: tuple[float, float] | None = None,
    start: float | None = None,
    box: tuple[float, float, float, float] | None = None,
    words_suffice: bool = False,
    coordinates: Sequence[ScoredPosition | None] | None = None,
    score_calibration: dict | None = None,
) -> dict:
    """
    Parses a generated answer.

    Args:
        text: the answer, with coordinate tokens as text (`<TEMP-041>`).
        media: the image or video of the question; without it only the text is returned, because times and boxes have no units.
        num_temporal_bins, num_spatial_bins: bins of the time axis, and of height and width.
        span, start, box: values of the prompt, as fractions. They are copied to the result if the answer does not repeat them: the
            span of an event to describe, the start of an event whose end was asked for, the region to caption.
        words_suffice: whether an answer in words without coordinates is complete, and gets no note.
        coordinates: for results with scores, the position of each coordinate token of `text`, in order, as `score_answer` returns them.
        score_calibration: of the checkpoint, see `check_calibration`; None for uncalibrated scores.

    Returns:
        `{"text", "events", "notes", "media"}`, JSON-serializable; `Grounding.from_dict` converts it to objects. Lone surrogates in `text`
        are replaced by U+FFFD. An event of a video has `start` and `end` (seconds from the start of the file, None if neither answer nor
        prompt contains them), `caption` (None if there is none) and `boxes`, a list of
        `{"time": seconds, "frame": index, "box": {"xmin", "ymin", "xmax", "ymax"}}` in pixels; an event of an image has `caption` and
        `boxes` without times. `notes` lists in plain text what was ignored and why, `media` is `MediaInfo.to_dict` of the image or video.

        With `coordinates`, times and boxes are refined: expected positions among the neighbouring bins. Each box also has `bins`, the
        generated bin of each of its values ("time", "xmin" …), and `score`; an event has `score`, and in a video `bins` ("start", "end")
        and `span_score`. A score is the expected IoU: of the box, of the span, and of the event the product of the score of its span and
        the mean score of its boxes (their vIoU). Values of the prompt have None as bin and score.

    Raises:
        ValueError: if the number of `coordinates` is not that of the coordinate tokens of `text`, or `score_calibration` is not valid.
    """
    calibration = check_calibration(score_calibration)
    notes: list[str] = [] if media is None else [*media.notes]
    text, num_replaced = _replace_lone_surrogates(text)
    if num_replaced:
        notes.append(f"Lone surrogates in the answer ({num_replaced}) are not valid Unicode; they were replaced by U+FFFD.")
    tokens = [] if coordinates is None else [token.start() for token in COORDINATE_TOKEN.finditer(text)]
    if coordinates is not None and len(coordinates) != len(tokens):
        raise ValueError(f"coordinates must have one entry for each of the text's {len(tokens)} coordinate tokens, got {len(coordinates)}.")
    scored = dict(zip(tokens, coordinates or (), strict=True))
    result: dict[str, Any] = {"text": text, "events": [], "notes": notes, "media": None if media is None else media.to_dict()}
    if media is None:
        if COORDINATE_TOKEN.search(text):
            notes.append("The answer has coordinates, but the question had no image or video to place them in.")
        return result
    is_video = media.kind == "video"
    events = AnswerReader(text, num_temporal_bins, num_spatial_bins, is_video, notes, scored).read()
    if not is_video and any(e.start is not None or e.end is not None or any(t is not None for t, _ in e.moments) for e in events):
        notes.append("The answer gives times, but the question was about an image; they were ignored.")

    has_prompt_values = span is not None or start is not None or box is not None
    if not has_prompt_values and all(event.has_no_coordinates() for event in events):
        if not (words_suffice and events):
            notes.append("The answer has no valid time or box.")
        return result
    if not events:
        notes.append("The answer is empty.")
        return result
    if is_video and media.fps is None:
        notes.append("The frame rate of the video is unknown, so the result has no times.")

    for number, event in enumerate(events):
        takes_prompt_values = number == 0 and len(events) == 1
        if takes_prompt_values and span is not None and event.start is None and event.end is None:
            event.start, event.end = span
        if takes_prompt_values and start is not None:
            # The start in the prompt is kept; a single time in the answer is then the end that was asked for.
            if event.end is not None and event.end < start:
                notes.append(f"The end in the answer is before the start in the prompt ({media.time(start)} s) and was ignored.")
                event.end = None
            event.start = start
        if event.start is not None and event.end is not None:
            event.start, event.end = _in_order(event.start, event.end, "The event's span", notes)
        if takes_prompt_values and box is not None and not event.moments:
            event.moments = [(start, box)]
        if is_video and event.start is None and event.end is None and (times := [t for t, _ in event.moments if t is not None]):
            event.start, event.end = min(times), max(times)  # the span of a tubelet without one is that of its boxes
        if is_video and media.fps is None and event.start is not None and event.end is not None:
            notes.append(f"Event {number + 1} lasts from frame {media.frame(event.start)} to frame {media.frame(event.end)}.")
        if is_video or event.moments or event.caption():  # a time alone is not an event of an image
            found = event_in_units(event, media, is_video) if coordinates is None else _with_scores(event, media, calibration)
            result["events"].append(found)
            if is_video and _has_several_at_one_time(found["boxes"]):
                notes.append(f"Event {number + 1} has several boxes at one time; only the first of them is part of its tubelet.")
    return result


def _has_several_at_one_time(boxes: list[dict]) -> bool:
    """Whether two boxes of an event have the same time, or the same frame where times are unknown."""
    moments = [box["frame"] if box["time"] is None else box["time"] for box in boxes if box["frame"] is not None]
    return len(set(moments)) < len(moments)


def _with_scores(event: Event, media: MediaInfo, calibration: dict) -> dict:
    """The event in units with refined values, bins and scores."""
    times = refined_times([time for time, _ in event.moments], event.start, event.end)
    start, end = event.start, event.end
    if start is not None and end is not None:
        start, end = refined_pair(start, end)
    moments = [(time, refined_box(corners)) for time, (_, corners) in zip(times, event.moments, strict=True)]
    is_video = media.kind == "video"
    result = event_in_units(Event(start, end, event.words, moments), media, is_video)
    add_scores(result, event.start, event.end, event.moments, calibration, is_video)
    return result


def _replace_lone_surrogates(text: str) -> tuple[str, int]:
    """`text` with U+FFFD for every lone surrogate, which UTF-8 cannot encode, and their number; pairs become one character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        replaced = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return replaced, replaced.count("\ufffd") - text.count("\ufffd")
    return text, 0


def event_in_units(event: Event, media: MediaInfo, is_video: bool) -> dict:
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
