# SPDX-License-Identifier: Apache-2.0
"""What an answer says, for the formats that LLaVA-ST and its peers write. No reader raises, whatever the text.

Formats, and what is relied on:

- `llava_st`: coordinate tokens, as `grounding.parse_answer` reads them.
- `qwen2_5_vl`, `qwen3_vl`: JSON objects `{"bbox_2d": [x1, y1, x2, y2], "label"}`, in videos with `"time"`, and `{"start", "end"}` for
  spans, times in seconds or `mm:ss.ff`; often in a ```json fence, and cut off in the middle where the answer got too long. Qwen2.5-VL
  counts pixels of the picture as it was resized for it, Qwen3-VL thousandths of the width and height. From programs that read them.
- `molmo2`: `<tracks coords="0.0 1 635 522;0.5 1 606 490 2 511 124">…</tracks>`, `<points …>` likewise: per frame its seconds (for
  pictures their number), then object, x and y in thousandths for each object. From the appendix of Molmo2's report. Points have no
  extent, so they are kept as boxes without area.
- `seconds`: times in plain words, "From 1.5 to 3 seconds", "between 00:01 and 00:05".

A peer is shown a clip as a video of its own: its seconds count from the clip's first frame. The true tubelets of a benchmark have boxes
at the frames that LLaVA-ST samples and at no others, so boxes of all answers go to the nearest of these; of several that go to one, the
nearest stays. A span keeps the times that were said.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from ..data.questions import SAMPLED_FRAMES
from ..model.coordinates_llava_st import DEFAULT_NUM_BINS, bin_to_position, position_to_bin
from ..model.grounding_llava_st import MediaInfo, parse_answer
from .rows import GROUNDING_FIELDS, OWN_PARSER, Box, GroundingResult, Span
from .seen_frames import at_nearest_seen


@dataclass(frozen=True)
class ParseContext:
    """
    What an answer is about.

    Args:
        task: of the question.
        media: what the model saw; None where that is not known, and then no time or place can be told.
        given: what the question gave away.
        num_temporal_bins, num_spatial_bins: of LLaVA-ST's vocabulary.
        num_frames: of the clip, at which true tubelets have boxes.
        seen_size: `(width, height)` in pixels of the picture or frames as a model of absolute pixels was shown them; None where
            they were not resized.
    """

    task: str
    media: MediaInfo | None
    given: GroundingResult = field(default_factory=GroundingResult)
    num_temporal_bins: int = DEFAULT_NUM_BINS
    num_spatial_bins: int = DEFAULT_NUM_BINS
    num_frames: int = SAMPLED_FRAMES
    seen_size: tuple[int, int] | None = None


Reader = Callable[[str, ParseContext], tuple[GroundingResult, list[str]]]

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
# … and the same in JSON that was cut off behind them; an end that is not closed may be the beginning of a longer number.
_START_AND_END_KEYS = re.compile(
    rf'"start(?:_time)?"\s{{0,3}}:\s{{0,3}}"?({_TIME})"?\s{{0,3}},\s{{0,9}}"end(?:_time)?"\s{{0,3}}:\s{{0,3}}(?:"({_TIME})"|({_TIME})(?=[\s,}}]))'
)
_NUMBER = r"(?<![\d.])\d{1,5}(?:\.\d{1,6})?(?!\d|\.\d)"
_FOUR_NUMBERS = re.compile(r"[\s()]{0,4},[\s()]{0,4}".join([rf"({_NUMBER})"] * 4))
_COORDS = re.compile(r'<(?:points|tracks)\b[^<>]*?\bcoords\s?=\s?"(?P<coords>[^"<>]*)(?P<closed>"?)')


@dataclass
class _Found:
    """What a text says, in the units of its format: times in seconds from the start of the clip, boxes in pixels or thousandths."""

    spans: list[Span] = field(default_factory=list)
    boxes: list[tuple[float | None, tuple[float, ...]]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


def read_llava_st(text: str, asked: ParseContext) -> tuple[GroundingResult, list[str]]:
    """An answer in coordinate tokens. The start that the question of "elc" gave stands, whatever the answer says of it."""
    media, num_bins = asked.media, asked.num_temporal_bins
    if media is None:
        return _nothing(asked, ["What the model saw is not known."])
    # On a clip of a million frames, one a second, seconds and frames are positions; `media` would round them.
    clip = MediaInfo(media.kind, media.width, media.height, fps=1.0 if media.kind == "video" else None, last_frame=_TICKS)
    whole: dict = {}
    if _parts(asked) == ("caption",):  # words alone are an answer, where the question gives time or place
        whole = {"span": (0.0, 1.0)} if media.kind == "video" else {"box": (0.0, 0.0, 1.0, 1.0)}
    answer = parse_answer(text, clip, num_bins, asked.num_spatial_bins, **whole)
    events, notes = answer["events"], answer["notes"]

    def position(ticks: float) -> float:
        return bin_to_position(position_to_bin(ticks / _TICKS, num_bins), num_bins)

    span, tubelet = None, {}
    starts_at = asked.given.span[0] if asked.task == "elc" and asked.given.span else None
    for event in events:
        start, end = event.get("start"), event.get("end")
        if end is not None and starts_at is not None and position(end) < starts_at:
            notes.append("The answer's end lies before the start that the question gave, and was left out.")
        elif end is not None and (start is not None or starts_at is not None):
            span = (position(start) if starts_at is None else starts_at, position(end))
            break
    boxes = [(moment.get("frame"), tuple(moment["box"].values())) for event in events for moment in event["boxes"]]
    if media.kind == "video":
        tubelet = at_nearest_seen([(position(ticks), box) for ticks, box in boxes if ticks is not None], media, asked.num_frames)
        if any(ticks is None for ticks, _ in boxes):
            notes.append("A box without a time was left out.")
    caption = next((event["caption"] for event in events if event["caption"]), None)
    box = boxes[0][1] if boxes and media.kind == "image" else None
    objects = tuple((event["caption"] or "", tuple(moment["box"].values())) for event in events for moment in event["boxes"])
    return _kept(GroundingResult(span=span, box=box, tubelet=tubelet or None, caption=caption, objects=objects or None), asked, notes)


def read_json(text: str, asked: ParseContext, scale: tuple[int, int] | None) -> tuple[GroundingResult, list[str]]:
    """
    An answer in JSON, or in words where it holds no JSON with what was asked for.

    Args:
        text, asked: see there.
        scale: what stands for the whole `(width, height)` in its boxes; None for the size in pixels that the model saw.
    """
    notes: list[str] = []
    found, broken = _Found(), 0
    for value in _json_values(text):
        broken += value is _BROKEN
        _collect(value, found)
    if broken:
        notes.append("JSON in the answer is malformed or cut off; what is whole in it was read.")
    if not found.spans and "span" in _parts(asked):
        found.spans = _spans_in_words(text)
    if not found.boxes and "box" in _parts(asked) and (match := _FOUR_NUMBERS.search(text)):
        found.boxes = [(None, tuple(map(float, match.groups())))]
    return _to_units(found, asked, scale or asked.seen_size, notes)


def read_molmo2(text: str, asked: ParseContext) -> tuple[GroundingResult, list[str]]:
    """An answer in tracks or points. Of several objects, the first is read."""
    notes: list[str] = []
    points: dict[str, list[tuple[float | None, tuple[float, ...]]]] = {}
    is_video = asked.media is not None and asked.media.kind == "video"
    for match in _COORDS.finditer(text):
        if not match["closed"]:
            notes.append("The answer ends within a list of points.")
        for frame in filter(str.strip, re.split(r"[;\t]", match["coords"])):
            time, *rest = re.split(r"[\s:,]+", frame.strip())
            values = [_number(value) for value in rest]
            if _number(time) is None or None in values or len(values) % 3 or not values:
                notes.append(f"{frame[:50]!r} is no frame with points: it takes a time, then object, x and y.")
            for place in range(0, len(values) - 2, 3):
                x, y = values[place + 1 : place + 3]
                if _number(time) is not None and x is not None and y is not None:
                    points.setdefault(rest[place], []).append((_number(time) if is_video else None, (x, y, x, y)))
    if len(points) > 1:
        notes.append(f"The answer tracks {len(points)} objects; the first was read.")
    if points:
        notes.append("Points have no extent; they are kept as boxes without area.")
    return _to_units(_Found(boxes=next(iter(points.values()), [])), asked, _THOUSANDTHS, notes)


def read_seconds(text: str, asked: ParseContext) -> tuple[GroundingResult, list[str]]:
    """A span in words."""
    return _to_units(_Found(spans=_spans_in_words(text)), asked, None, [])


ANSWER_PARSERS: dict[str, Reader] = {
    OWN_PARSER: read_llava_st,
    "qwen2_5_vl": partial(read_json, scale=None),
    "qwen3_vl": partial(read_json, scale=_THOUSANDTHS),
    "molmo2": read_molmo2,
    "seconds": read_seconds,
}


def _parts(asked: ParseContext) -> tuple[str, ...]:
    return GROUNDING_FIELDS.get(asked.task, ("caption",))


def _nothing(asked: ParseContext, notes: list[str]) -> tuple[GroundingResult, list[str]]:
    return _kept(GroundingResult(), asked, notes)


def _kept(said: GroundingResult, asked: ParseContext, notes: list[str]) -> tuple[GroundingResult, list[str]]:
    """What was asked for of what was said, and notes of the medium, of the answer, and of what is missing."""
    parts = _parts(asked)
    missing = [part for part in parts if getattr(said, part) is None]
    if missing:
        notes.append(f"The answer gives no {' and no '.join(missing)} that could be read.")
    of_medium = [] if asked.media is None else asked.media.notes
    others = {part: None for part in ("span", "box", "tubelet", "caption", "objects") if part not in parts}
    return replace(said, **others), [*of_medium, *notes]


def _number(value) -> float | None:
    """A JSON number, or one in a string, where it is finite and not below 0 by more than an overshoot would be."""
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"-?\d{1,6}(?:\.\d{1,6})?", value, re.ASCII) else None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond all floats
        pass
    return None


def _seconds(value) -> float | None:
    """Seconds of a number, `12.5`, `"12.5 s"`, `"mm:ss.ff"` or `"hh:mm:ss"`."""
    if isinstance(value, str):
        match = _ONE_TIME.fullmatch(value)
        return None if match is None else _clock(match[1])
    return _number(value)


def _clock(written: str) -> float:
    seconds = 0.0
    for part in written.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _spans_in_words(text: str) -> list[Span]:
    """The spans that a text names, those first that are marked as times by a unit, a colon or a word before."""
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
# Each may read to the end of the text: a text of nothing but brackets is not worth the time that all of them would take.
_MAX_FAILURES = 1000


def _json_values(text: str) -> Iterator[object]:
    """The JSON objects and lists in a text, outermost first; `_BROKEN` for one that has no end, and then what is whole inside it."""
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
            # Brackets are common in plain words too; a quote behind one, or another bracket, tells JSON.
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
    """`(start, end)` in seconds of a list of two times, or of a string that names two."""
    if isinstance(value, str):
        return next(iter(_spans_in_words(value)), None)
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
    """Adds what stands anywhere in a JSON value, in its order."""
    # A bare list of two numbers is a span, except under a key that may as well mean a point.
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
    """Adds what the keys of one JSON object say."""
    if (corners := _corners(_first(values, _BOX_KEYS))) is not None:
        found.boxes.append((_seconds(_first(values, _TIME_KEYS)), corners))
    start, end = _seconds(_first(values, _START_KEYS)), _seconds(_first(values, _END_KEYS))
    pair = (start, end) if start is not None and end is not None else _pair(_first(values, _SPAN_KEYS))
    if pair is not None:
        found.spans.append(pair)
    if isinstance(caption := _first(values, _CAPTION_KEYS), str) and caption.strip():
        found.captions.append(caption.strip())


def _to_units(found: _Found, asked: ParseContext, scale: tuple[int, int] | None, notes: list[str]) -> tuple[GroundingResult, list[str]]:
    """
    What was found as fractions of the clip, pixels of the original and frames of the file.

    Args:
        found: as the answer has it.
        asked: what it is about.
        scale: `(width, height)` of the picture in the units of the boxes; None where those are its pixels.
        notes: so far.
    """
    media = asked.media
    if media is None:
        return _nothing(asked, [*notes, "What the model saw is not known."])
    width, height = scale or (media.width, media.height)
    boxes = []
    for time, corners in found.boxes:
        if (box := _in_pixels(corners, media, width, height, notes)) is not None:
            boxes.append((time, box))
    caption = next(iter(found.captions), None)
    if media.kind == "image":
        if len(boxes) > 1 and "box" in _parts(asked):
            notes.append(f"The answer gives {len(boxes)} boxes; the first was read.")
        return _kept(GroundingResult(box=boxes[0][1] if boxes else None, caption=caption), asked, notes)
    origin, end = media.time(0.0), media.time(1.0)
    if origin is None or end is None:
        return _kept(
            GroundingResult(caption=caption), asked, [*notes, "The frame rate of the video is unknown, so seconds cannot be placed."]
        )

    def fraction(seconds: float) -> float:
        try:
            return media.time_position(origin + seconds, f"{seconds:g} s")
        except ValueError:
            notes.append(f"{seconds:g} s lies outside the clip, which lasts {end - origin:g} s, and was cut to it.")
            return 0.0 if seconds < 0 else 1.0

    if any(time is None for time, _ in boxes):
        notes.append("A box without a time was left out.")
    moments = [(fraction(time), box) for time, box in boxes if time is not None]
    span = None
    if found.spans:
        span = (fraction(found.spans[0][0]), fraction(found.spans[0][1]))
        if len(found.spans) > 1:
            notes.append(f"The answer names {len(found.spans)} spans; the first was read.")
    elif moments:  # a tubelet without a span lasts as long as its boxes
        span = (min(moments)[0], max(moments)[0])
    if span is not None and span[1] < span[0]:
        notes.append("The span is reversed; its ends were put in order.")
        span = (span[1], span[0])
    tubelet = at_nearest_seen(moments, media, asked.num_frames)
    return _kept(GroundingResult(span=span, tubelet=tubelet or None, caption=caption), asked, notes)


def _in_pixels(corners: tuple[float, ...], media: MediaInfo, width: int, height: int, notes: list[str]) -> Box | None:
    """A box in pixels of the original, cut at its edges; None where it lies beside the picture."""
    x1, y1, x2, y2 = (
        value * side / whole for value, side, whole in zip(corners, (media.width, media.height) * 2, (width, height) * 2, strict=True)
    )
    if x2 < x1 or y2 < y1:
        notes.append(f"The box {list(corners)} is reversed; its corners were put in order.")
        x1, y1, x2, y2 = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if x1 > media.width or y1 > media.height or x2 < 0 or y2 < 0:
        notes.append(f"The box {list(corners)} lies beside the picture and was left out.")
        return None
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(media.width)), min(y2, float(media.height))
