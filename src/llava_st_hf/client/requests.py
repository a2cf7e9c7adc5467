# SPDX-License-Identifier: Apache-2.0
"""Questions of the pipeline → bodies of `POST /v1/chat/completions`."""

from dataclasses import dataclass, field

from ..model.answer_grammar_llava_st import grammar_rule
from ..model.batch_feature_llava_st import MediaText
from ..model.control_tokens_llava_st import check_messages
from ..model.downloads_llava_st import DownloadLimits, checked_limits
from ..model.grammar_export_llava_st import answer_regex
from ..model.media_info_llava_st import MediaInfo
from ..model.messages_llava_st import prepare_conversation
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.questions_llava_st import (
    QuestionContext,
    check_times_can_be_converted,
    errors_name_arguments,
    question_context,
    question_messages,
    reading_arguments,
)
from .exact import CoordinateRows
from .media import EncodedMedium, encode_image, encode_video
from .messages import Coordinate, Medium, message_parts


@dataclass(frozen=True)
class AnswerContext:
    """
    What the answer to a request is read with.

    Args:
        question: media, task and values of the prompt.
        num_temporal_bins, num_spatial_bins: bins of the time axis, and of height and width.
        prompt_tokens: number of tokens of the prompt, with those of images and videos.
        max_tokens: largest number of tokens of the answer.
        constrained: whether the answer is constrained to a grammar.
    """

    question: QuestionContext
    num_temporal_bins: int
    num_spatial_bins: int
    prompt_tokens: int
    max_tokens: int
    constrained: bool = False


@dataclass(frozen=True)
class GroundingRequest:
    """Body of `POST /v1/chat/completions` (`payload`, JSON-serializable), and what its answer is read with (`context`)."""

    payload: dict = field(repr=False)  # megabytes of base64
    context: AnswerContext


