# SPDX-License-Identifier: Apache-2.0
"""Chat messages: the template, and content items in seconds and pixels."""

import math
from numbers import Real


# ChatML as the released model was trained on. A medium is followed by a newline. Marked for supervision are the words of
# an assistant message and its <|im_end|>.
CHAT_TEMPLATE = (
    "{%- macro words(content) %}"
    "{%- if content is string %}{{ content }}"
    "{%- else %}{%- for item in content %}"
    "{%- if item['type'] == 'image' %}{{ '<image>\n' }}"
    "{%- elif item['type'] == 'video' %}{{ '<video>\n' }}"
    "{%- elif item['type'] == 'text' %}{{ item['text'] }}"
    "{%- else %}{{ raise_exception('Content items have the type image, video or text, not ' + item['type']) }}"
    "{%- endif %}{%- endfor %}{%- endif %}"
    "{%- endmacro %}"
    "{%- if messages and messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- words(message['content']) + '<|im_end|>' }}{% endgeneration %}"
    "{{- '\n' }}"
    "{%- else %}"
    "{{- words(message['content']) + '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def _number(value, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {value!r}.")
    return float(value)


def span_text(start: float | None, end: float | None) -> str:
    """A span in seconds in the inline syntax.

    Raises:
        ValueError: where it is not finite, negative or reversed.
    """
    start, end = _number(start, "The start of a span"), _number(end, "The end of a span")
    if start < 0 or end < start:
        raise ValueError(f"The span from {start:g} to {end:g} seconds {'is negative' if start < 0 else 'ends before it starts'}.")
    return f"{{{time_text(start)}{time_text(end)}}}"


def time_text(seconds: float | None) -> str:
    """A time point in seconds in the inline syntax."""
    seconds = _number(seconds, "A time")
    if seconds < 0:
        raise ValueError(f"A time is counted from the start of the file; {seconds:g} seconds is before it.")
    return f"<t{seconds!r}s>"


def box_text(box) -> str:
    """A box `[x1, y1, x2, y2]` in pixels in the inline syntax.

    Raises:
        ValueError: where it has not four finite numbers, or is reversed.
    """
    if isinstance(box, dict):
        try:
            box = [box[name] for name in ("xmin", "ymin", "xmax", "ymax")]
        except KeyError as error:
            raise ValueError(f"The box {box!r} has no {error.args[0]!r}.") from None
    try:
        box = list(box)
    except TypeError:
        box = [box]
    if len(box) != 4:
        raise ValueError(f"A box has four numbers, [x1, y1, x2, y2] in pixels; got {box!r}.")
    x1, y1, x2, y2 = (_number(value, f"A corner of the box {box!r}") for value in box)
    if x2 < x1 or y2 < y1:
        raise ValueError(f"The box {box!r} is reversed: boxes are [left, top, right, bottom].")
    return f"[<w{x1!r}px><h{y1!r}px><w{x2!r}px><h{y2!r}px>]"


def _clip(item: dict) -> dict | None:
    """The part of a video that a content item asks for, as the video processor takes it."""
    clip, start, end = item.get("clip"), item.get("start"), item.get("end")
    if clip is not None:
        if start is not None or end is not None:
            raise ValueError(f"A video's clip is given as frames (clip={clip!r}) or as seconds (start, end), not both.")
        return {"frames": clip}
    seconds = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
    return seconds or None


def _prepare_item(item: dict, clips: list) -> dict:
    kind = item.get("type")
    if kind == "span":
        return {"type": "text", "text": span_text(item.get("start"), item.get("end"))}
    if kind == "time":
        return {"type": "text", "text": time_text(item.get("time"))}
    if kind == "box":
        return {"type": "text", "text": box_text(item.get("box") if item.get("box") is not None else ())}
    if kind == "video":
        clips.append(_clip(item))
        return {name: value for name, value in item.items() if name not in ("clip", "start", "end")}
    return item


def prepare_conversation(conversation) -> tuple[list, list[dict | None]]:
    """
    Messages with items of the types "span", "time" and "box" written as inline text, and videos without their clips.

    Args:
        conversation: a chat, or a list of chats, in the transformers format. Not changed.

    Returns:
        `(conversation, clips)`: a copy, and one entry per video of the whole batch in order.

    Raises:
        ValueError: naming what is wrong with an item.
    """
    if not isinstance(conversation, (list, tuple)) or len(conversation) == 0:
        raise ValueError(f"A conversation is a list of messages, or a list of such lists; got {conversation!r}.")
    clips: list[dict | None] = []

    def prepare_message(message: dict) -> dict:
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError(f'A message is a dictionary like {{"role": "user", "content": …}}; got {message!r:.200}.')
        content = message.get("content")
        if isinstance(content, dict):
            content = [content]
        if isinstance(content, (list, tuple)):
            content = [_prepare_item(item, clips) if isinstance(item, dict) else {"type": "text", "text": str(item)} for item in content]
        return {**message, "content": content}

    if isinstance(conversation[0], dict):
        return [prepare_message(message) for message in conversation], clips
    chats = [getattr(chat, "messages", chat) for chat in conversation]
    return [[prepare_message(message) for message in chat] for chat in chats], clips
