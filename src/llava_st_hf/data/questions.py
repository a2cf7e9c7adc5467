# SPDX-License-Identifier: Apache-2.0
"""Grounding annotations as questions and answers: what a task asks of a sample, and what a right answer looks like.

Questions have the wording of `tasks.TASKS`, answers the shape that `grounding.parse_answer` reads. Times and places are exact, in the
inline syntax.
"""

import re
from typing import Any

from ..model.messages_llava_st import box_text, span_text, time_text
from ..model.tasks_llava_st import TASKS, task_content
from ..model.video_sampling_llava_st import sample_frame_indices
from .inline import fraction_span_text, fraction_text
from .samples import Box, GroundingSample


# Frames that the model sees of a clip (DESIGN, section 1): a box is asked for at each of them.
SAMPLED_FRAMES = 100


def question_and_answer(sample: GroundingSample, task: str) -> tuple[str, str]:
    """
    What a task asks of a sample, and the right answer.

    Args:
        sample: of the medium that the task is about, with all that question and answer need.
        task: a key of `TASKS`. The question of "elc" gives the start of the span and the first of the boxes.

    Returns:
        `(question, answer)`, texts with inline coordinates.

    Raises:
        ValueError: naming the task and what the sample lacks.
    """
    _check_serves(sample, task)
    span, boxes = sample.span, sample.boxes
    has = {"text": sample.text, "span": span, "time": span[0] if span else None, "box": boxes[0][1] if boxes else None}
    given: dict[str, Any] = {name: has[name] for name in TASKS[task].needs}
    # Fractions pass through `task_content` as they are; which unit they have matters when they are written.
    content = task_content(task, **given)
    return "".join(_item_text(item, sample.unit) for item in content), _answer(sample, task)


def _check_serves(sample: GroundingSample, task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; it is one of {', '.join(TASKS)}.")
    if sample.kind != TASKS[task].medium:
        raise ValueError(f"The task {task!r} asks about {TASKS[task].medium}s, and this sample is of kind {sample.kind!r}.")
    has = {
        "text": sample.text is not None,
        "span": sample.span is not None,
        "a box": len(sample.boxes) == 1 and sample.boxes[0][0] is None,
        "boxes with times": bool(sample.boxes) and all(time is not None for time, _ in sample.boxes),
        "phrases with boxes": bool(sample.boxes) and len(sample.phrases) == len(sample.boxes),
    }
    wanted = {
        "rec": ("text", "a box"),
        "reg": ("text", "a box"),
        "dgc": ("phrases with boxes",),
        "tvg": ("text", "span"),
        "tr": ("text", "span"),
    }.get(task, ("text", "span", "boxes with times"))
    if missing := [name for name in wanted if not has[name]]:
        raise ValueError(f"The task {task!r} needs {' and '.join(missing)}, which this sample has not.")
    if sample.is_question and "text" not in TASKS[task].needs:
        raise ValueError(f"The task {task!r} asks for a description, and this sample has only a question: {sample.text!r:.100}.")


def _time(time: float, unit: str) -> str:
    return fraction_text("t", time) if unit == "fraction" else time_text(time)


def _span(span: tuple[float, float], unit: str) -> str:
    return fraction_span_text(*span) if unit == "fraction" else span_text(*span)


def _item_text(item: dict, unit: str) -> str:
    """One item of `task_content` as inline text."""
    if item["type"] == "span":
        return _span((item["start"], item["end"]), unit)
    if item["type"] == "time":
        return _time(item["time"], unit)
    return box_text(item["box"]) if item["type"] == "box" else item["text"]


def _answer(sample: GroundingSample, task: str) -> str:
    if task == "rec":
        return box_text(sample.boxes[0][1])
    if task == "dgc":
        return _grounded_caption(sample)
    assert sample.text is not None  # as `_check_serves` has seen to
    if task in ("reg", "tr"):
        return sample.text
    assert sample.span is not None
    if task == "tvg":
        return _span(sample.span, sample.unit)
    moments = "".join(f"{_time(time, sample.unit)}:{box_text(box)}" for time, box in sampled_moments(sample))
    # As the released model answers, so that one trained further on has nothing to unlearn.
    tubelet = f"Object bounding box: {moments}."
    if task == "svg":
        return tubelet
    if task == "stvg":
        return f"During {_span(sample.span, sample.unit)}. {tubelet}"
    caption = sample.text.strip().rstrip(".")
    return f"Ends in {_time(sample.span[1], sample.unit)}, {caption}. {tubelet}"


def _grounded_caption(sample: GroundingSample) -> str:
    """The pieces of a caption with a box after each, closed by a full stop."""
    caption = ""
    for phrase, (_, box) in zip(sample.phrases, sample.boxes, strict=True):
        blank = " " if caption and not re.match(r"[,.;:!?]", phrase) else ""
        caption += f"{blank}{phrase} {box_text(box)}"
    return f"{caption}."


def sampled_moments(sample: GroundingSample) -> list[tuple[float, Box]]:
    """
    The boxes that an answer gives: all of them, or, where every frame was annotated, those at the frames that the model sees.

    An event between two of those frames is answered by the box in its middle.

    Args:
        sample: with times in fractions of its clip if it has `num_frames`.
    """
    moments = [(time, box) for time, box in sample.boxes if time is not None]
    if sample.num_frames is None:
        return moments
    last = sample.num_frames - 1
    seen = set(sample_frame_indices(0, last, SAMPLED_FRAMES))
    return [(time, box) for time, box in moments if round(time * last) in seen] or [moments[len(moments) // 2]]
