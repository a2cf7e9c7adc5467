# SPDX-License-Identifier: Apache-2.0
"""The eight grounding tasks: what each takes, and the wording that the released model was trained on.

| task | given | asked |
|---|---|---|
| rec | image, expression | its box |
| reg | image, box | a phrase |
| dgc | image | a caption with a box after each thing |
| tvg | video, sentence | its span |
| tr | video, span | what happens |
| stvg | video, sentence | its span, and a box at each moment |
| svg | video, span, sentence | a box at each moment |
| elc | video, time, box | when it ends, what happens, and a box at each moment |
"""

from dataclasses import dataclass

from .messages_llava_st import read_span


@dataclass(frozen=True)
class Task:
    """One task: `medium` is "image" or "video"; `needs` are the arguments beside the media; `prompt` is filled with them."""

    medium: str
    needs: tuple[str, ...]
    prompt: str


_EACH_TIMESTAMP = "the spatial bounding box corresponding to each timestamp in the time period."
TASKS = {
    "rec": Task("image", ("text",), "Where is {text} situated within this image?"),
    "reg": Task("image", ("box",), "What object can be observed within the region {box} in the image?"),
    "dgc": Task("image", (), "Describe the image in detail, and give the bounding box of each object mentioned."),
    "tvg": Task(
        "video",
        ("text",),
        "Give you a textual query: '{text}'. When does the described content occur in the video? "
        "Please return the start and end timestamps.",
    ),
    "tr": Task("video", ("span",), "Describe what took place during the period {span} in the video."),
    "stvg": Task(
        "video", ("text",), f"{{text}} Please firstly give the timestamps, and then give {_EACH_TIMESTAMP}"
    ),
    "svg": Task("video", ("span", "text"), f"During {{span}}, {{text}} Please give {_EACH_TIMESTAMP}"),
    "elc": Task(
        "video",
        ("time", "box"),
        "Starts in {time}, what happened about the subject/object within the specified region {box}? Where is the corresponding "
        "subject/object located? Please firstly give the end timestamp, then give the event associated with the object/subject, "
        f"finally give {_EACH_TIMESTAMP}",
    ),
}  # fmt: skip


def task_content(task: str, text: str | None = None, span=None, time=None, box=None) -> list[dict]:
    """
    The words of a question, as content items of a chat message.

    Args:
        task: one of the keys of `TASKS`.
        text: an expression or a sentence.
        span: `(start, end)` in seconds, as `read_span` takes it.
        time: seconds, where the event of "elc" starts (a span's start will do).
        box: `(x1, y1, x2, y2)` in pixels, as `read_box` takes it.

    Raises:
        ValueError: naming the task and what is missing, or too much.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; it is one of {', '.join(TASKS)}.")
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise ValueError(f"text={text!r} must be a string that is not blank.")
    if span is not None:
        span = read_span(span)
        if "time" in TASKS[task].needs and time is None:
            time, span = span[0], None
    given = {"text": text, "span": span, "time": time, "box": box}
    needs = TASKS[task].needs
    missing = [name for name in needs if given[name] is None]
    excess = [name for name, value in given.items() if value is not None and name not in needs]
    if missing or excess:
        problems = [f"misses {' and '.join(missing)}"] * bool(missing) + [f"has no use for {' and '.join(excess)}"] * bool(excess)
        raise ValueError(f"task={task!r} takes {' and '.join(needs) or 'nothing beside the media'}; this call {', and '.join(problems)}.")
    items = {
        "span": lambda: {"type": "span", "start": span[0], "end": span[1]},
        "time": lambda: {"type": "time", "time": time},
        "box": lambda: {"type": "box", "box": box},
        "text": lambda: {"type": "text", "text": text},
    }
    content, rest = [], TASKS[task].prompt
    while rest:
        words, opened, rest = rest.partition("{")
        if words:
            content.append({"type": "text", "text": words})
        if opened:
            name, _, rest = rest.partition("}")
            content.append(items[name]())
    return content
