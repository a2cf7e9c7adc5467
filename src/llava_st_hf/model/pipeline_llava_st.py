# SPDX-License-Identifier: Apache-2.0
"""`pipeline("video-grounding")`: a video or image and a question in, events with times and boxes out."""

import os
from collections.abc import Sized
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import GenerationConfig, Pipeline
from transformers.pipelines.base import PipelineDataset
from transformers.pipelines.pt_utils import PipelineIterator
from transformers.utils import ModelOutput, logging

from .batch_feature_llava_st import join_samples
from .checks_llava_st import check_rate
from .compatibility_llava_st import check_model_matches_processor
from .downloads_llava_st import DownloadLimits
from .grounding_llava_st import MediaInfo, parse_answer
from .inline_coordinates_llava_st import INLINE_COORDINATE
from .media_kind_llava_st import media_kind
from .messages_llava_st import read_box, read_span, read_time
from .tasks_llava_st import TASKS, task_content
from .video_frames_llava_st import flatten_videos, is_frames


logger = logging.get_logger(__name__)

_MEDIA_KEYS = ("video", "image")
_QUESTION_KEYS = ("text", "task", "clip", "start", "end", "span", "box", "time", "fps", "timestamps")
_READING_KEYS = ("num_frames", "video_backend", "allow_truncated", "download_limits")  # arguments of the processor
_VIDEO_ITEM_KEYS = ("clip", "start", "end", "fps", "timestamps")  # of the keys above those that stand in the item of the video


def _undecoded(media):
    """The bytes, or else the path, of an Image or Video column of `datasets` with `decode=False`; other media as they are."""
    if isinstance(media, dict) and set(media) == {"bytes", "path"}:
        return media["path"] if media["bytes"] is None else media["bytes"]
    return media


