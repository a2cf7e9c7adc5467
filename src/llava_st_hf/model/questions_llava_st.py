# SPDX-License-Identifier: Apache-2.0
"""Questions of `pipeline("video-grounding")`: checked, and converted to model inputs by the processor."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import GeneratorType

from .batch_feature_llava_st import LlavaSTBatchFeature
from .cached_media_llava_st import LastMedium
from .checks_llava_st import check_rate
from .downloads_llava_st import DownloadLimits
from .grounding_llava_st import parse_answer
from .inline_coordinates_llava_st import INLINE_COORDINATE
from .media_info_llava_st import MediaInfo, OutsideMediaError
from .media_items_llava_st import as_own_item, prepare_image
from .media_kind_llava_st import media_kind
from .messages_llava_st import box_text, read_box, read_span, read_time, span_text, time_text
from .tasks_llava_st import TASKS, task_content
from .video_frames_llava_st import flatten_videos, is_frames


MEDIA_KEYS = ("video", "image")
QUESTION_KEYS = ("text", "task", "clip", "start", "end", "span", "box", "time", "fps", "timestamps")
READING_KEYS = ("num_frames", "video_backend", "allow_truncated", "download_limits")  # arguments of the processor
_VIDEO_ITEM_KEYS = ("clip", "start", "end", "fps", "timestamps")  # those of `QUESTION_KEYS` that are keys of a video item
LISTED_KEYS = ("text", "task", "span", "time", "box")  # those that may be a list of values, for several questions
QUESTIONS_PER_BATCH = 8  # of several questions about one image or video, unless `batch_size` is given
_PROMPT_VALUES = {"span": (read_span, lambda span: span_text(*span)), "time": (read_time, time_text), "box": (read_box, box_text)}


@dataclass(frozen=True)
class QuestionContext:
    """What the answer to a question is read with.

    Args:
        medium: the image or video that the answer refers to, the last one of a chat; None for a question without media.
        prompt_positions: "span", "start" and "box" of the prompt, as fractions; see `parse_answer`.
        task: key of `TASKS`; None for a question in free text and for a chat.
        query: the argument `text`; None without it and for a chat.
        source: with `keep_source`, the image or video that the answer refers to and how it is read: "medium", and those of
            "video_backend", "allow_truncated" and "download_limits" that are set.
    """

    medium: MediaInfo | None
    prompt_positions: dict = field(default_factory=dict)
    task: str | None = None
    query: str | None = None
    source: dict | None = None


class PreparedQuestion(dict):
    """Model inputs of one question (`model_inputs`), and what its answer is read with (`context`, a [`QuestionContext`]).

    Questions about the same image or video, read once, have the same `medium`, a string.
    """


def prepare_question(
    processor,
    inputs,
    num_frames: int | None = None,
    video_backend: str | None = None,
    allow_truncated: bool | None = None,
    download_limits: DownloadLimits | None = None,
    processor_kwargs: dict | None = None,
    last_medium: LastMedium | None = None,
    history: Sequence[dict] = (),
    keep_source: bool = False,
    **question,
) -> PreparedQuestion:
    """
    Checks a question, decodes its media and builds the model inputs. Needs no model.

    Args:
        processor: [`LlavaSTProcessor`].
        inputs, question: see `VideoGroundingPipeline.__call__`.
        num_frames, video_backend, allow_truncated, download_limits: arguments of the processor.
        processor_kwargs: further arguments of the processor.
        last_medium: image or video of the question before this one, which is not read again if this question is about the same.
        history: messages of a chat about the image or video, which the question continues. The first one contains it.
        keep_source: keep the image or video in the context, to read it again.

    Raises:
        ValueError, OSError: naming what is wrong with media or question.
    """
    messages, question = question_messages(inputs, question)
    reading = dict(zip(READING_KEYS, (num_frames, video_backend, allow_truncated, download_limits), strict=True))
    processor_kwargs = reading_arguments(processor_kwargs=processor_kwargs, **reading)
    if "video_metadata" not in {*processor_kwargs, *processor_kwargs.get("videos_kwargs", {})}:
        check_times_can_be_converted(messages, question)
    if history:
        messages = [*history, {**messages[0], "content": messages[0]["content"][1:]}]
    source = media_source(messages, processor_kwargs) if keep_source else None
    key = None if last_medium is None else last_medium.key(messages, processor_kwargs)
    known = None if last_medium is None else last_medium.find(key)
    with errors_name_arguments(question):
        model_inputs: LlavaSTBatchFeature = (processor if known is None else known.processor).apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs=processor_kwargs,
        )
    context = question_context(model_inputs.media_info[0], question, source)
    if last_medium is not None and known is None:
        known = last_medium.keep(key, messages, processor, model_inputs)
    if known is None:
        return PreparedQuestion(model_inputs=dict(model_inputs), context=context)
    return PreparedQuestion(model_inputs={**model_inputs, **known.pixels}, context=context, medium=known.id)


@contextmanager
def errors_name_arguments(question: dict) -> Iterator[None]:
    """Replaces, in errors about a coordinate outside its image or video, the coordinate by the argument of the question that it is from."""
    try:
        yield
    except OutsideMediaError as error:
        name = _argument_names(question).get(error.written)
        if name is None:
            raise
        raise ValueError(f"{name} {error.reason}") from error


def question_context(media: Sequence[MediaInfo], question: dict, source: dict | None = None) -> QuestionContext:
    """
    What the answer to a question is read with.

    Args:
        media: images and videos of the prompt, in order.
        question: second result of `question_messages`.
        source: see `QuestionContext`.
    """
    medium = media[-1] if media else None
    return QuestionContext(medium, _prompt_positions(medium, question), question.get("task"), question.get("text"), source)


def read_answer(
    text: str,
    context: QuestionContext,
    num_temporal_bins: int,
    num_spatial_bins: int,
    cut_off_after: int | None = None,
    limit_name: str = "max_new_tokens",
    **options,
) -> dict:
    """
    Converts the text of an answer to the dictionary that the pipeline returns.

    Args:
        text: the answer, with coordinate tokens.
        context: of its question.
        num_temporal_bins, num_spatial_bins: bins of the time axis, and of height and width.
        cut_off_after: number of generated tokens, if the limit `limit_name` ended the answer.
        options: `words_suffice`, `coordinates` and `score_calibration` of `parse_answer`.
    """
    answer = parse_answer(text, context.medium, num_temporal_bins, num_spatial_bins, **context.prompt_positions, **options)
    answer.update({name: value for name in ("task", "query") if (value := getattr(context, name)) is not None})
    if cut_off_after is not None:
        answer["notes"].append(f"The answer was cut off after {cut_off_after} tokens. Increase {limit_name} to get all of it.")
    return answer


def media_source(messages: list[dict], processor_kwargs: dict) -> dict:
    """
    The last image or video of a chat, and the arguments with which its file is read.

    Raises:
        ValueError: if the chat does not contain it, or if it can be read only once.
    """
    contents = (message.get("content") for message in messages)
    items = [item for content in contents if isinstance(content, (list, tuple)) for item in content if isinstance(item, dict)]
    last = next((item for item in reversed(items) if item.get("type") in ("image", "video", "image_url", "video_url")), None)
    if last is None:
        return {"medium": None}  # a question without media has no boxes
    item = as_own_item(last)
    item = prepare_image(item) if item["type"] == "image" else item
    medium = next((item[name] for name in ("image", "video", "url", "path") if name in item), None)
    if medium is None:
        raise ValueError(f"refine reads the {item['type']} again: give it in the message, as {{'type': '{item['type']}', 'path': …}}.")
    if isinstance(medium, io.IOBase) and not medium.seekable():
        raise ValueError(f"refine reads the {item['type']} again, which is not possible for a stream: give its path or its bytes.")
    given = {**processor_kwargs, **processor_kwargs.get("videos_kwargs", {})}
    return {"medium": medium, **{name: given[name] for name in READING_KEYS[1:] if name in given}}


def reading_arguments(processor_kwargs: dict | None = None, **reading) -> dict:
    """Arguments of the processor: those of `READING_KEYS` that are set, and `processor_kwargs`."""
    return {**(processor_kwargs or {}), **{name: value for name, value in reading.items() if value is not None}}


def split_questions(inputs, question: dict) -> list[dict] | None:
    """
    Makes one input of each question if several are asked about one image or video.

    Args:
        inputs: input of the pipeline.
        question: the arguments of the call, of `QUESTION_KEYS`; keys in `inputs` have precedence.

    Returns:
        Inputs in the form of dictionaries: `text`, `task`, `span`, `time` and `box` have one value in each, from the list of it, or the
        same one in all. None if none of them is a list of values.

    Raises:
        ValueError: naming the lists if their lengths differ, or if `inputs` is not one image or video.
    """
    if is_chat(getattr(inputs, "messages", inputs)) or isinstance(inputs, PreparedQuestion):
        return None
    inputs = _undecoded(inputs)
    given = {**question, **inputs} if isinstance(inputs, dict) else question
    lists = {name: values for name in LISTED_KEYS if (values := _values(name, given.get(name))) is not None}
    if not lists:
        return None
    lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
    if len(set(map(len, lists.values()))) > 1:
        raise ValueError(f"Lists of values for several questions must have one length: {lengths}.")
    if isinstance(inputs, (list, tuple, GeneratorType)):
        raise ValueError(
            f"A list of values ({lengths}) asks several questions about one image or video, but the input is a {type(inputs).__name__} "
            'of several. Give each question with its input, as {"video": …, "text": …}.'
        )
    media = inputs if isinstance(inputs, dict) else {media_kind(inputs): inputs}
    count = len(next(iter(lists.values())))
    return [{**media, **{name: values[number] for name, values in lists.items()}} for number in range(count)]


def _values(name: str, value) -> list | None:
    """The values of an argument for several questions; None for the value of a single one."""
    if not isinstance(value, (list, tuple)):
        ndim = getattr(value, "ndim", 0)  # of an array or tensor
        return list(value) if ndim > (name in ("span", "box")) else None
    if name in ("span", "box") and not any(part is None or _has_parts(part) for part in value):
        return None  # the numbers of one span or box
    return list(value)


def _has_parts(value) -> bool:
    return isinstance(value, (list, tuple, dict)) or getattr(value, "ndim", 0) > 0


def is_chat(inputs) -> bool:
    """Whether an input is a list of chat messages."""
    return isinstance(inputs, (list, tuple)) and len(inputs) > 0 and isinstance(inputs[0], dict) and "role" in inputs[0]


def question_messages(inputs, question: dict) -> tuple[list[dict], dict]:
    """
    Builds the chat of one question.

    Args:
        inputs: one input of the pipeline.
        question: the arguments of the call, of `QUESTION_KEYS`; keys in `inputs` have precedence.

    Returns:
        `(messages, question)`: the question's values are checked, and in seconds and pixels. Empty for a chat.

    Raises:
        ValueError: naming the argument.
    """
    question = {key: value for key, value in question.items() if value is not None}
    messages = getattr(inputs, "messages", inputs)  # a chat as transformers wraps it
    if is_chat(messages):
        if question:
            names = ", ".join(f"`{name}`" for name in question)
            raise ValueError(
                f"{names} cannot be combined with chat messages. Put the values into the message content, for example "
                '{"type": "text", "text": …}, {"type": "span", "start": 1.8, "end": 2.5} or {"type": "box", "box": [x1, y1, x2, y2]}.'
            )
        return list(messages), {}
    item, question = medium_item(inputs, question)
    for name, (read, _) in _PROMPT_VALUES.items():
        if name in question:
            question[name] = read(question[name])
    return [{"role": "user", "content": [item, *_prompt(item["type"], question)]}], question


def medium_item(inputs, question: dict) -> tuple[dict, dict]:
    """
    Checks an image or video that is no chat.

    Args:
        inputs, question: as of `question_messages`.

    Returns:
        `(item, question)`: the content item of the image or video, and the arguments that do not belong to it.

    Raises:
        ValueError: naming the argument.
    """
    question = {key: value for key, value in question.items() if value is not None}
    inputs = _undecoded(inputs)
    if isinstance(inputs, dict):
        inputs = {key: value for key, value in inputs.items() if value is not None}
        if "role" in inputs:
            raise ValueError(f'A message of a chat is a dictionary with "role" and "content"; got {inputs!r:.200}.')
        kind = next((key for key in MEDIA_KEYS if key in inputs), None)
        unknown = set(inputs) - {*MEDIA_KEYS, *QUESTION_KEYS}
        if kind is None or unknown or all(key in inputs for key in MEDIA_KEYS):
            raise ValueError(
                f"An input must have exactly one of 'video' and 'image', and optionally {', '.join(QUESTION_KEYS)}; "
                f"got {', '.join(map(str, inputs))}."
            )
        media = _undecoded(inputs[kind])
        question |= {key: value for key, value in inputs.items() if key in QUESTION_KEYS}
    else:
        kind, media = media_kind(inputs), inputs
    if isinstance(media, os.PathLike):
        media = os.fspath(media)
    options = {key: question.pop(key) for key in _VIDEO_ITEM_KEYS if key in question}
    if kind == "image" and options:
        raise ValueError(f"{', '.join(options)} can only be given for a video; the input is an image.")
    _check_times_of_frames(options, media)
    return {"type": kind, kind: media, **options}, question


def _undecoded(media):
    """The bytes, or else the path, of an Image or Video column of `datasets` with `decode=False`; other media unchanged."""
    if isinstance(media, dict) and set(media) == {"bytes", "path"}:
        return media["path"] if media["bytes"] is None else media["bytes"]
    return media


def _check_times_of_frames(options: dict, media) -> None:
    """Raises an error for an invalid frame rate, and for a frame rate or times of frames that are given for a video file."""
    names = [name for name in ("fps", "timestamps") if name in options]
    if not names:
        return
    if "fps" in options:
        check_rate(options["fps"], "fps")
    if not all(is_frames(video) for video in flatten_videos(media)):
        raise ValueError(f"{' and '.join(names)} can only be given for a list or folder of frames; a video file has its own times.")


def check_times_can_be_converted(messages: list[dict], question: dict) -> None:
    """Raises an error if seconds are given for frames without a frame rate."""
    item = messages[0]["content"][0]
    if not question or item["type"] != "video" or "fps" in item or "timestamps" in item:
        return
    seconds = [name for name in ("start", "end") if name in item] + [name for name in ("span", "time") if name in question]
    seconds += [match[0] for match in INLINE_COORDINATE.finditer(question.get("text", "")) if match["unit"] == "s"]
    if seconds and all(is_frames(video) for video in flatten_videos(item["video"])):
        raise ValueError(
            f"{', '.join(seconds)}: the frame rate of the video is unknown. Give `fps`, in frames per second, or `timestamps`, in seconds."
        )


def _prompt(kind: str, question: dict) -> list[dict]:
    """Content items of the question after its image or video."""
    task, text = question.get("task"), question.get("text")
    if task is None:
        unused = [key for key in _PROMPT_VALUES if key in question]
        if unused:
            raise ValueError(f"{', '.join(unused)} need a task ({', '.join(TASKS)}); in free text write values like <t1.8s> or <w320px>.")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"`text` must be a string that is not blank, or a `task` must be given; got text={text!r}.")
        return [{"type": "text", "text": text}]
    if isinstance(task, str) and task in TASKS and TASKS[task].medium != kind:
        given = 'an image. Frames of a video are given as {"video": frames}' if kind == "image" else "a video"
        raise ValueError(f"task={task!r} is a task for {TASKS[task].medium}s, but the input is {given}.")
    return task_content(task, text=text, span=question.get("span"), time=question.get("time"), box=question.get("box"))


def _argument_names(question: dict) -> dict[str, str]:
    """Inline coordinate in the prompt → the argument of the question that it comes from, with its value."""
    return {
        coordinate[0]: f"{name}={question[name]!r}"
        for name, (_, write) in _PROMPT_VALUES.items()
        if name in question
        for coordinate in INLINE_COORDINATE.finditer(write(question[name]))
    }


def _prompt_positions(media: MediaInfo | None, question: dict) -> dict:
    """The values of the prompt as fractions, which are copied to a result that does not repeat them; see `parse_answer`."""
    given: dict = {}
    if media is None or "task" not in question:
        return given
    if "span" in question and "span" in TASKS[question["task"]].needs:
        given["span"] = tuple(media.time_position(seconds, "span") for seconds in question["span"])
    if question["task"] == "elc":
        given["start"] = media.time_position(question["time"] if "time" in question else question["span"][0], "time")
    if "box" in question:
        axes = ("width", "height", "width", "height")
        given["box"] = tuple(media.pixel_position(axis, pixels, "box") for axis, pixels in zip(axes, question["box"], strict=True))
    return given
