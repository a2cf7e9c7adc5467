# SPDX-License-Identifier: Apache-2.0
"""The eight grounding tasks: what each takes, and the prompt templates that the released model was trained on.

| task | name | prompt contains | answer |
|---|---|---|---|
| rec | referring expression comprehension | image, expression | bounding box |
| reg | referring expression generation | image, bounding box | phrase |
| dgc | dense grounded captioning | image | caption with a bounding box after each object |
| tvg | temporal video grounding | video, sentence | time span |
| tr | temporal referring | video, time span | description |
| stvg | spatio-temporal video grounding | video, sentence | time span, and a bounding box for each sampled frame in it |
| svg | spatial video grounding | video, time span, sentence | a bounding box for each sampled frame of the span |
| elc | event localization and captioning | video, time, bounding box | end time, caption, and a bounding box for each sampled frame |
"""

from collections.abc import Collection
from dataclasses import dataclass

from .messages_llava_st import read_span


@dataclass(frozen=True)
class Task:
    """A task: `medium` is "image" or "video", `needs` are the arguments that `prompt`, a template, is filled with."""

    medium: str
    needs: tuple[str, ...]
    prompt: str


_EACH_TIMESTAMP = "the spatial bounding box corresponding to each timestamp in the time period."
#: Last sentence of the prompts of tasks with a box for each sampled frame: the form of the answer.
ANSWER_INSTRUCTIONS = {
    "stvg": f"Please firstly give the timestamps, and then give {_EACH_TIMESTAMP}",
    "svg": f"Please give {_EACH_TIMESTAMP}",
    "elc": f"Please firstly give the end timestamp, then give the event associated with the object/subject, finally give {_EACH_TIMESTAMP}",
}
#: Prompt templates of "rec" in the training data of the released model. The last is that of `TASKS`.
REC_PROMPTS = (
    "Where can I find {text} in this image?",
    "What part of this image contains {text}?",
    "Where does {text} appear in this image?",
    "Where is {text} situated within this image?",
)
#: Texts before the span of an "svg" prompt in the training data of the released model. `TASKS` uses "During".
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
TASKS = {
    "rec": Task("image", ("text",), REC_PROMPTS[-1]),
    "reg": Task("image", ("box",), "What object can be observed within the region {box} in the image?"),
    "dgc": Task("image", (), "Describe the image in detail, and give the bounding box of each object mentioned."),
    "tvg": Task(
        "video",
        ("text",),
        "Give you a textual query: '{text}'. When does the described content occur in the video? "
        "Please return the start and end timestamps.",
    ),
    "tr": Task("video", ("span",), "Describe what took place during the period {span} in the video."),
    "stvg": Task("video", ("text",), f"{{text}} {ANSWER_INSTRUCTIONS['stvg']}"),
    "svg": Task("video", ("span", "text"), f"During {{span}}, {{text}} {ANSWER_INSTRUCTIONS['svg']}"),
    "elc": Task(
        "video",
        ("time", "box"),
        "Starts in {time}, what happened about the subject/object within the specified region {box}? Where is the corresponding "
        f"subject/object located? {ANSWER_INSTRUCTIONS['elc']}",
    ),
}


def check_task_arguments(task: str, given: Collection[str], prefix: str = "") -> None:
    """
    Checks that a task has the arguments of its prompt template, and no others.

    Args:
        task: one of the keys of `TASKS`.
        given: names of the arguments that have a value, among "text", "span", "time" and "box". A span counts as the time of "elc".
        prefix: of the names in error messages, "--" for options of the command line.

    Raises:
        ValueError: naming the task and the arguments that are missing, or that its prompt does not use.
    """
    label = f"{prefix}task {task}" if prefix else f"task={task!r}"
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"{label} is not a valid task; it must be one of {', '.join(TASKS)}.")
    needs = TASKS[task].needs
    if "time" in needs and "time" not in given and "span" in given:
        given = {*given, "time"} - {"span"}
    missing = [prefix + name for name in needs if name not in given]
    unused = [prefix + name for name in ("text", "span", "time", "box") if name in given and name not in needs]
    if missing or unused:
        problems = [f"{' and '.join(missing)} is missing"] * bool(missing) + [f"{' and '.join(unused)} is not used"] * bool(unused)
        takes = " and ".join(prefix + name for name in needs) or "only the image or video"
        raise ValueError(f"{label} takes {takes}: {', and '.join(problems)}.")


def task_content(task: str, text: str | None = None, span=None, time=None, box=None) -> list[dict]:
    """
    Fills the prompt template of a task.

    Args:
        task: one of the keys of `TASKS`.
        text: an expression or a sentence.
        span: `(start, end)` in seconds, as `read_span` takes it.
        time: start of the event of "elc", in seconds; a `span` may be given instead, whose start is used.
        box: `(x1, y1, x2, y2)` in pixels, as `read_box` takes it.

    Returns:
        Content items of a chat message, of the types "text", "span", "time" and "box".

    Raises:
        ValueError: naming the task and the arguments that are missing, or that its prompt does not use.
    """
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise ValueError(f"text={text!r} must be a string that is not blank.")
    given = {"text": text, "span": span, "time": time, "box": box}
    check_task_arguments(task, {name for name, value in given.items() if value is not None})
    if span is not None:
        span = read_span(span)
        if "time" in TASKS[task].needs and time is None:
            time = span[0]
    items = {
        "span": lambda: {"type": "span", "start": span[0], "end": span[1]},
        "time": lambda: {"type": "time", "time": time},
        "box": lambda: {"type": "box", "box": box},
        "text": lambda: {"type": "text", "text": text},
    }
    content, rest = [], TASKS[task].prompt
    while rest:
        literal, opened, rest = rest.partition("{")
        if literal:
            content.append({"type": "text", "text": literal})
        if opened:
            name, _, rest = rest.partition("}")
            content.append(items[name]())
    return content
