# SPDX-License-Identifier: Apache-2.0
"""The ST-Align benchmark: STVG, SVG and ELC, three files of one format.

A file is `[{"video_path", "conversations": [{"value"}, {"value"}], "meta"}]`, the first value the question, the second the answer.
`meta` has `width`, `height`, `split` `[first, last]` (the clip's frames), `time_token` `{"<s>": frame, "<e>": frame}` and
`spatial_token` `{"<bbox>": [x, y, w, h], "<bboxes>": {frame: [x, y, w, h]}}` in pixels. The texts contain these tokens:

- `From <s> to <e>` in the question of SVG, which so contains the span;
- `Starts in <s>` and `<bbox>` in that of ELC;
- none of them in that of STVG. A question with the tokens of another task than that of its file is a problem of its row.

The answer is read in ELC only, whose caption is between `Ends in <e>,` and `Object bounding box:`.

Based on measurements of the original LLaVA-ST program (its notation of times and boxes in a question), and on its published loader for
the rest. That loader rounds positions to three digits, appends its last sentence to the question even without a blank between them,
draws the text before a span without a seed, and stops after 2,000 rows; here positions are exact, a blank is inserted, seed and sample
determine the text, and all rows are read.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ..data.inline import fraction_text
from ..data.json_rows import read_rows
from ..data.paths import join_path
from ..data.samples import Box, GroundingSample, XywhBox, clip_box
from ..data.schemas import Count, Frames, Number, Schema, Text, validate
from ..model.tasks_llava_st import ANSWER_INSTRUCTIONS, TIME_PREFIXES
from .questions import as_questions, choose_template
from .rows import GroundingResult, Question


_MARK = re.compile(r"\A\s*<video>\n?|\n?<video>\s*\Z")
_TOKEN = re.compile(r"<(?:s|e|bbox|bboxes)>")
_ENDS_IN = re.compile(r"\A\s*Ends in\s*\{?(?:<s>[\s,]*)?<e>\}?\s*,?", re.IGNORECASE)
_BOXES = re.compile(r"Object bounding box(?:es)?\s*:?\s*<bboxes>.*\Z", re.IGNORECASE | re.DOTALL)


def _check_frame_keys(boxes: dict[str, Any]) -> dict[str, Any]:
    for frame in boxes:
        if not re.fullmatch(r"\d{1,9}", frame, re.ASCII):
            raise ValueError(f"must have frame numbers as keys, not {frame!r:.50}.")
    return boxes


class _Turn(Schema):
    value: Text


class _TimeTokens(Schema):
    start: Number = Field(alias="<s>")
    end: Number = Field(alias="<e>")


class _Boxes(Schema):
    boxes: Annotated[dict[str, XywhBox], AfterValidator(_check_frame_keys)] = Field(alias="<bboxes>")


class _BoxesWithFirst(_Boxes):
    box: XywhBox = Field(alias="<bbox>")


class _Meta(Schema):
    width: Count
    height: Count
    split: Frames
    time_token: _TimeTokens
    spatial_token: _Boxes


class _MetaWithFirstBox(_Meta):
    spatial_token: _BoxesWithFirst


class _Row(Schema):
    video_path: Text
    conversations: Annotated[list[_Turn], Field(min_length=2, max_length=2)]
    meta: _Meta


class _ElcRow(_Row):
    meta: _MetaWithFirstBox


def _questions(annotations: str, media: str, seed: int, task: str) -> Iterator[tuple[int, Question | str]]:
    """
    Yields the samples of one file. Their boxes become the ground-truth tubelet at the sampled frames in
    `ground_truth.to_clip_coordinates`.

    Args:
        annotations: path of the file, `.json` or `.jsonl`.
        media: folder of the videos.
        seed: of the text before a span.
        task: "stvg", "svg" or "elc".

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1 and are part of the ids, since samples have no ids.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    return as_questions(read_rows(annotations), lambda row, sample: _question(sample, row, media, seed, task))


Loader = Callable[[str, str, int], Iterator[tuple[int, Question | str]]]
stvg_questions: Loader = partial(_questions, task="stvg")
svg_questions: Loader = partial(_questions, task="svg")
elc_questions: Loader = partial(_questions, task="elc")


