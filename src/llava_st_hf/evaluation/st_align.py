# SPDX-License-Identifier: Apache-2.0
"""The ST-Align benchmark: STVG, SVG and ELC, three files of one format.

A file is `[{"video_path", "conversations": [{"value"}, {"value"}], "meta"}]`, the first value the question, the second the answer.
`meta` has `width`, `height`, `split` `[first, last]` (the clip's frames), `time_token` `{"<s>": frame, "<e>": frame}` and
`spatial_token` `{"<bbox>": [x, y, w, h], "<bboxes>": {frame: [x, y, w, h]}}` in pixels. The tokens stand in the texts:

- `From <s> to <e>` in the question of SVG, which so gives the span away;
- `Starts in <s>` and `<bbox>` in that of ELC;
- none of them in that of STVG. A question that fits another task than its file's is a problem of its row.

The answer is looked at in ELC alone, whose caption stands between `Ends in <e>,` and `Object bounding box:`.

Relied on: the page of facts about the released program (its notation of times and boxes in a question), and its loader as published
for what that page leaves open. The released loader rounds positions to three digits, glues its last sentence to the question even
without a blank between, draws the words before a span without a seed, and stops after 2,000 rows; here positions are exact, a blank is
put in, seed and sample fix the words, and all rows are read. As there, the true tubelet has only boxes at the 100 sampled frames.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath

from ..data.checks import frames, listing, mapping, member, number, whole, words
from ..data.inline import fraction_text
from ..data.json_rows import read_rows
from ..data.paths import join_path
from ..data.samples import Box, within, xywh_to_xyxy
from .questions import as_questions, chosen
from .rows import GroundingResult, Question
from .seen_frames import at_sampled_frames


TIME_PREFIXES = (
    "During the span of",
    "In the time range",
    "During the period",
    "Within the time frame of",
    "In the time period",
    "During",
    "Between",
    "At",
)
_EACH_TIMESTAMP = "the spatial bounding box corresponding to each timestamp in the time period."
SUFFIXES = {
    "stvg": f"Please firstly give the timestamps, and then give {_EACH_TIMESTAMP}",
    "svg": f"Please give {_EACH_TIMESTAMP}",
    "elc": f"Please firstly give the end timestamp, then give the event associated with the object/subject, finally give {_EACH_TIMESTAMP}",
}
_MARK = re.compile(r"\A\s*<video>\n?|\n?<video>\s*\Z")
_TOKEN = re.compile(r"<(?:s|e|bbox|bboxes)>")
_FRAME = re.compile(r"\d{1,9}")
_ENDS_IN = re.compile(r"\A\s*Ends in\s*\{?(?:<s>[\s,]*)?<e>\}?\s*,?", re.IGNORECASE)
_BOXES = re.compile(r"Object bounding box(?:es)?\s*:?\s*<bboxes>.*\Z", re.IGNORECASE | re.DOTALL)


def _questions(annotations: str, media: str, seed: int, task: str) -> Iterator[tuple[int, Question | str]]:
    """
    The samples of one file.

    Args:
        annotations: path of the file, `.json` or `.jsonl`.
        media: folder of the videos.
        seed: of the words before a span.
        task: "stvg", "svg" or "elc".

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1 and are part of the ids, since samples have no names.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    return as_questions(read_rows(annotations), lambda row, sample: _question(sample, row, media, seed, task))


Loader = Callable[[str, str, int], Iterator[tuple[int, Question | str]]]
stvg_questions: Loader = partial(_questions, task="stvg")
svg_questions: Loader = partial(_questions, task="svg")
elc_questions: Loader = partial(_questions, task="elc")


