# SPDX-License-Identifier: Apache-2.0
"""Chat messages: the template, and content items in seconds and pixels."""

import dataclasses

from .checks_llava_st import is_finite_number
from .configuration_llava_st import SPECIAL_TOKENS
from .media_items_llava_st import as_own_item, check_keys, prepare_image, prepare_video


# Argument of the template with which a processor renders prompts: it has checked their control tokens, and converts their inline
# coordinates afterwards.
CONVERTS_COORDINATES = "processor_converts_coordinates"
# ChatML as in the training of the original model. An image or video is followed by a newline. The text of an assistant message and its
# <|im_end|> are marked for the loss. A server that renders the template itself, without the processor, would pass the letters of inline
# coordinates, and control tokens in the texts of a user, to the model: without the argument `CONVERTS_COORDINATES` they are an error.
# Jinja has no regular expressions, so that the macros look at what is between "<" and ">".
CHAT_TEMPLATE = (
    "{%- macro words(content) %}"
    "{%- if content is string %}{{ content }}"
    "{%- else %}{%- for item in content %}"
    "{%- if item['type'] == 'image' %}{{ '<image>\n' }}"
    "{%- elif item['type'] == 'video' %}{{ '<video>\n' }}"
    "{%- elif item['type'] == 'text' %}{{ item['text'] }}"
    "{%- else %}{{ raise_exception('Content items have the type image, video or text, not ' + item['type'] + '. Servers do not convert "
    "spans, times and boxes: ask with llava_st_hf.client.GroundingClient.') }}"
    "{%- endif %}{%- endfor %}{%- endif %}"
    "{%- endmacro %}"
    "{%- macro texts(content) %}"
    "{%- if content is string %}{{ content }}"
    "{%- else %}{%- for item in content if item['type'] == 'text' %}{{ item['text'] }}{%- endfor %}{%- endif %}"
    "{%- endmacro %}"
    "{%- macro refuse_control_tokens(text) %}"
    f"{{%- for token in {['<image>', '<video>', *sorted(SPECIAL_TOKENS.values())]} + [bos_token, eos_token, pad_token, unk_token] "
    "if token and token in text %}"
    "{{ raise_exception('The text contains the special token ' + token + ', which only the chat template may write. Remove it.') }}"
    "{%- endfor %}"
    "{%- for part in text.split('<|')[1:] if '|>' in part and part.split('|>')[0].replace('_', 'a').isalnum() %}"
    "{{ raise_exception('The text contains the special token <|' + part.split('|>')[0] + '|>, which only the chat template may write. "
    "Remove it.') }}"
    "{%- endfor %}"
    "{%- endmacro %}"
    "{%- macro refuse_coordinates(text) %}"
    "{%- for part in text.split('<')[1:] if part[:1] in ['t', 'h', 'w'] and '>' in part %}"
    "{%- set written = part.split('>')[0] %}"
    "{%- set number = written[1:-2] if written.endswith('px') else written[1:-1] if written.endswith('s') else written[1:] %}"
    "{%- set digits = number.lstrip('+-') %}"
    "{%- if not number or digits in ['nan', 'inf'] or (digits[:1] in '0123456789.' and digits.strip('.eE+-') "
    "and not digits.strip('0123456789.eE+-')) %}"
    "{{ raise_exception('The text contains the coordinate <' + written + '>, which a server does not convert. Write its token, or ask with "
    "llava_st_hf.client.GroundingClient, which does.') }}"
    "{%- endif %}{%- endfor %}"
    "{%- endmacro %}"
    "{%- if messages and messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- set text = words(message['content']) %}"
    f"{{%- if not {CONVERTS_COORDINATES} %}}"
    "{{- refuse_control_tokens(message['role']) }}"
    "{{- refuse_control_tokens(texts(message['content'])) }}"
    "{{- refuse_coordinates(text) }}"
    "{%- endif %}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- text + '<|im_end|>' }}{% endgeneration %}"
    "{{- '\n' }}"
    "{%- else %}"
    "{{- text + '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


# Keys of content items in addition to "type".
_ITEM_KEYS = {
    "text": ("text",),
    "span": ("start", "end"),
    "time": ("time",),
    "box": ("box",),
}
_ITEM_TYPES = ("text", "image", "video", "image_url", "video_url", "span", "time", "box")
_BOX_KEYS = ("xmin", "ymin", "xmax", "ymax")


def _plain(value):
    """Converts arrays and tensors to lists or numbers; other values are returned unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(value, what: str) -> float:
    value = _plain(value)
    if not is_finite_number(value):
        raise ValueError(f"{what} must be a finite number, got {value!r}.")
    return float(value)


def read_time(seconds) -> float:
    """Checks a time in seconds.

    Raises:
        ValueError: if it is not a finite number, or is negative.
    """
    seconds = _number(seconds, "A time")
    if seconds < 0:
        raise ValueError(f"A time is counted from the start of the file; {seconds:g} seconds is before it.")
    return seconds


def read_span(span) -> tuple[float, float]:
    """Checks a time span and returns `(start, end)` in seconds: a pair in a list, tuple, array or tensor, or `{"start", "end"}`.

    Raises:
        ValueError: if it is not a pair of finite numbers, is negative or reversed.
    """
    pair = _plain(span)
    if isinstance(pair, dict):
        check_keys(pair, ("start", "end"), "A span")
        pair = [pair.get("start"), pair.get("end")]
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ValueError(f"span={span!r} must be a pair (start, end) of seconds.")
    start, end = _number(pair[0], "The start of a span"), _number(pair[1], "The end of a span")
    if start < 0 or end < start:
        raise ValueError(f"The span from {start:g} to {end:g} seconds {'is negative' if start < 0 else 'ends before it starts'}.")
    return start, end


def read_box(box) -> tuple[float, float, float, float]:
    """Checks a bounding box and returns `(x1, y1, x2, y2)` in pixels.

    Args:
        box: four numbers in a list, tuple, array or tensor, or `{"xmin", "ymin", "xmax", "ymax"}`.

    Raises:
        ValueError: if it does not have four finite numbers, or is reversed.
    """
    box = _plain(box)
    corners = box
    if isinstance(box, dict):
        check_keys(box, _BOX_KEYS, "A box")
        for name in _BOX_KEYS:
            if name not in box:
                raise ValueError(f"The box {box!r} has no {name!r}.")
        corners = [box[name] for name in _BOX_KEYS]
    if not isinstance(corners, (list, tuple)) or len(corners) != 4:
        raise ValueError(f"A box has four numbers, [x1, y1, x2, y2] in pixels; got {box!r}.")
    x1, y1, x2, y2 = (_number(value, f"A corner of the box {box!r}") for value in corners)
    if x2 < x1 or y2 < y1:
        raise ValueError(f"The box {box!r} is reversed: boxes are [left, top, right, bottom].")
    return x1, y1, x2, y2


def span_text(start: float | None, end: float | None) -> str:
    """Writes a span in seconds in the inline syntax; see `read_span`."""
    start, end = read_span((start, end))
    return f"{{{time_text(start)}{time_text(end)}}}"


def time_text(seconds: float | None) -> str:
    """Writes a time in seconds in the inline syntax; see `read_time`."""
    return f"<t{read_time(seconds)!r}s>"


def box_text(box) -> str:
    """Writes a box in pixels in the inline syntax; see `read_box`."""
    x1, y1, x2, y2 = read_box(box)
    return f"[<w{x1!r}px><h{y1!r}px><w{x2!r}px><h{y2!r}px>]"


def _as_mapping(value):
    """Converts a message or an item that is a dataclass or a pydantic model to the dictionary of its fields that are not None, as
    transformers does; other values are returned unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif callable(getattr(value, "model_dump", None)):
        content = value.model_dump()
    else:
        return value
    return {name: part for name, part in content.items() if part is not None}


def _prepare_item(item, videos: list[dict]) -> dict:
    item = _as_mapping(item)
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if not isinstance(item, dict) or item.get("type") not in _ITEM_TYPES:  # compared one by one: a type may be unhashable
        raise ValueError(f"A content item is a string, or a dictionary with a type of {', '.join(_ITEM_TYPES)}; got {item!r:.200}.")
    # Rows out of Arrow have every key that any item of their column has.
    item = as_own_item({key: value for key, value in item.items() if value is not None})
    kind = item["type"]
    if kind == "image":
        return prepare_image(item)
    if kind == "video":
        item, options = prepare_video(item)
        videos.append(options)
        return item
    check_keys(item, ("type", *_ITEM_KEYS[kind]), f"A content item of type {kind!r}")
    if kind == "text" and not isinstance(item.get("text"), str):
        raise ValueError(f"The text of a content item must be a string; got {item!r:.200}.")
    if kind == "span":
        return {"type": "text", "text": span_text(item.get("start"), item.get("end"))}
    if kind == "time":
        return {"type": "text", "text": time_text(item.get("time"))}
    if kind == "box":
        return {"type": "text", "text": box_text(item.get("box"))}
    return item


def prepare_conversation(conversation) -> tuple[list, dict[str, list[dict | None]]]:
    """
    Converts items of the types "span", "time" and "box" to inline text, and other keys of videos to arguments of the video processor.

    Args:
        conversation: a chat, or a list of chats, in the transformers format. Not changed.

    Returns:
        `(conversation, options)`: a copy, whose videos have only their sources, and those of the arguments `clips`, `sampling` and
        `video_metadata` that any item contains, each with one entry per video of the whole batch in order.

    Raises:
        ValueError: naming what is wrong with an item.
    """
    if not isinstance(conversation, (list, tuple)) or len(conversation) == 0:
        raise ValueError(f"A conversation is a list of messages, or a list of such lists; got {conversation!r}.")
    videos: list[dict] = []

    def prepare_message(message: dict) -> dict:
        message = _as_mapping(message)
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError(f'A message is a dictionary like {{"role": "user", "content": …}}; got {message!r:.200}.')
        if not isinstance(message["role"], str):
            raise ValueError(f"The role of a message must be a string; got {message!r:.200}.")
        content = message.get("content")
        if isinstance(content, dict):
            content = [content]
        if isinstance(content, (list, tuple)):
            content = [_prepare_item(item, videos) for item in content]
        elif not isinstance(content, str):
            raise ValueError(f"The content of a message must be a string or a list of items; got {message!r:.200}.")
        return {**message, "content": content}

    if isinstance(_as_mapping(conversation[0]), dict):
        prepared = [prepare_message(message) for message in conversation]
    else:
        chats = [getattr(chat, "messages", chat) for chat in conversation]
        prepared = [[prepare_message(message) for message in chat] for chat in chats]
    options = {name: [video[name] for video in videos] for name in ("clips", "sampling", "video_metadata")}
    return prepared, {name: values for name, values in options.items() if any(value is not None for value in values)}