def _question(sample: dict, row: int, media: str, seed: int, task: str) -> Question:
    values: _Row = validate(_ElcRow if task == "elc" else _Row, sample)
    path = join_path(media, values.video_path)
    id = f"{PurePosixPath(values.video_path).stem}-{row}"
    asked, answered = _MARK.sub("", values.conversations[0].value), values.conversations[1].value
    if (fitting := _task_of(asked)) != task:
        raise ValueError(f"The question is one of {fitting!r}, but the benchmark is of {task!r}: {asked[:100]!r}.")
    meta = values.meta
    (first, last), size = meta.split, (meta.width, meta.height)
    length = max(last - first, 1)
    start, end = _span(meta.time_token, first, last)
    filled, given = {"<s>": fraction_text("t", start), "<e>": fraction_text("t", end)}, GroundingResult()
    if task == "svg":
        given = GroundingResult(span=(start, end))
    if isinstance(meta, _MetaWithFirstBox):
        # Boxes come from trackers and may extend beyond the image; they are clipped.
        box = clip_box(meta.spatial_token.box, *size, "'<bbox>'", slack=float("inf"))
        given = GroundingResult(span=(start, start), box=box)
        filled["<bbox>"] = _box_text(box, *size)
    boxes = {
        int(frame): clip_box(box, *size, f"The box of frame {frame}", slack=float("inf")) for frame, box in meta.spatial_token.boxes.items()
    }
    in_clip = tuple(((frame - first) / length, boxes[frame]) for frame in sorted(boxes) if first <= frame <= last)
    if not in_clip:
        raise ValueError(f"'<bboxes>' has no box within the clip, frames {first} to {last}.")
    return Question(
        id=id,
        task=task,
        path=path,
        kind="video",
        prompt=f"{_filled(asked, filled, choose_template(TIME_PREFIXES, seed, id))}{ANSWER_INSTRUCTIONS[task]}",
        truth=GroundingResult(
            span=None if task == "svg" else (start, end),
            caption=_caption(answered) if task == "elc" else None,
        ),
        clip=(first, last),
        given=given,
        size=size,
        frames=(first, last),
        sample=GroundingSample(
            id=id,
            kind="video",
            path=values.video_path,
            clip=(first, last),
            span=(start, end),
            unit="fraction",
            boxes=in_clip,
            width=meta.width,
            height=meta.height,
            num_frames=last - first + 1,
        ),
    )


def _task_of(asked: str) -> str:
    """The task whose questions have the tokens of this one."""
    found = set(_TOKEN.findall(asked))
    tasks = {frozenset(): "stvg", frozenset(("<s>", "<e>")): "svg", frozenset(("<s>", "<bbox>")): "elc"}
    if (task := tasks.get(frozenset(found))) is None:
        raise ValueError(f"The question contains {', '.join(sorted(found))}, which is not valid for stvg, svg or elc: {asked[:100]!r}.")
    return task


def _span(tokens: _TimeTokens, first: int, last: int) -> tuple[float, float]:
    """Start and end of the event, in frames, as fractions of the clip."""
    if not first <= tokens.start <= tokens.end <= last:
        raise ValueError(f"The event from frame {tokens.start:g} to {tokens.end:g} is not within the clip, frames {first} to {last}.")
    length = max(last - first, 1)
    return (tokens.start - first) / length, (tokens.end - first) / length


def _box_text(box: Box, width: int, height: int) -> str:
    x1, y1, x2, y2 = box
    corners = (("w", x1 / width), ("h", y1 / height), ("w", x2 / width), ("h", y2 / height))
    return "".join(fraction_text(letter, position) for letter, position in corners)


def _filled(asked: str, tokens: dict[str, str], prefix: str) -> str:
    """The question with its tokens filled in, as the original loader writes times and boxes, which may double blanks around them."""
    asked = asked.replace("From <s> to <e>", f"{prefix} {{<s>,<e>}}")
    asked = asked.replace("{<s>,<e>}", " {<s><e>} ").replace("Starts in <s>", " Starts in <s> ").replace("<bbox>", " [<bbox>]")
    asked = _TOKEN.sub(lambda token: tokens[token[0]], asked)
    return asked if asked[-1].isspace() else f"{asked} "


def _caption(answered: str) -> str:
    caption = _BOXES.sub("", _ENDS_IN.sub("", answered)).strip().rstrip(".").rstrip()
    if not caption or _TOKEN.search(caption):
        raise ValueError(f"The answer must be 'Ends in <e>, caption. Object bounding box: <bboxes>', not {answered[:100]!r}.")
    return caption
