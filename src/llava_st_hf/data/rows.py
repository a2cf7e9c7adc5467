# SPDX-License-Identifier: Apache-2.0
"""Rows of training datasets: their columns, and the function that makes them."""

from dataclasses import dataclass

from datasets import Features, Value

from .inline import check_text, estimate_length


_ITEM = {
    "type": Value("string"),  # "text", "image" or "video"; keys that a type does not use are null
    "text": Value("string"),
    "path": Value("string"),  # absolute
    "image": Value("string"),  # always null: TRL would replace image items without this key by the column `images`
    "clip": [Value("int64")],  # [first, last] frame, both included
    "start": Value("float64"),  # seconds, of the clip
    "end": Value("float64"),
}
FEATURES = Features(
    {
        "id": Value("string"),
        "task": Value("string"),
        "source": Value("string"),
        "modality": Value("string"),  # "text", "image" or "video"
        "length": Value("int32"),  # estimated text tokens, without those of the image or video
        "messages": [{"role": Value("string"), "content": [_ITEM]}],
        # Always empty: TRL processes images and videos in the data collator only if a dataset has this column.
        "images": [Value("string")],
    }
)


@dataclass(frozen=True)
class Medium:
    """The image or video of a conversation.

    Args:
        kind: "image" or "video".
        path: of the file; relative to a data folder in a sample, absolute in a row.
        clip: first and last frame of the clip, both included; None for all.
        start, end: the same in seconds from the start of the file; either may be None.
    """

    kind: str
    path: str
    clip: tuple[int, int] | None = None
    start: float | None = None
    end: float | None = None


def _item(kind: str, **values) -> dict:
    return {**dict.fromkeys(_ITEM), "type": kind, **values}


def conversation_row(id: str, task: str, source: str, medium: Medium | None, turns: list[tuple[str, str]]) -> dict:
    """
    Makes a row with the columns of `FEATURES`.

    Args:
        id, task, source: columns of the row.
        medium: image or video of the conversation, with an absolute path; it becomes the first item of the first user message.
        turns: `(role, text)` with coordinates inline: at most one "system" first, then "user" and "assistant" in turn, the last an
            "assistant". The first user text may be empty if there is an image or video.

    Raises:
        ValueError: naming the invalid turn or coordinate.
    """
    roles = [role for role, _ in turns]
    _check_roles(roles[1:] if roles[:1] == ["system"] else roles)
    kind = None if medium is None else medium.kind
    messages, length, opening = [], 0, True
    for number, (role, text) in enumerate(turns, start=1):
        content = []
        if role == "user" and opening:
            opening = False
            if medium is not None:
                clip = None if medium.clip is None else list(medium.clip)
                content.append(_item(medium.kind, path=medium.path, clip=clip, start=medium.start, end=medium.end))
        if text.strip():
            check_text(text, kind)
            length += estimate_length(text)
            content.append(_item("text", text=text))
        if not content:
            raise ValueError(f"Message {number} ({role}) is empty.")
        messages.append({"role": role, "content": content})
    return {"id": id, "task": task, "source": source, "modality": kind or "text", "length": length, "messages": messages, "images": []}


def _check_roles(roles: list[str]) -> None:
    if not roles:
        raise ValueError("The conversation has no messages.")
    for number, role in enumerate(roles):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise ValueError(f"The roles are {', '.join(roles)}: after at most one system message, user and assistant take turns.")
    if roles[-1] != "assistant":
        raise ValueError("The conversation ends with a question: the last message must be the assistant's.")
