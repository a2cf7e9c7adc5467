# SPDX-License-Identifier: Apache-2.0
"""Questions of the page: what a visitor wrote and drew → arguments of a session."""

from collections.abc import Mapping

from ..model.checks_llava_st import is_finite_number
from ..model.media_info_llava_st import MediaInfo
from ..model.messages_llava_st import box_text, span_text, time_text
from ..model.tasks_llava_st import TASKS


#: The value of the page's choice of tasks for a question in the visitor's own words.
FREE = ""
#: Task → (name in the choice of tasks, label of the text field, or None if the task takes no text, example of a text).
LABELS: dict[str, tuple[str, str | None, str]] = {
    "stvg": ("When and where does it happen?", "Sentence that describes the event", "The person takes a laptop from the shelf."),
    "tvg": ("When does it happen?", "Sentence that describes the event", "the person takes a laptop from the shelf"),
    "svg": ("Where is it during this span?", "Sentence that describes the event", "The person takes a laptop from the shelf."),
    "tr": ("What happens during this span?", None, ""),
    "elc": ("What does this object do?", None, ""),
    "rec": ("Where is this object?", "Expression for the object", "the left dog"),
    "reg": ("What is in this box?", None, ""),
    "dgc": ("What is in the image, and where?", None, ""),
    FREE: ("My own question", "Question", "What happens after the child falls?"),
}
_WRITE = {"box": lambda box: box_text(box), "span": lambda span: span_text(*span), "time": lambda time: time_text(time)}


def tasks_for(kind: str) -> list[str]:
    """Tasks for an "image" or "video", as the page lists them."""
    return [task for task in LABELS if task == FREE or TASKS[task].medium == kind]


def needs(task: str) -> list[str]:
    """Which of "text", "box", "span" and "time" a question of a task takes."""
    return ["text", "box", "span", "time"] if task == FREE else list(TASKS[task].needs)


def question_arguments(task: str, text: str | None, drawn: Mapping, media: MediaInfo) -> dict:
    """
    Arguments of `GroundingSession.ask`.

    Args:
        task: key of `TASKS`, or `FREE` for a question in free text. In its text {box}, {span} and {time} are replaced by what was drawn.
        text: of the question; ignored where the task takes none.
        drawn: "box" (xmin, ymin, xmax, ymax in pixels), "span" (start, end in seconds) and "time" (seconds), None if nothing was drawn.
            Comes from the browser: any JSON value.
        media: the image or video.

    Raises:
        ValueError: for visitors, naming what is missing or not valid.
    """
    if task not in LABELS:
        raise ValueError(f"task={task!r:.50} is not a task of this page.")
    if task != FREE and TASKS[task].medium != media.kind:
        raise ValueError(f"This task is for {TASKS[task].medium}s, but the file is {'an image' if media.kind == 'image' else 'a video'}.")
    wanted, text = needs(task), (text or "").strip()
    if "text" in wanted and not text:
        raise ValueError(f"Enter a text: {LABELS[task][1]}.")
    values = {name: _read(name, drawn.get(name)) for name in ("box", "span", "time") if name in wanted}
    if task == FREE:
        return {"text": _fill_in(text, values)}
    hints = {"box": "Draw a box on the picture.", "span": "Drag a span on the time line.", "time": "Mark the start on the time line."}
    if missing := [hints[name] for name, value in values.items() if value is None]:
        raise ValueError(" ".join(missing))
    return {"task": task, **({"text": text} if "text" in wanted else {}), **values}


def _read(name: str, value):
    count = {"box": 4, "span": 2, "time": 1}[name]
    if value is None:
        return None
    numbers = [value] if name == "time" else value
    if not isinstance(numbers, list) or len(numbers) != count or not all(map(is_finite_number, numbers)):
        raise ValueError(f"{name}={value!r:.100} must be {'a number' if count == 1 else f'{count} numbers'}.")
    return value


def _fill_in(text: str, values: dict) -> str:
    for name, value in values.items():
        if f"{{{name}}}" in text:
            if value is None:
                raise ValueError(f"The question contains {{{name}}}, but no {name} was drawn.")
            text = text.replace(f"{{{name}}}", _WRITE[name](value))
    return text


def describe(question: Mapping) -> str:
    """The values of a question besides its text, in one line: "span 1.2 to 3.4 s, box 10, 20, 30, 40"."""
    parts = []
    if question.get("span") is not None:
        parts.append("span {:g} to {:g} s".format(*question["span"]))
    if question.get("time") is not None:
        parts.append(f"from {question['time']:g} s")
    if question.get("box") is not None:
        parts.append("box " + ", ".join(f"{side:g}" for side in question["box"]))
    return ", ".join(parts)


__all__ = ["FREE", "LABELS", "describe", "needs", "question_arguments", "tasks_for"]