def build_request(
    question,
    processor: LlavaSTProcessor,
    *,
    model: str,
    exact: bool = False,
    constrained: bool = False,
    max_tokens: int = 2048,
    rows: CoordinateRows | None = None,
    media_urls: bool = False,
    num_frames: int | None = None,
    video_backend: str | None = None,
    allow_truncated: bool | None = None,
    download_limits: DownloadLimits | None = None,
    **arguments,
) -> GroundingRequest:
    """
    Converts a question to a request. Reads the image or video; needs no model.

    Args:
        question: one input of the pipeline: media, a dictionary with "video" or "image" and further arguments, or a chat.
        processor: [`LlavaSTProcessor`] of the checkpoint that is served.
        model: name of the model on the server.
        exact: send coordinates as embeddings of their exact positions (`prompt_embeds` of vLLM) instead of the tokens of their bins.
        constrained: constrain the answer to the form of the question's task, or any form for a question in free text.
        max_tokens: largest number of tokens of the answer.
        rows: embeddings of the coordinate tokens, for `exact`.
        media_urls: send the addresses of files (`https://…`, `file://…`) instead of their contents where nothing is cut: the server must be
            able to read them.
        num_frames, video_backend, allow_truncated, download_limits: see `VideoGroundingPipeline.__call__`. The frames are then sampled
            here. Servers sample the number of frames of the checkpoint; another `num_frames` is an error.
        arguments: of the question, such as `text` and `task`; keys of `question` have precedence.

    Raises:
        ValueError, OSError: naming what is wrong with media, question or options.
    """
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise ValueError(f"max_tokens must be a whole number of at least 1, got {max_tokens!r}.")
    if exact and rows is None:
        raise ValueError("exact=True needs rows=CoordinateRows.from_checkpoint(…), the embeddings of the coordinate tokens.")
    messages, values = question_messages(question, arguments)
    check_times_can_be_converted(messages, values)
    reading = reading_arguments(
        num_frames=num_frames, video_backend=video_backend, allow_truncated=allow_truncated, download_limits=download_limits
    )
    checked_limits(download_limits)
    conversation, options = prepare_conversation(messages)
    check_messages(conversation, processor._control_tokens)
    media = _media(conversation, options, processor, reading, media_urls)
    infos = [medium.info for medium in media]
    with errors_name_arguments(values):
        parts = message_parts(conversation, infos, processor)
    context = question_context(infos, values)
    payload = {
        "model": model,
        "messages": [
            {"role": message["role"], "content": _content(own, media, rows if exact else None)}
            for message, own in zip(conversation, parts, strict=True)
        ],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    bins = (processor.num_temporal_bins, processor.num_spatial_bins)
    if constrained:
        rule = grammar_rule(context.task, None if context.medium is None else context.medium.kind)
        if rule is None:
            raise ValueError("constrained=True needs a question about an image or video.")
        payload["structured_outputs"] = {"regex": answer_regex(rule, *bins)}
    prompt_tokens = _count_tokens(conversation, infos, processor)
    return GroundingRequest(payload, AnswerContext(context, *bins, prompt_tokens, max_tokens, constrained))


def _media(
    conversation: list[dict], options: dict[str, list], processor: LlavaSTProcessor, reading: dict, media_urls: bool
) -> list[EncodedMedium]:
    """Reads and encodes the images and videos of a chat, in order."""
    items = [item for message in conversation if not isinstance(message["content"], str) for item in message["content"]]
    media: list[EncodedMedium] = []
    videos = 0
    for item in items:
        if item["type"] in ("image", "video") and len(item) == 1:
            raise ValueError(f"A content item of type {item['type']!r} needs its {item['type']}; got {item!r}.")
        if item["type"] == "image":
            media.append(encode_image(item, processor, media_urls, reading.get("download_limits")))
        elif item["type"] == "video":
            own = {name: values[videos] for name, values in options.items()}
            media.append(encode_video(item, own, processor, reading, media_urls))
            videos += 1
    return media


def _content(parts: list[str | Coordinate | Medium], media: list[EncodedMedium], rows: CoordinateRows | None) -> str | list[dict]:
    """Content of a message in OpenAI's format: a string, or a list of items if it has images, videos or embeddings."""
    items: list[dict] = []

    def add_text(text: str) -> None:
        if items and items[-1]["type"] == "text":
            items[-1]["text"] += text
        elif text:
            items.append({"type": "text", "text": text})

    for part in parts:
        if isinstance(part, str):
            add_text(part)
        elif isinstance(part, Medium):
            name = f"{part.kind}_url"
            items.append({"type": name, name: {"url": media[part.index].url}})
        elif rows is None or not rows.has_embedding(part.token, part.position):
            add_text(part.token)
        else:
            items.append({"type": "prompt_embeds", "data": rows.encode(part.token, part.position)})
    if not items:
        return ""
    return items[0]["text"] if [item["type"] for item in items] == ["text"] else items


def _count_tokens(conversation: list[dict], infos: list[MediaInfo], processor: LlavaSTProcessor) -> int:
    """Number of tokens of the prompt as the processor writes it, with the checkpoint's number of frames for each video."""
    placeholders = [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [item if item["type"] == "text" else {"type": item["type"]} for item in message["content"]],
        }
        for message in conversation
    ]
    prompt = processor.apply_chat_template(placeholders, tokenize=False, add_generation_prompt=True)
    images = [MediaText(processor.replace_image_token({}, 0), info) for info in infos if info.kind == "image"]
    videos = [MediaText(_video_tokens(info, processor), info) for info in infos if info.kind == "video"]
    (text,), _ = processor.get_text_with_replacements([prompt], images, videos)
    return len(processor.tokenizer(text)["input_ids"])


def _video_tokens(info: MediaInfo, processor: LlavaSTProcessor) -> str:
    frames = processor.video_processor.num_frames
    return processor.replace_video_token({"pixel_values_videos": [range(frames)]}, 0)
