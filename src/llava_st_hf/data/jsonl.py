# SPDX-License-Identifier: Apache-2.0
"""This package's own format: one object per line, in seconds and pixels. docs/data.md has an example of each kind.

A *task* row says what is seen, and which task it is for:

| key | | of the tasks |
|---|---|---|
| `image` or `video` | path in the data folder | all |
| `task` | rec, reg, dgc, tvg, tr, stvg, svg or elc | all |
| `text` | expression, phrase, sentence or caption | all but dgc |
| `box` | `[x1, y1, x2, y2]`, pixels | rec, reg |
| `objects` | `[{"text", "box"}]`: consecutive pieces of the caption | dgc |
| `span` | `[start, end]`, seconds from the start of the file | tvg, tr, stvg, svg, elc |
| `boxes` | `[{"time", "box"}]`, seconds and pixels, in order and within the span | stvg, svg, elc |
| `clip`, or `start` and `end` | the part of the video to look at, in frames or seconds | optional, videos |
| `id` | | optional |

Which of these the question gives away and which the answer holds follows from the task. A *chat* row has `messages`,
`[{"role", "content"}]` with coordinates inline, in place of what is seen; its `task` is a name of one's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..model.messages_llava_st import read_box, read_span, read_time
from ..model.tasks_llava_st import TASKS
from .checks import frames, listing, mapping, member, name, words
from .json_rows import read_rows
from .rows import Medium
from .samples import GroundingSample


_COMMON = ("id", "task")
_PART = ("clip", "start", "end")
# Beside the medium, what a row of each task must have.
_FIELDS = {
    "rec": ("text", "box"),
    "reg": ("text", "box"),
    "dgc": ("objects",),
    "tvg": ("text", "span"),
    "tr": ("text", "span"),
    "stvg": ("text", "span", "boxes"),
    "svg": ("text", "span", "boxes"),
    "elc": ("text", "span", "boxes"),
}
# How far, in seconds, a box may lie outside its span: people round both.
SPAN_SLACK = 0.1


@dataclass(frozen=True)
class Chat:
    """A conversation written out: `medium` with a path as the annotation has it, `turns` of `(role, text)`."""

    id: str
    task: str
    medium: Medium | None
    turns: tuple[tuple[str, str], ...]


def read_jsonl(path: str) -> Iterator[tuple[int, GroundingSample | Chat | str]]:
    """
    Yields `(row, sample)` for a task row, `(row, chat)` for a chat row, or `(row, problem)`. Rows are lines, counted from 1; a `.json`
    list of the same objects will do.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    for row, value in read_rows(path):
        try:
            if isinstance(value, str):
                yield row, value
            elif "messages" in value:
                yield row, _chat(value, str(row))
            else:
                yield row, _task_sample(value, str(row))
        except ValueError as error:
            yield row, str(error)


def _check_keys(value: dict, known: tuple[str, ...], what: str) -> None:
    if unknown := [key for key in value if key not in known]:
        raise ValueError(f"{what} has no use for {', '.join(map(repr, unknown))}; its keys are {', '.join(known)}.")


