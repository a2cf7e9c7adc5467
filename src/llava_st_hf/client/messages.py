# SPDX-License-Identifier: Apache-2.0
"""Messages of a request: exact coordinates as tokens, or as their values for prompt embeddings."""

from dataclasses import dataclass

from ..model.batch_feature_llava_st import MediaText
from ..model.media_info_llava_st import MediaInfo
from ..model.processing_llava_st import LlavaSTProcessor


@dataclass(frozen=True)
class Coordinate:
    """A coordinate of a prompt with an exact value: its `token`, and its `position` as a fraction."""

    token: str
    position: float


@dataclass(frozen=True)
class Medium:
    """The `index`-th image or video of a chat; `kind` is "image" or "video"."""

    kind: str
    index: int


def message_parts(conversation: list[dict], media: list[MediaInfo], processor: LlavaSTProcessor) -> list[list[str | Coordinate | Medium]]:
    """
    Converts the coordinates of a chat, as the processor does.

    Args:
        conversation: chat that `prepare_conversation` returned.
        media: its images and videos, in order.
        processor: [`LlavaSTProcessor`].

    Returns:
        The parts of each message, in order: texts, images and videos, and those coordinates that are no bins.

    Raises:
        ValueError: naming a coordinate, as the processor does.
    """
    tokens = {"image": processor.image_token, "video": processor.video_token}
    text, spans = "", []
    for message in conversation:
        text += f"<|im_start|>{message['role']}\n"  # the processor recognizes answers by it
        start = len(text)
        content = message["content"]
        text += content if isinstance(content, str) else "".join(item.get("text", tokens.get(item["type"])) for item in content)
        spans.append((start, len(text)))
        text += "<|im_end|>\n"
    placeholders = {kind: [MediaText(token, info) for info in media if info.kind == kind] for kind, token in tokens.items()}
    for kind, token in tokens.items():
        if text.count(token) != len(placeholders[kind]):
            raise ValueError(f"The text contains {token}, which stands for an image or video. Remove it, or give the {kind} as an item.")
    if not any(start < end for start, end in spans):
        raise ValueError("The prompt is empty. Give a text.")
    _, (offsets,) = processor.get_text_with_replacements([text], placeholders["image"], placeholders["video"])
    parts: list[list[str | Coordinate | Medium]] = []
    index = 0
    for start, end in spans:
        own: list[str | Coordinate | Medium] = []
        cursor = start
        for entry in offsets:
            if not start <= entry["span"][0] < end:
                continue
            own.append(text[cursor : entry["span"][0]])
            cursor = entry["span"][1]
            if entry["media"] is not None:
                own.append(Medium(entry["type"], index))
                index += 1
            elif entry["position"] is not None:
                own.append(Coordinate(entry["replacement"], entry["position"]))
            else:
                own.append(entry["replacement"])
        parts.append([*own, text[cursor:end]])
    return parts
