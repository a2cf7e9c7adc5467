# SPDX-License-Identifier: Apache-2.0
"""Questions and answers of grounding annotations: what each task asks of a sample, and the right answer.

Questions use the prompt templates of `tasks.TASKS`; answers have the form that `grounding.parse_answer` reads. Times and boxes are
exact, in the inline syntax.
"""

import re
from typing import Any

from ..model.messages_llava_st import box_text, span_text, time_text
from ..model.tasks_llava_st import TASKS, task_content
from .ground_truth import boxes_at_sampled_frames
from .inline import fraction_span_text, fraction_text
from .samples import Box, GroundingSample


# Tasks whose answers have a box for each sampled frame of the event.
TUBELET_TASKS = ("stvg", "svg", "elc")


def question_and_answer(sample: GroundingSample, task: str, num_frames: int | None = None) -> tuple[str, str]:
    """
    The question of a task about a sample, and the right answer.

    Args:
        sample: with the fields that the question and the answer need.
        task: a key of `TASKS`. The question of "elc" contains the start of the span and the first of the boxes.
        num_frames: see `sampled_moments`; needed for answers with boxes of a dense annotation.

    Returns:
        `(question, answer)`, texts with inline coordinates.

    Raises:
        ValueError: naming the task and what the sample lacks, or a missing `num_frames`.
    """
    return question_text(sample, task), _answer(sample, task, num_frames)


def question_text(sample: GroundingSample, task: str) -> str:
    """The question of `question_and_answer`, which does not depend on the number of sampled frames."""
    _check_sample_has_fields(sample, task)
    span, boxes = sample.span, sample.boxes
    has = {"text": sample.text, "span": span, "time": span[0] if span else None, "box": boxes[0][1] if boxes else None}
    fields: dict[str, Any] = {name: has[name] for name in TASKS[task].needs}
    # `task_content` passes fractions through unchanged; the unit only matters for how they are written.
    content = task_content(task, **fields)
    return "".join(_item_text(item, sample.unit) for item in content)


def _check_sample_has_fields(sample: GroundingSample, task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task={task!r} is not a valid task; it must be one of {', '.join(TASKS)}.")
    if sample.kind != TASKS[task].medium:
        raise ValueError(f"The task {task!r} is about {TASKS[task].medium}s, but the kind of this sample is {sample.kind!r}.")
    has = {
        "text": sample.text is not None,
        "span": sample.span is not None,
        "a box": len(sample.boxes) == 1 and sample.boxes[0][0] is None,
        "boxes with times": bool(sample.boxes) and all(time is not None for time, _ in sample.boxes),
        "phrases with boxes": bool(sample.boxes) and len(sample.phrases) == len(sample.boxes),
    }
    needed = {
        "rec": ("text", "a box"),
        "reg": ("text", "a box"),
        "dgc": ("phrases with boxes",),
        "tvg": ("text", "span"),
        "tr": ("text", "span"),
    }.get(task, ("text", "span", "boxes with times"))
    if missing := [name for name in needed if not has[name]]:
        raise ValueError(f"The task {task!r} needs {' and '.join(missing)}, which this sample does not have.")
    if sample.is_question and "text" not in TASKS[task].needs:
        raise ValueError(
            f"The answer of the task {task!r} is a description, but the text of this sample is a question: {sample.text!r:.100}."
        )


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


def _answer(sample: GroundingSample, task: str, num_frames: int | None) -> str:
    if task == "rec":
        return box_text(sample.boxes[0][1])
    if task == "dgc":
        return _grounded_caption(sample)
    assert sample.text is not None  # checked by `_check_sample_has_fields`, as the span below
    if task in ("reg", "tr"):
        return sample.text
    assert sample.span is not None
    if task == "tvg":
        return _span(sample.span, sample.unit)
    moments = "".join(f"{_time(time, sample.unit)}:{box_text(box)}" for time, box in sampled_moments(sample, num_frames))
    # The form of the released model's answers, so that fine-tuning it does not change the form.
    tubelet = f"Object bounding box: {moments}."
    if task == "svg":
        return tubelet
    if task == "stvg":
        return f"During {_span(sample.span, sample.unit)}. {tubelet}"
    caption = sample.text.strip().rstrip(".")
    return f"Ends in {_time(sample.span[1], sample.unit)}, {caption}. {tubelet}"


def _grounded_caption(sample: GroundingSample) -> str:
    """The phrases of a caption, each followed by its box, and a full stop."""
    caption = ""
    for phrase, (_, box) in zip(sample.phrases, sample.boxes, strict=True):
        blank = " " if caption and not re.match(r"[,.;:!?]", phrase) else ""
        caption += f"{blank}{phrase} {box_text(box)}"
    return f"{caption}."


def sampled_moments(sample: GroundingSample, num_frames: int | None) -> list[tuple[float, Box]]:
    """
    The boxes of an answer: one for each sampled frame of the event if the annotation is dense, else those of the annotation.

    Args:
        sample: with boxes that have times; a dense one (with `num_frames`) in fractions of its clip.
        num_frames: frames that the model samples of the clip, `num_frames` of its video processor; only needed for a dense annotation.

    Returns:
        `[(time, box)]` in time order, in the unit of the sample and in pixels. See `boxes_at_sampled_frames` for dense annotations.

    Raises:
        ValueError: where `num_frames` is needed and None, or is not a valid number of frames.
    """
    if sample.num_frames is None:
        return [(time, box) for time, box in sample.boxes if time is not None]
    if num_frames is None:
        raise ValueError(
            "num_frames is missing: the sample has a box for every frame of its clip, and the answer has one for each frame that the model "
            "samples. Pass num_frames=processor.video_processor.num_frames."
        )
    last = max(sample.num_frames - 1, 1)
    return [(frame / last, box) for frame, box in boxes_at_sampled_frames(sample, num_frames)]
