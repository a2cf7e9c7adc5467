# SPDX-License-Identifier: Apache-2.0
"""Parsers of the answers of LLaVA-ST and other models. None raises an exception for any text; a tubelet needs `num_frames` in its context.

Formats:

- `llava_st`: coordinate tokens, parsed by `grounding.parse_answer`.
- `qwen2_5_vl`, `qwen3_vl`: JSON objects `{"bbox_2d": [x1, y1, x2, y2], "label"}`, in videos with `"time"`, and `{"start", "end"}` for
  spans, times in seconds or `mm:ss.ff`; often in a ```json fence, and cut off if the answer is too long. Qwen2.5-VL writes pixels of the
  resized image, Qwen3-VL thousandths of width and height. Source: published programs that parse their answers.
- `molmo2`: `<tracks coords="0.0 1 635 522;0.5 1 606 490 2 511 124">…</tracks>`, `<points …>` likewise: per frame its time in seconds (for
  images the image number), then object number, x and y in thousandths for each object. Source: appendix of the Molmo2 report. A point is
  kept as a box without area.
- `seconds`: times in plain text, "From 1.5 to 3 seconds", "between 00:01 and 00:05".

Another model is shown a clip as a separate video: its seconds start at the first frame of the clip. Ground-truth tubelets have boxes
only at the frames that LLaVA-ST samples, so each box of an answer is assigned to the nearest of these; if several are assigned to one
frame, the nearest is kept. Spans keep the times of the answer.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from ..deprecation import renamed_argument
from ..model.checks_llava_st import is_finite_number
from ..model.coordinates_llava_st import DEFAULT_NUM_BINS, bin_to_position, position_to_bin
from ..model.grounding_llava_st import parse_answer
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Grounding
from .ground_truth import boxes_at_nearest_frames
from .rows import GROUNDING_FIELDS, OWN_PARSER, Box, GroundingResult, Span


@renamed_argument("given", "prompt_values")
@dataclass(frozen=True)
class ParseContext:
    """
    The question that an answer belongs to.

    Args:
        task: of the question.
        media: what the model was shown; if None, times and boxes cannot be converted and are not read.
        prompt_values: span, box and so on that the prompt contained.
        num_temporal_bins, num_spatial_bins: of LLaVA-ST's vocabulary.
        num_frames: number of frames that are sampled from the clip; ground-truth tubelets have boxes at these. Needed for tasks with
            tubelets.
        seen_size: `(width, height)` in pixels of the resized image or frames, for models that answer in pixels of these; None if they
            were not resized.
    """

    task: str
    media: MediaInfo | None
    prompt_values: GroundingResult = field(default_factory=GroundingResult)
    num_temporal_bins: int = DEFAULT_NUM_BINS
    num_spatial_bins: int = DEFAULT_NUM_BINS
    num_frames: int | None = None
    seen_size: tuple[int, int] | None = None


AnswerParser = Callable[[str, ParseContext], tuple[GroundingResult, list[str]]]

_CAPTION_KEYS = ("caption", "event", "description", "sentence")
_START_KEYS, _END_KEYS = ("start", "start_time"), ("end", "end_time")
_SPAN_KEYS, _TIME_KEYS = ("span", "timestamps", "timestamp", "time"), ("time", "timestamp")
_BOX_KEYS = ("bbox_2d", "bbox")
_TICKS = 10**6
_THOUSANDTHS = (1000, 1000)

_TIME = r"(?<![\d.:])(?:(?:\d{1,3}:){1,2}\d{2}|\d{1,6})(?:\.\d{1,18})?(?![\d:])"
_UNIT = r"(?:\s?(?:seconds?|secs?|s)\b)?"
_ONE_TIME = re.compile(rf"\s*({_TIME}){_UNIT}\s*")
_TWO_TIMES = re.compile(
    rf"(?P<lead>(?:from|between|during)\s{{1,3}})?({_TIME})(?P<unit>{_UNIT})"
    rf"[\s>\])]{{0,3}}(?:[-–—~]|to|and|until|till)[\s<\[(]{{0,3}}({_TIME}){_UNIT}",
    re.IGNORECASE,
)
_START_AND_END = re.compile(
    rf"\bstart[a-z]{{0,4}}(?![a-z_\"])[^\d\n]{{0,30}}({_TIME})[^\d]{{0,60}}\bend[a-z]{{0,4}}(?![a-z_\"])[^\d\n]{{0,30}}({_TIME})",
    re.IGNORECASE,
)
# The same in JSON that was cut off after them; an end without a closing quote or bracket may be the beginning of a longer number.
_START_AND_END_KEYS = re.compile(
    rf'"start(?:_time)?"\s{{0,3}}:\s{{0,3}}"?({_TIME})"?\s{{0,3}},\s{{0,9}}"end(?:_time)?"\s{{0,3}}:\s{{0,3}}(?:"({_TIME})"|({_TIME})(?=[\s,}}]))'
)
_NUMBER = r"(?<![\d.])\d{1,5}(?:\.\d{1,6})?(?!\d|\.\d)"
_FOUR_NUMBERS = re.compile(r"[\s()]{0,4},[\s()]{0,4}".join([rf"({_NUMBER})"] * 4))
_COORDS = re.compile(r'<(?:points|tracks)\b[^<>]*?\bcoords\s?=\s?"(?P<coords>[^"<>]*)(?P<closed>"?)')


@dataclass
class _Found:
    """Content of an answer in the units of its format: times in seconds from the start of the clip, boxes in pixels or thousandths."""

    spans: list[Span] = field(default_factory=list)
    boxes: list[tuple[float | None, tuple[float, ...]]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


def read_llava_st(text: str, context: ParseContext) -> tuple[GroundingResult, list[str]]:
    """Parses an answer in coordinate tokens. For "elc" the start is always that of the prompt, even if the answer repeats it."""
    media, num_bins = context.media, context.num_temporal_bins
    if media is None:
        return _nothing(context, ["The size and frame rate of the image or video are unknown, so times and boxes were not read."])
    # In a clip of 10^6 frames at one frame per second, seconds and frames are positions; with the real frame rate they would be rounded.
    clip = MediaInfo(media.kind, media.width, media.height, fps=1.0 if media.kind == "video" else None, last_frame=_TICKS)
    whole: dict = {}
    if _fields(context) == ("caption",):  # text alone is a complete answer if the prompt contains the time or box
        whole = {"span": (0.0, 1.0)} if media.kind == "video" else {"box": (0.0, 0.0, 1.0, 1.0)}
    answer = Grounding.from_dict(parse_answer(text, clip, num_bins, context.num_spatial_bins, **whole))
    return _result_of(answer, context, lambda ticks: bin_to_position(position_to_bin(ticks / _TICKS, num_bins), num_bins))


def _result_of(answer: Grounding, context: ParseContext, position: Callable[[float], float]) -> tuple[GroundingResult, list[str]]:
    """
    The parts of an answer that its task asks for, and notes.

    Args:
        answer: boxes in pixels of the image or video of `context`, times in any unit.
        context: its question.
        position: converts a time of `answer` to a fraction of the clip.
    """
    notes, events = list(answer.notes), answer.events
    span, tubelet = None, {}
    starts_at = context.prompt_values.span[0] if context.task == "elc" and context.prompt_values.span else None
    for event in events:
        if event.end is not None and starts_at is not None and position(event.end) < starts_at:
            notes.append("The end of the answer is before the start given in the prompt, and was ignored.")
        elif event.end is not None and starts_at is not None:
            span = (starts_at, position(event.end))
            break
        elif event.end is not None and event.start is not None:
            span = (position(event.start), position(event.end))
            break
    boxes = [box for event in events for box in event.boxes]
    if answer.is_video:
        tubelet = _tubelet([(position(box.time), box.xyxy) for box in boxes if box.time is not None], context)
        if any(box.time is None for box in boxes):
            notes.append("A box without a time was ignored.")
    caption = next((event.caption for event in events if event.caption), None)
    first = boxes[0].xyxy if boxes and not answer.is_video else None
    objects = tuple((event.caption or "", box.xyxy) for event in events for box in event.boxes)
    return _kept(GroundingResult(span=span, box=first, tubelet=tubelet or None, caption=caption, objects=objects or None), context, notes)


def read_json(text: str, context: ParseContext, scale: tuple[int, int] | None) -> tuple[GroundingResult, list[str]]:
    """
    Parses an answer in JSON; times and boxes that it does not contain are searched in its text.

    Args:
        text: the answer.
        context: its question.
        scale: `(width, height)` of the whole image in the units of the boxes; None for the size in pixels that the model was shown.
    """
    notes: list[str] = []
    found, broken = _Found(), 0
    for value in _json_values(text):
        broken += value is _BROKEN
        _collect(value, found)
    if broken:
        notes.append("JSON in the answer is malformed or cut off; its complete parts were read.")
    if not found.spans and "span" in _fields(context):
        found.spans = _spans_in_text(text)
    if not found.boxes and "box" in _fields(context) and (match := _FOUR_NUMBERS.search(text)):
        found.boxes = [(None, tuple(map(float, match.groups())))]
    return _to_units(found, context, scale or context.seen_size, notes)


def read_molmo2(text: str, context: ParseContext) -> tuple[GroundingResult, list[str]]:
    """Parses an answer in tracks or points. If it contains several objects, only the first is read."""
    notes: list[str] = []
    points: dict[str, list[tuple[float | None, tuple[float, ...]]]] = {}
    is_video = context.media is not None and context.media.kind == "video"
    for match in _COORDS.finditer(text):
        if not match["closed"]:
            notes.append("The answer ends within a list of points.")
        for frame in filter(str.strip, re.split(r"[;\t]", match["coords"])):
            time, *rest = re.split(r"[\s:,]+", frame.strip())
            values = [_number(value) for value in rest]
            if _number(time) is None or None in values or len(values) % 3 or not values:
                notes.append(f"{frame[:50]!r} is not a valid list of points: expected a time, then object, x and y for each object.")
            for index in range(0, len(values) - 2, 3):
                x, y = values[index + 1 : index + 3]
                if _number(time) is not None and x is not None and y is not None:
                    points.setdefault(rest[index], []).append((_number(time) if is_video else None, (x, y, x, y)))
    if len(points) > 1:
        notes.append(f"The answer tracks {len(points)} objects; the first was read.")
    if points:
        notes.append("Points are kept as boxes without area, so their IoU is 0.")
    return _to_units(_Found(boxes=next(iter(points.values()), [])), context, _THOUSANDTHS, notes)


def read_seconds(text: str, context: ParseContext) -> tuple[GroundingResult, list[str]]:
    """Parses a span in plain text."""
    return _to_units(_Found(spans=_spans_in_text(text)), context, None, [])


ANSWER_PARSERS: dict[str, AnswerParser] = {
    OWN_PARSER: read_llava_st,
    "qwen2_5_vl": partial(read_json, scale=None),
    "qwen3_vl": partial(read_json, scale=_THOUSANDTHS),
    "molmo2": read_molmo2,
    "seconds": read_seconds,
}


def _fields(context: ParseContext) -> tuple[str, ...]:
    return GROUNDING_FIELDS.get(context.task, ("caption",))


def _tubelet(moments: list[tuple[float, Box]], context: ParseContext) -> dict[int, Box]:
    """Boxes of an answer at the sampled frames of its clip; none for a task without tubelets."""
    if "tubelet" not in _fields(context) or context.media is None:
        return {}
    if context.num_frames is None:
        raise ValueError(f"num_frames is missing: the number of sampled frames is needed to read answers to the task {context.task!r}.")
    return boxes_at_nearest_frames(moments, context.media, context.num_frames)


def _nothing(context: ParseContext, notes: list[str]) -> tuple[GroundingResult, list[str]]:
    return _kept(GroundingResult(), context, notes)


def _kept(found: GroundingResult, context: ParseContext, notes: list[str]) -> tuple[GroundingResult, list[str]]:
    """Keeps the fields that the task asks for; returns them with the notes on the media, on the answer and on missing fields."""
    fields = _fields(context)
    missing = [name for name in fields if getattr(found, name) is None]
    if missing:
        notes.append(f"The answer contains no {' and no '.join(missing)} that could be read.")
    media_notes = [] if context.media is None else context.media.notes
    others = {name: None for name in ("span", "box", "tubelet", "caption", "objects") if name not in fields}
    return replace(found, **others), [*media_notes, *notes]


def _number(value) -> float | None:
    """Returns a finite JSON number, or a number in a string, as float; None for other values."""
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"-?\d{1,6}(?:\.\d{1,6})?", value, re.ASCII) else None
    return float(value) if is_finite_number(value) else None


def _seconds(value) -> float | None:
    """Converts `12.5`, `"12.5 s"`, `"mm:ss.ff"` or `"hh:mm:ss"` to seconds; None for other values."""
    if isinstance(value, str):
        match = _ONE_TIME.fullmatch(value)
        return None if match is None else _clock(match[1])
    return _number(value)


def _clock(written: str) -> float:
    seconds = 0.0
    for part in written.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _spans_in_text(text: str) -> list[Span]:
    """Finds spans in plain text; first those that are marked as times by a unit, a colon or a preceding word."""
    if pairs := _START_AND_END.findall(text):
        return [(_clock(start), _clock(end)) for start, end in pairs]
    if keys := _START_AND_END_KEYS.findall(text):
        return [(_clock(start), _clock(quoted or plain)) for start, quoted, plain in keys]
    marked: list[Span] = []
    bare: list[Span] = []
    for match in _TWO_TIMES.finditer(text):
        pair = (_clock(match[2]), _clock(match[4]))
        is_time = match["lead"] or match["unit"] or ":" in match[0] or match[0][-1].isalpha()
        (marked if is_time else bare).append(pair)
    return marked + bare


_BROKEN = object()
# Each failure may read to the end of the text, so their number bounds the time for a text of many brackets.
_MAX_FAILURES = 1000


def _json_values(text: str) -> Iterator[object]:
    """Yields the JSON objects and lists in a text, outermost first; for an incomplete one `_BROKEN`, then its complete parts."""
    decoder, end, failures = json.JSONDecoder(), 0, 0
    for opening in re.finditer(r"[\[{]", text):
        if opening.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, opening.start())
        except RecursionError:
            yield _BROKEN
            return
        except ValueError:
            # Brackets also occur in plain text; a quote or another bracket after one indicates JSON.
            if re.match(r"[\[{]\s{0,20}[\"\[{]", text[opening.start() : opening.start() + 24]):
                yield _BROKEN
            failures += 1
            if failures == _MAX_FAILURES:
                return
            continue
        yield value


def _first(values: dict, keys: tuple[str, ...]):
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _pair(value) -> Span | None:
    """Converts a list of two times, or a string with two times, to `(start, end)` in seconds."""
    if isinstance(value, str):
        return next(iter(_spans_in_text(value)), None)
    if isinstance(value, list) and len(value) == 2:
        start, end = map(_seconds, value)
        if start is not None and end is not None:
            return start, end
    return None


def _corners(value) -> tuple[float, ...] | None:
    numbers = [_number(part) for part in value] if isinstance(value, list) and len(value) == 4 else []
    corners = tuple(number for number in numbers if number is not None)
    return corners if len(corners) == 4 else None


def _collect(value, found: _Found) -> None:
    """Adds the spans, boxes and captions anywhere in a JSON value, in its order."""
    # A list of two numbers is a span, except under a key that may also mean a point.
    waiting = [(value, True)]
    while waiting:
        value, may_be_span = waiting.pop()
        if isinstance(value, dict):
            _collect_named(value, found)
            read = {key for key in _BOX_KEYS if _corners(value.get(key))} | {key for key in _SPAN_KEYS if _pair(value.get(key))}
            waiting += [(part, key in _SPAN_KEYS) for key, part in reversed(value.items()) if key not in read]
        elif isinstance(value, list):
            if (corners := _corners(value)) is not None:
                found.boxes.append((None, corners))
            elif may_be_span and (pair := _pair(value)) is not None:
                found.spans.append(pair)
            else:
                waiting += [(part, may_be_span) for part in reversed(value)]


def _collect_named(values: dict, found: _Found) -> None:
    """Adds the box, span and caption of one JSON object."""
    if (corners := _corners(_first(values, _BOX_KEYS))) is not None:
        found.boxes.append((_seconds(_first(values, _TIME_KEYS)), corners))
    start, end = _seconds(_first(values, _START_KEYS)), _seconds(_first(values, _END_KEYS))
    pair = (start, end) if start is not None and end is not None else _pair(_first(values, _SPAN_KEYS))
    if pair is not None:
        found.spans.append(pair)
    if isinstance(caption := _first(values, _CAPTION_KEYS), str) and caption.strip():
        found.captions.append(caption.strip())


def _to_units(found: _Found, context: ParseContext, scale: tuple[int, int] | None, notes: list[str]) -> tuple[GroundingResult, list[str]]:
    """
    Converts to fractions of the clip, pixels of the original image and frames of the file.

    Args:
        found: in the units of the answer.
        context: its question.
        scale: `(width, height)` of the whole image in the units of the boxes; None if those are its pixels.
        notes: so far.
    """
    media = context.media
    if media is None:
        return _nothing(context, [*notes, "The size and frame rate of the image or video are unknown, so times and boxes were not read."])
    width, height = scale or (media.width, media.height)
    boxes = []
    for time, corners in found.boxes:
        if (box := _in_pixels(corners, media, width, height, notes)) is not None:
            boxes.append((time, box))
    caption = next(iter(found.captions), None)
    if media.kind == "image":
        if len(boxes) > 1 and "box" in _fields(context):
            notes.append(f"The answer contains {len(boxes)} boxes; the first was read.")
        return _kept(GroundingResult(box=boxes[0][1] if boxes else None, caption=caption), context, notes)
    origin, end = media.time(0.0), media.time(1.0)
    if origin is None or end is None:
        return _kept(
            GroundingResult(caption=caption), context, [*notes, "The frame rate of the video is unknown, so seconds were not converted."]
        )

    def fraction(seconds: float) -> float:
        try:
            return media.time_position(origin + seconds, f"{seconds:g} s")
        except ValueError:
            notes.append(f"{seconds:g} s is outside the clip of {end - origin:g} s, and was clipped to it.")
            return 0.0 if seconds < 0 else 1.0

    if any(time is None for time, _ in boxes):
        notes.append("A box without a time was ignored.")
    moments = [(fraction(time), box) for time, box in boxes if time is not None]
    span = None
    if found.spans:
        span = (fraction(found.spans[0][0]), fraction(found.spans[0][1]))
        if len(found.spans) > 1:
            notes.append(f"The answer contains {len(found.spans)} spans; the first was read.")
    elif moments:  # a tubelet without a span lasts as long as its boxes
        span = (min(moments)[0], max(moments)[0])
    if span is not None and span[1] < span[0]:
        notes.append("The span is reversed; its ends were swapped.")
        span = (span[1], span[0])
    tubelet = _tubelet(moments, context)
    return _kept(GroundingResult(span=span, tubelet=tubelet or None, caption=caption), context, notes)


def _in_pixels(corners: tuple[float, ...], media: MediaInfo, width: int, height: int, notes: list[str]) -> Box | None:
    """Converts a box to pixels of the original image and clips it to the image; None if it is outside."""
    x1, y1, x2, y2 = (
        value * side / whole for value, side, whole in zip(corners, (media.width, media.height) * 2, (width, height) * 2, strict=True)
    )
    if x2 < x1 or y2 < y1:
        notes.append(f"The box {list(corners)} is reversed; its corners were swapped.")
        x1, y1, x2, y2 = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if x1 > media.width or y1 > media.height or x2 < 0 or y2 < 0:
        notes.append(f"The box {list(corners)} is outside the image and was ignored.")
        return None
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(media.width)), min(y2, float(media.height))
