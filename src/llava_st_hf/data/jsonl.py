# SPDX-License-Identifier: Apache-2.0
"""This package's own annotation format: one object per line, in seconds and pixels. docs/data.md has an example of each kind.

A *task* row is an annotation for one task:

| key | | of the tasks |
|---|---|---|
| `image` or `video` | path in the data folder | all |
| `task` | rec, reg, dgc, tvg, tr, stvg, svg or elc | all |
| `text` | expression, phrase, sentence or caption | all but dgc |
| `box` | `[x1, y1, x2, y2]`, pixels | rec, reg |
| `objects` | `[{"text", "box"}]`: consecutive pieces of the caption | dgc |
| `span` | `[start, end]`, seconds from the start of the file | tvg, tr, stvg, svg, elc |
| `boxes` | `[{"time", "box"}]`, seconds and pixels, in order and within the span | stvg, svg, elc |
| `clip`, or `start` and `end` | the clip of the video, in frames or seconds | optional, videos |
| `id` | | optional |

The task decides which of these the question contains and which the answer. A *chat* row has `messages`, `[{"role", "content"}]` with
coordinates inline, instead of an annotation; its `task` is any name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ..model.messages_llava_st import read_box, read_span, read_time
from ..model.tasks_llava_st import TASKS
from .json_rows import read_rows
from .rows import Medium
from .samples import Box, GroundingSample
from .schemas import ClosedSchema, Frames, Id, Number, Text, shown, validate


# Seconds by which a box may lie outside its span, since both are often rounded.
SPAN_SLACK = 0.1


def _box_with_area(values: Box) -> Box:
    x1, y1, x2, y2 = read_box(values)
    if x1 == x2 or y1 == y2:
        raise ValueError(f"The box {list(values)} has no area.")
    return x1, y1, x2, y2


_Seconds = Annotated[Number, AfterValidator(read_time)]
_Span = Annotated[tuple[Number, Number], Field(strict=False), AfterValidator(read_span)]
_Box = Annotated[tuple[Number, Number, Number, Number], Field(strict=False), AfterValidator(_box_with_area)]


class _Object(ClosedSchema):
    text: Annotated[Text, AfterValidator(str.strip)]
    box: _Box


class _TimedBox(ClosedSchema):
    time: _Seconds
    box: _Box


class _ClipFields(ClosedSchema):
    clip: Frames | None = None
    start: _Seconds | None = None
    end: _Seconds | None = None

    @model_validator(mode="after")
    def _check_clip(self) -> "_ClipFields":
        if self.clip is not None and (self.start is not None or self.end is not None):
            raise ValueError("The clip is given both in frames ('clip') and in seconds ('start', 'end'): give one of them.")
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError(f"'end' is {self.end:g}, which is not after the start of the clip, {self.start or 0:g}.")
        return self


class _ImageRow(ClosedSchema):
    id: Id | None = None
    task: str
    image: Text


class _VideoRow(_ClipFields):
    id: Id | None = None
    task: str
    video: Text


class _BoxRow(_ImageRow):
    text: Text
    box: _Box


class _ObjectsRow(_ImageRow):
    objects: Annotated[list[_Object], Field(min_length=1)]


class _SpanRow(_VideoRow):
    text: Text
    span: _Span


class _TubeletRow(_SpanRow):
    boxes: Annotated[list[_TimedBox], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_times(self) -> "_TubeletRow":
        times = [item.time for item in self.boxes]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError(f"The times of 'boxes' must be strictly ascending, not {shown(times)}.")
        if times[0] < self.span[0] - SPAN_SLACK or times[-1] > self.span[1] + SPAN_SLACK:
            raise ValueError(
                f"'boxes' are at {times[0]:g} to {times[-1]:g} seconds, beyond the 'span' from {self.span[0]:g} to {self.span[1]:g}."
            )
        return self


_SCHEMAS: dict[str, type[_ImageRow] | type[_VideoRow]] = {
    "rec": _BoxRow,
    "reg": _BoxRow,
    "dgc": _ObjectsRow,
    "tvg": _SpanRow,
    "tr": _SpanRow,
    "stvg": _TubeletRow,
    "svg": _TubeletRow,
    "elc": _TubeletRow,
}


class _Message(ClosedSchema):
    role: Literal["system", "user", "assistant"]
    content: Text


class _ChatRow(_ClipFields):
    id: Id | None = None
    task: Text = "conversation"
    image: Text | None = None
    video: Text | None = None
    messages: list[_Message]

    @model_validator(mode="after")
    def _check_media(self) -> "_ChatRow":
        if self.image is not None and self.video is not None:
            raise ValueError("The row has both an 'image' and a 'video'; only one is allowed.")
        if self.video is None and (self.clip, self.start, self.end) != (None, None, None):
            raise ValueError("'clip', 'start' and 'end' need a 'video', which the row does not have.")
        return self


@dataclass(frozen=True)
class Chat:
    """A conversation: `medium` is its image or video with the path of the annotation, `turns` are `(role, text)`."""

    id: str
    task: str
    medium: Medium | None
    turns: tuple[tuple[str, str], ...]


def read_jsonl(path: str) -> Iterator[tuple[int, GroundingSample | Chat | str]]:
    """
    Yields `(row, sample)` for a task row, `(row, chat)` for a chat row, or `(row, problem)`. Rows are lines, counted from 1; a `.json`
    list of the same objects is read as well.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    for row, value in read_rows(path):
        try:
            if isinstance(value, str):
                yield row, value
            elif "messages" in value:
                yield row, _chat(validate(_ChatRow, value), str(row))
            else:
                yield row, _task_sample(value, str(row))
        except ValueError as error:
            yield row, str(error)


def _chat(row: _ChatRow, default_id: str) -> Chat:
    medium = None
    if row.image is not None:
        medium = Medium("image", row.image)
    elif row.video is not None:
        medium = Medium("video", row.video, clip=row.clip, start=row.start, end=row.end)
    return Chat(row.id or default_id, row.task, medium, tuple((message.role, message.content) for message in row.messages))


def _task_sample(value: dict, default_id: str) -> GroundingSample:
    task = value.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"'task' must be one of {', '.join(TASKS)}, not {shown(task)}.")
    row = validate(_SCHEMAS[task], value, f"The row of the task {task!r}")
    id = row.id or default_id
    if isinstance(row, _BoxRow):
        return GroundingSample(id, "image", row.image, text=row.text, boxes=((None, row.box),), task=task)
    if isinstance(row, _ObjectsRow):
        boxes = tuple((None, item.box) for item in row.objects)
        return GroundingSample(id, "image", row.image, boxes=boxes, phrases=tuple(item.text for item in row.objects), task=task)
    assert isinstance(row, _SpanRow)
    return GroundingSample(
        id=id,
        kind="video",
        path=row.video,
        text=row.text,
        clip=row.clip,
        start=row.start,
        end=row.end,
        span=row.span,
        boxes=tuple((item.time, item.box) for item in row.boxes) if isinstance(row, _TubeletRow) else (),
        task=task,
    )