class _Rows(Dataset):
    """The rows of a `datasets.Dataset`, or the values of a column of it, as PyTorch's loader takes them."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def _is_of_datasets(inputs) -> bool:
    """Whether it is a dataset or a column of the library `datasets`, which this package does not need otherwise."""
    return any(kind.__module__.split(".")[0] == "datasets" for kind in type(inputs).__mro__) and not isinstance(inputs, dict)


def _is_chat(inputs) -> bool:
    return isinstance(inputs, (list, tuple)) and len(inputs) > 0 and isinstance(inputs[0], dict) and "role" in inputs[0]


def _check_times_of_frames(part: dict, media) -> None:
    """Refuses the frame rate or times of frames where they are no frame rate, or where the video is a file."""
    names = [name for name in ("fps", "timestamps") if name in part]
    if not names:
        return
    if "fps" in part:
        check_rate(part["fps"], "fps")
    if not all(is_frames(video) for video in flatten_videos(media)):
        is_for = "is" if len(names) == 1 and names[0] == "fps" else "are"
        raise ValueError(f"{' and '.join(names)} {is_for} for frames given one by one; a video file has its own times.")


def _cut_off(answers: torch.Tensor, limit: int | None, ends: list[int], pad: int | None) -> list[bool]:
    """Of each row whether `generate` stopped it for its length alone: `limit` tokens without an end token."""
    if limit is None or answers.shape[1] < limit:
        return [False] * len(answers)
    # A row that ends in padding was done before the others, by a stop string or a criterion of the caller's.
    return [not set(row) & set(ends) and row[-1:] != [pad] for row in answers.tolist()]


class VideoGroundingPipeline(Pipeline):
    """
    Answers questions about videos and images with times and places.

    Without `model` it takes the small model that comes with the package, which was trained on drawn moving shapes only and works offline.

    ```python
    from transformers import pipeline
    import llava_st_hf

    grounder = pipeline("video-grounding", model="path/or/hub-id")
    grounder("clip.mp4", text="person takes a laptop from the shelf", task="tvg")
    grounder("photo.jpg", text="the left dog", task="rec")
    grounder([{"video": "a.mp4", "text": "When does the child fall?"}, {"image": "b.jpg", "task": "dgc"}], batch_size=2)
    ```
    """

    #: Real path of a checkpoint folder → text that is logged once when a pipeline is made of it.
    model_notices: ClassVar[dict[str, str]] = {}

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False
    _pipeline_calls_generate = True
    # An answer with a box at each of 100 moments takes about 1,400 tokens.
    _default_generation_config = GenerationConfig(max_new_tokens=2048)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_model_matches_processor(self.model.config, self.processor)
        if notice := self.model_notices.get(os.path.realpath(self.model.name_or_path)):
            logger.warning_once(notice)

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: one of

                - media: a path or URL of a video or image, its bytes or an open binary file, a folder of image files (the frames of
                  a video), a PIL image, an array or tensor of frames (frames in a list go as `{"video": frames}`: a list is a list
                  of inputs);
                - a dictionary with "video" or "image" and any of the question's keys below;
                - a chat: messages in the transformers format (see `LlavaSTProcessor.apply_chat_template`);
                - a list, generator, `torch.utils.data.Dataset` or `datasets.Dataset` of such, or a column of the last; what is
                  `None` in a row counts as absent.
            text (`str`): the question; with `task`, the expression or sentence that its wording is filled with.
            task (`str`): "rec", "reg", "dgc", "tvg", "tr", "stvg", "svg" or "elc"; picks the wording of the prompt.
            clip (`[first, last]`), or start, end (`float`): the part of the video to look at, in frames or in seconds.
            span (`(start, end)`): seconds, what "tr" and "svg" are about.
            time (`float`): seconds, the start of the event that "elc" is about.
            box (`[x1, y1, x2, y2]` or `{"xmin", "ymin", "xmax", "ymax"}`): pixels, what "reg" and "elc" are about.
            fps (`float`): frames per second of a video given as frames or as a folder of frames; a file has its own.
            timestamps (`list[float]`): in place of `fps`, seconds at which each of the frames is displayed, ascending.
            video_backend (`str`): what reads video files: "pyav", the default, or "decord", which reads files of the kinds that
                docs/video_input.md lists; all others go to PyAV.
            allow_truncated (`bool`): read truncated video files as far as they go, in place of refusing them; `notes` then says so.
            download_limits (`DownloadLimits`): what a download may take, and which hosts it may come from.
            batch_size (`int`): how many questions are answered at once.
            max_new_tokens and other arguments of `generate`.

        Returns:
            For one input a dictionary, for a list a list, for a generator or dataset an iterator:
            `{"text", "events": [{"start", "end", "caption", "boxes": [{"time", "frame", "box"}]}], "notes"}` in seconds and pixels
            of the original file. Events of an image have a caption and boxes without times. `notes` says what could not be read,
            and what to know of the file.

        Raises:
            ValueError, OSError: naming what is wrong with media or question. Nothing is raised on what the model writes.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        if isinstance(inputs, tuple) and not _is_chat(inputs) and not (inputs and _is_chat(inputs[0])):
            raise ValueError(f'A tuple of {len(inputs)} is no input. Give frames as {{"video": frames}}, and several inputs as a list.')
        if _is_of_datasets(inputs):
            inputs = _Rows(inputs) if isinstance(inputs, Sized) else (row for row in inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, generate_kwargs=None, **kwargs):
        question = {name: kwargs.pop(name) for name in _QUESTION_KEYS if name in kwargs}
        reading = {name: kwargs.pop(name) for name in (*_READING_KEYS, "processor_kwargs") if name in kwargs}
        return {**question, **reading}, {**(generate_kwargs or {}), **kwargs}, {}

    # Input

    def preprocess(
        self,
        inputs,
        num_frames: int | None = None,
        video_backend: str | None = None,
        allow_truncated: bool | None = None,
        download_limits: DownloadLimits | None = None,
        processor_kwargs: dict | None = None,
        **question,
    ) -> dict[str, Any]:
        messages, question = self._messages(inputs, question)
        reading = zip(_READING_KEYS, (num_frames, video_backend, allow_truncated, download_limits), strict=True)
        processor_kwargs = {**(processor_kwargs or {}), **{name: value for name, value in reading if value is not None}}
        if "video_metadata" not in {*processor_kwargs, *processor_kwargs.get("videos_kwargs", {})}:
            self._check_rate(messages, question)
        model_inputs = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs=processor_kwargs,
        )
        media = model_inputs.media[0]
        medium = media[-1] if media else None
        return {"model_inputs": dict(model_inputs), "context": (medium, self._given(medium, question))}

    @staticmethod
    def _check_rate(messages: list[dict], question: dict) -> None:
        """Refuses seconds about frames without a frame rate, with advice that fits a call of the pipeline."""
        item = messages[0]["content"][0]
        if not question or item["type"] != "video" or "fps" in item or "timestamps" in item:
            return
        seconds = [name for name in ("start", "end") if name in item] + [name for name in ("span", "time") if name in question]
        seconds += [match[0] for match in INLINE_COORDINATE.finditer(question.get("text", "")) if match["unit"] == "s"]
        if seconds and all(is_frames(video) for video in flatten_videos(item["video"])):
            raise ValueError(
                f"{', '.join(seconds)}: the frame rate of the video is unknown. Give fps, the frames per second, or timestamps beside them."
            )

    def _messages(self, inputs, question: dict) -> tuple[list[dict], dict]:
        """A chat, and what its question gave: checked, in seconds and pixels."""
        question = {key: value for key, value in question.items() if value is not None}
        messages = getattr(inputs, "messages", inputs)  # a chat as transformers wraps it
        if _is_chat(messages):
            if question:
                raise ValueError(f"A chat says everything itself; {', '.join(question)} cannot be given beside it.")
            return list(messages), {}
        inputs = _undecoded(inputs)
        if isinstance(inputs, dict):
            inputs = {key: value for key, value in inputs.items() if value is not None}
            if "role" in inputs:
                raise ValueError(f'A message of a chat is a dictionary with "role" and "content"; got {inputs!r:.200}.')
            medium = next((key for key in _MEDIA_KEYS if key in inputs), None)
            unknown = set(inputs) - {*_MEDIA_KEYS, *_QUESTION_KEYS}
            if medium is None or unknown or all(key in inputs for key in _MEDIA_KEYS):
                raise ValueError(
                    f"An input has exactly one of 'video' and 'image', and any of {', '.join(_QUESTION_KEYS)}; "
                    f"got {', '.join(map(str, inputs))}."
                )
            media = _undecoded(inputs[medium])
            question |= {key: value for key, value in inputs.items() if key in _QUESTION_KEYS}
        else:
            medium, media = media_kind(inputs), inputs
        if isinstance(media, os.PathLike):
            media = os.fspath(media)
        part = {key: question.pop(key) for key in _VIDEO_ITEM_KEYS if key in question}
        if medium == "image" and part:
            raise ValueError(f"{', '.join(part)} cut out a part of a video or say when its frames are displayed; the input is an image.")
        _check_times_of_frames(part, media)
        for name, read in (("span", read_span), ("time", read_time), ("box", read_box)):
            if name in question:
                question[name] = read(question[name])
        return [{"role": "user", "content": [{"type": medium, medium: media, **part}, *self._words(medium, question)]}], question

    @staticmethod
    def _words(medium: str, question: dict) -> list[dict]:
        task, text = question.get("task"), question.get("text")
        if task is None:
            unused = [key for key in ("span", "box", "time") if key in question]
            if unused:
                raise ValueError(f"{', '.join(unused)} need a task ({', '.join(TASKS)}); in free text write them like <t1.8s> or <w320px>.")
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text={text!r} asks nothing; give text, or a task that needs none.")
            return [{"type": "text", "text": text}]
        if isinstance(task, str) and task in TASKS and TASKS[task].medium != medium:
            given = 'an image. Frames of a video go as {"video": frames}' if medium == "image" else "a video"
            raise ValueError(f"task={task!r} is about {TASKS[task].medium}s, but the input is {given}.")
        return task_content(task, text=text, span=question.get("span"), time=question.get("time"), box=question.get("box"))

    @staticmethod
    def _given(media: MediaInfo | None, question: dict) -> dict[str, Any]:
        """What the question already gave, as the fractions that fill in what the answer leaves out."""
        given: dict[str, Any] = {}
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

    # Model

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """As in transformers, with a collate that knows exact positions and samples without media."""
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            num_workers = min(num_workers, 1)  # a generator cannot be shared out
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=self._collate)
        batches = PipelineIterator(loader, self.forward, forward_params)
        return (answer for batch in batches for answer in self.postprocess(batch, **postprocess_params))

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        batch = self._collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(batch, **forward_params), **postprocess_params)[0]

    def _collate(self, items: list[dict]) -> dict[str, Any]:
        batch = join_samples([item["model_inputs"] for item in items], self.processor.tokenizer.pad_token_id, "left")
        return {"model_inputs": batch, "contexts": [item["context"] for item in items]}

    def _forward(self, batch, **generate_kwargs) -> dict[str, Any]:
        inputs = batch["model_inputs"]
        length = inputs["input_ids"].shape[1]
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                inputs[name] = inputs[name].to(self.model.dtype)
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs)
        if (self._setting(generate_kwargs, "num_return_sequences") or 1) != 1:
            raise ValueError("num_return_sequences must be 1: there is one answer to each question.")
        generated = self.model.generate(**inputs, **generate_kwargs)
        if isinstance(generated, ModelOutput):
            generated = generated.sequences
        answers = generated[:, length:]
        return {"answers": answers, "cut_off": self._rows_cut_off(answers, length, generate_kwargs), "contexts": batch["contexts"]}

    def _setting(self, generate_kwargs: dict, name: str):
        """A generation setting as `generate` sees it: the call's, else its configuration's, else the model's."""
        sources = (generate_kwargs.get("generation_config"), self.model.generation_config)
        values = (generate_kwargs.get(name), *(getattr(source, name, None) for source in sources))
        return next((value for value in values if value is not None), None)

    def _rows_cut_off(self, answers: torch.Tensor, prompt_length: int, generate_kwargs: dict) -> list[bool]:
        tokenizer = self.processor.tokenizer
        limit, max_length = (self._setting(generate_kwargs, name) for name in ("max_new_tokens", "max_length"))
        if limit is None and max_length is not None:
            limit = max_length - prompt_length
        ends = self._setting(generate_kwargs, "eos_token_id")
        if ends is None:  # nothing stops `generate` then, but the model has said that it is done
            ends = tokenizer.eos_token_id
        ends = torch.as_tensor([] if ends is None else ends).flatten().tolist()
        pad = self._setting(generate_kwargs, "pad_token_id")
        cut_off = _cut_off(answers, limit, ends, tokenizer.pad_token_id if pad is None else pad)
        stops = self._setting(generate_kwargs, "stop_strings") or ()
        stops = (stops,) if isinstance(stops, str) else stops
        # A stop string may be complete with the very last token allowed.
        return [cut and not any(stop in tokenizer.decode(ids) for stop in stops) for cut, ids in zip(cut_off, answers, strict=True)]

    # Output

    def postprocess(self, outputs) -> list[dict]:
        rows = zip(outputs["answers"], outputs["cut_off"], outputs["contexts"], strict=True)
        return [self._answer(ids, cut_off, media, given) for ids, cut_off, (media, given) in rows]

    def _answer(self, ids: torch.Tensor, cut_off: bool, media: MediaInfo | None, given: dict) -> dict:
        processor = self.processor
        answer = parse_answer(processor.decode_answer(ids), media, processor.num_temporal_bins, processor.num_spatial_bins, **given)
        if cut_off:
            answer["notes"].append(f"The answer was cut off after {len(ids)} tokens; raise max_new_tokens for all of it.")
        return answer

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor. No code is copied beside them: importing this package is what registers the pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