def _question(sample: dict, row: int, media: str, seed: int, task: str) -> Question:
    path = join_path(media, member(sample, "video_path", "The row"))
    id = f"{PurePosixPath(sample['video_path']).stem}-{row}"
    asked, answered = _texts(sample)
    if (fitting := _task_of(asked)) != task:
        raise ValueError(f"The question is one of {fitting!r}, and the benchmark of {task!r}: {asked[:100]!r}.")
    meta = mapping(member(sample, "meta", "The row"), "'meta'")
    width, height = (whole(member(meta, side, "'meta'"), f"{side!r}", minimum=1) for side in ("width", "height"))
    first, last = frames(member(meta, "split", "'meta'"), "'meta.split'")
    start, end = _span(meta, first, last)
    tokens = mapping(member(meta, "spatial_token", "'meta'"), "'spatial_token'")
    boxes = _boxes(member(tokens, "<bboxes>", "'spatial_token'"), width, height)
    clipped = {frame: box for frame, box in boxes.items() if first <= frame <= last}
    if not clipped:
        raise ValueError(f"'<bboxes>' has no box within the clip, frames {first} to {last}.")
    filled, given = {"<s>": fraction_text("t", start), "<e>": fraction_text("t", end)}, GroundingResult()
    if task == "svg":
        given = GroundingResult(span=(start, end))
    if task == "elc":
        box = _box(member(tokens, "<bbox>", "'spatial_token'"), width, height, "'<bbox>'")
        given = GroundingResult(span=(start, start), box=box)
        filled["<bbox>"] = _box_text(box, width, height)
    tubelet = at_sampled_frames(clipped, first, last)
    return Question(
        id=id,
        task=task,
        path=path,
        kind="video",
        prompt=f"{_filled(asked, filled, chosen(TIME_PREFIXES, seed, id))}{SUFFIXES[task]}",
        truth=GroundingResult(
            span=None if task == "svg" else (start, end),
            tubelet=tubelet,
            caption=_caption(answered) if task == "elc" else None,
        ),
        clip=(first, last),
        given=given,
        size=(width, height),
        frames=(first, last),
    )


def _texts(sample: dict) -> tuple[str, str]:
    turns = listing(sample.get("conversations"), "'conversations'")
    if len(turns) != 2:
        raise ValueError(f"'conversations' has {len(turns)} turns; a question and its answer are needed.")
    asked, answered = (words(mapping(turn, "A turn").get("value"), "The 'value' of a turn") for turn in turns)
    return _MARK.sub("", asked), answered


def _task_of(asked: str) -> str:
    """The task whose question has the tokens that this one has."""
    found = set(_TOKEN.findall(asked))
    tasks = {frozenset(): "stvg", frozenset(("<s>", "<e>")): "svg", frozenset(("<s>", "<bbox>")): "elc"}
    if (task := tasks.get(frozenset(found))) is None:
        raise ValueError(f"The question holds {', '.join(sorted(found))}, which fits none of stvg, svg and elc: {asked[:100]!r}.")
    return task


def _span(meta: dict, first: int, last: int) -> tuple[float, float]:
    """Fractions of the clip between its frames."""
    tokens = mapping(member(meta, "time_token", "'meta'"), "'time_token'")
    start, end = (number(member(tokens, token, "'time_token'"), f"{token!r}") for token in ("<s>", "<e>"))
    if not first <= start <= end <= last:
        raise ValueError(f"The event from frame {start:g} to {end:g} is no part of the clip, frames {first} to {last}.")
    length = max(last - first, 1)
    return (start - first) / length, (end - first) / length


def _boxes(values, width: int, height: int) -> dict[int, Box]:
    boxes = {}
    for frame, box in mapping(values, "'<bboxes>'").items():
        if not _FRAME.fullmatch(frame):
            raise ValueError(f"A key of '<bboxes>' must be a frame, not {frame!r:.50}.")
        boxes[int(frame)] = _box(box, width, height, f"The box of frame {frame}")
    return boxes


def _box(value, width: int, height: int, what: str) -> Box:
    # Boxes come from trackers and may reach over the picture's edge, where they are cut.
    return within(xywh_to_xyxy(value, what), width, height, what, slack=float("inf"))


def _box_text(box: Box, width: int, height: int) -> str:
    x1, y1, x2, y2 = box
    corners = (("w", x1 / width), ("h", y1 / height), ("w", x2 / width), ("h", y2 / height))
    return "".join(fraction_text(letter, position) for letter, position in corners)


def _filled(asked: str, tokens: dict[str, str], prefix: str) -> str:
    """The question with its tokens filled in, as the released loader writes times and boxes: blanks around them may double."""
    asked = asked.replace("From <s> to <e>", f"{prefix} {{<s>,<e>}}")
    asked = asked.replace("{<s>,<e>}", " {<s><e>} ").replace("Starts in <s>", " Starts in <s> ").replace("<bbox>", " [<bbox>]")
    asked = _TOKEN.sub(lambda token: tokens[token[0]], asked)
    return asked if asked[-1].isspace() else f"{asked} "


def _caption(answered: str) -> str:
    caption = _BOXES.sub("", _ENDS_IN.sub("", answered)).strip().rstrip(".").rstrip()
    if not caption or _TOKEN.search(caption):
        raise ValueError(f"The answer is no 'Ends in <e>, caption. Object bounding box: <bboxes>': {answered[:100]!r}.")
    return caption