def _medium(value: dict) -> Medium | None:
    given = [kind for kind in ("image", "video") if kind in value]
    if len(given) == 2:
        raise ValueError("The row has both an 'image' and a 'video'; it can have one.")
    if not given:
        return None
    (kind,) = given
    part = [key for key in _PART if value.get(key) is not None]
    if kind == "image" and part:
        raise ValueError(f"The row has {part[0]!r}, which only a video can have.")
    if "clip" in part and len(part) > 1:
        raise ValueError(f"The part of the video is given in frames ('clip') or in seconds ({part[1]!r}), not both.")
    clip = frames(value["clip"], "'clip'") if "clip" in part else None
    start, end = (read_time(value[key]) if key in part else None for key in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise ValueError(f"'end' is {end:g}, which is not after the start of the part, {start or 0:g}.")
    return Medium(kind, words(value[kind], f"{kind!r}"), clip=clip, start=start, end=end)


def _chat(value: dict, default_id: str) -> Chat:
    _check_keys(value, (*_COMMON, "image", "video", *_PART, "messages"), "A chat row")
    medium = _medium(value)
    if medium is None and any(value.get(key) is not None for key in _PART):
        raise ValueError("The row has a part of a video, but no 'video'.")
    turns = []
    for position, message in enumerate(listing(value["messages"], "'messages'"), start=1):
        message = mapping(message, f"Message {position}")
        _check_keys(message, ("role", "content"), f"Message {position}")
        role = message.get("role")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"The 'role' of message {position} must be system, user or assistant, not {role!r:.50}.")
        turns.append((role, words(message.get("content"), f"The 'content' of message {position}")))
    task = words(value["task"], "'task'") if "task" in value else "conversation"
    return Chat(_id(value, default_id), task, medium, tuple(turns))


def _id(value: dict, default: str) -> str:
    return name(value["id"], "'id'") if value.get("id") is not None else default


def _task_sample(value: dict, default_id: str) -> GroundingSample:
    task = member(value, "task", "The row")
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"'task' is {task!r:.50}; it must be one of {', '.join(TASKS)}.")
    kind, fields = TASKS[task].medium, _FIELDS[task]
    part = _PART if kind == "video" else ()
    _check_keys(value, (*_COMMON, kind, *part, *fields), f"A row of the task {task!r}")
    medium = _medium(value)
    if medium is None:
        raise ValueError(f"A row of the task {task!r} has no {kind!r}.")
    for key in fields:
        member(value, key, f"A row of the task {task!r}")
    boxes, phrases = _boxes(value)
    sample = GroundingSample(
        id=_id(value, default_id),
        kind=kind,
        path=medium.path,
        text=words(value["text"], "'text'") if "text" in fields else None,
        clip=medium.clip,
        start=medium.start,
        end=medium.end,
        span=read_span(listing(value["span"], "'span'")) if "span" in fields else None,
        boxes=boxes,
        phrases=phrases,
        task=task,
    )
    if "boxes" in fields and sample.span is not None:
        _check_times([time for time, _ in boxes], sample.span)
    return sample


def _boxes(value: dict) -> tuple[tuple, tuple[str, ...]]:
    if "box" in value:
        return ((None, _box(value["box"], "'box'")),), ()
    key = "boxes" if "boxes" in value else "objects"
    with_each, found = ("time" if key == "boxes" else "text"), []
    for position, item in enumerate(listing(value.get(key, []), f"{key!r}"), start=1):
        what = f"Item {position} of {key!r}"
        item = mapping(item, what)
        _check_keys(item, (with_each, "box"), what)
        box = _box(member(item, "box", what), f"'box' of item {position} of {key!r}")
        found.append((member(item, with_each, what), box))
    if key in value and not found:
        raise ValueError(f"{key!r} is empty.")
    if key == "boxes":
        return tuple((read_time(time), box) for time, box in found), ()
    phrases = tuple(words(text, f"'text' of an item of {key!r}").strip() for text, _ in found)
    return tuple((None, box) for _, box in found), phrases


def _box(value, what: str):
    x1, y1, x2, y2 = read_box(listing(value, what))
    if x1 == x2 or y1 == y2:
        raise ValueError(f"{what} {value!r} has no area.")
    return x1, y1, x2, y2


def _check_times(times: list[float], span: tuple[float, float]) -> None:
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError(f"The times of 'boxes' must go upwards; they are {times!r:.100}.")
    if times[0] < span[0] - SPAN_SLACK or times[-1] > span[1] + SPAN_SLACK:
        raise ValueError(f"'boxes' go from {times[0]:g} to {times[-1]:g} seconds, beyond the 'span' from {span[0]:g} to {span[1]:g}.")
