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
        ("start", "box"),
        "Starts in {start}, what happened about the subject/object within the specified region {box}? Where is the corresponding "
        "subject/object located? Please firstly give the end timestamp, then give the event associated with the object/subject, "
        f"finally give {_EACH_TIMESTAMP}",
    ),
}  # fmt: skip


def task_content(task: str, text: str | None = None, span=None, start=None, box=None) -> list[dict]:
    """
    The words of a question, as content items of a chat message.

    Args:
        task: one of the keys of `TASKS`.
        text: an expression or a sentence.
        span: `(start, end)` in seconds.
        start: seconds; the `start` of "elc" (a span's start will do).
        box: `(x1, y1, x2, y2)` in pixels.

    Raises:
        ValueError: naming the task and what is missing, or too much.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; it is one of {', '.join(TASKS)}.")
    if "start" in TASKS[task].needs and start is None and isinstance(span, (list, tuple)) and span:
        start, span = span[0], None
    given = {"text": text or None, "span": span, "start": start, "box": box}
    needs = TASKS[task].needs
    missing = [name for name in needs if given[name] is None]
    excess = [name for name, value in given.items() if value is not None and name not in needs]
    if missing or excess:
        problems = [f"misses {' and '.join(missing)}"] * bool(missing) + [f"has no use for {' and '.join(excess)}"] * bool(excess)
        raise ValueError(f"task={task!r} takes {' and '.join(needs) or 'nothing beside the media'}; this call {', and '.join(problems)}.")
    if "span" in needs and (not isinstance(span, (list, tuple)) or len(span) != 2):
        raise ValueError(f"span={span!r} must be a pair (start, end) of seconds.")
    items = {
        "span": lambda: {"type": "span", "start": span[0], "end": span[1]},
        "start": lambda: {"type": "time", "time": start},
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
