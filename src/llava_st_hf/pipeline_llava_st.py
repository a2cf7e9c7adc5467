# SPDX-License-Identifier: Apache-2.0
"""`pipeline("video-grounding")`: a video or image and a question in, events with times and boxes out."""

import mimetypes
import os
from collections.abc import Sized
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import GenerationConfig, Pipeline
from transformers.pipelines.base import PipelineDataset
from transformers.pipelines.pt_utils import PipelineIterator
from transformers.utils import ModelOutput

from .coordinates import coordinate_token
from .grounding import Media, parse_answer
from .tasks import TASKS, task_content


_MEDIA_KEYS = ("video", "image")
_QUESTION_KEYS = ("text", "task", "clip", "start", "end", "span", "box", "time")


def _medium_of(media) -> str:
    """Tells "image" or "video" by the kind of object or the file's name."""
    if isinstance(media, PIL.Image.Image):
        return "image"
    if isinstance(media, (np.ndarray, torch.Tensor)):
        return "image" if media.ndim <= 3 else "video"
    if isinstance(media, (list, tuple)):
        return "video"  # frames
    if isinstance(media, (str, os.PathLike)):
        kind = mimetypes.guess_type(os.fspath(media).split("?")[0])[0] or "video"
        return "image" if kind.startswith("image/") and kind != "image/gif" else "video"
    raise ValueError(f"Media must be a path, a URL, a PIL image, an array or a list of frames; got {type(media).__name__}.")


def _is_chat(inputs) -> bool:
    return isinstance(inputs, (list, tuple)) and len(inputs) > 0 and isinstance(inputs[0], dict) and "role" in inputs[0]


class VideoGroundingPipeline(Pipeline):
    """
    Answers questions about videos and images with times and places.

    ```python
    from transformers import pipeline
    import llava_st_hf

    grounder = pipeline("video-grounding", model="path/or/hub-id")
    grounder("clip.mp4", text="person takes a laptop from the shelf", task="tvg")
    grounder("photo.jpg", text="the left dog", task="rec")
    grounder([{"video": "a.mp4", "text": "When does the child fall?"}, {"image": "b.jpg", "task": "dgc"}], batch_size=2)
    ```
    """

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
        config, processor = self.model.config, self.processor
        bins = (config.num_temporal_bins, config.num_spatial_bins) if config.use_lape else (0, 0)
        expected = (config.coordinate_start_token_id, *bins)
        start = processor.tokenizer.get_added_vocab().get(coordinate_token("temporal", 0))
        found = (start, processor.num_temporal_bins, processor.num_spatial_bins)
        if expected != found:
            raise ValueError(
                "Model and processor do not belong together: the id of <TEMP-000> and the numbers of temporal and spatial bins are "
                f"{expected} in the model and {found} in the tokenizer."
            )

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: one of

                - media: a path or URL of a video or image, a PIL image, an array or tensor of frames;
                - a dictionary with "video" or "image" and any of the question's keys below;
                - a chat: messages in the transformers format (see `LlavaSTProcessor.apply_chat_template`);
                - a list, generator or `torch.utils.data.Dataset` of such.
            text (`str`): the question; with `task`, the expression or sentence that its wording is filled with.
            task (`str`): "rec", "reg", "dgc", "tvg", "tr", "stvg", "svg" or "elc"; picks the wording of the prompt.
            clip (`[first, last]`), or start, end (`float`): the part of the video to look at, in frames or in seconds.
            span (`(start, end)`): seconds, what "tr" and "svg" are about.
            time (`float`): seconds, the start of the event that "elc" is about.
            box (`[x1, y1, x2, y2]`): pixels, what "reg" and "elc" are about.
            batch_size (`int`): how many questions are answered at once.
            max_new_tokens and other arguments of `generate`.

        Returns:
            For one input a dictionary, for a list a list, for a generator or dataset an iterator:
            `{"text", "events": [{"start", "end", "caption", "boxes": [{"time", "frame", "box"}]}], "notes"}` in seconds and pixels
            of the original file. Events of an image have a caption and boxes without times. `notes` says what could not be read.

        Raises:
            ValueError, OSError: naming what is wrong with media or question. Nothing is raised on what the model writes.
        """
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, generate_kwargs=None, **kwargs):
        question = {name: kwargs.pop(name) for name in _QUESTION_KEYS if name in kwargs}
        processor_kwargs = {name: kwargs.pop(name) for name in ("num_frames", "processor_kwargs") if name in kwargs}
        return {**question, **processor_kwargs}, {**(generate_kwargs or {}), **kwargs}, {}

    # Input

    def preprocess(self, inputs, num_frames: int | None = None, processor_kwargs: dict | None = None, **question) -> dict[str, Any]:
        messages, given = self._messages(inputs, question)
        processor_kwargs = dict(processor_kwargs or {})
        if num_frames is not None:
            processor_kwargs["num_frames"] = num_frames
        model_inputs = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs=processor_kwargs,
        )
        media = model_inputs.media[0]
        return {"model_inputs": dict(model_inputs), "context": (media[-1] if media else None, given)}

    def _messages(self, inputs, question: dict) -> tuple[list[dict], dict]:
        """A chat, and what its question gave in seconds and pixels."""
        messages = getattr(inputs, "messages", inputs)  # a chat as transformers wraps it
        if _is_chat(messages):
            if question:
                raise ValueError(f"A chat says everything itself; {', '.join(question)} cannot be given beside it.")
            return list(messages), {}
        if isinstance(inputs, dict):
            medium = next((key for key in _MEDIA_KEYS if key in inputs), None)
            unknown = set(inputs) - {*_MEDIA_KEYS, *_QUESTION_KEYS}
            if medium is None or unknown or all(key in inputs for key in _MEDIA_KEYS):
                raise ValueError(
                    f"An input has exactly one of 'video' and 'image', and any of {', '.join(_QUESTION_KEYS)}; "
                    f"got {', '.join(map(str, inputs))}."
                )
            media = inputs[medium]
            question = {**question, **{key: value for key, value in inputs.items() if key in _QUESTION_KEYS}}
        else:
            medium, media = _medium_of(inputs), inputs
        if isinstance(media, os.PathLike):
            media = os.fspath(media)
        question = {key: value for key, value in question.items() if value is not None}
        part = {key: question.pop(key) for key in ("clip", "start", "end") if key in question}
        if part and medium == "image":
            raise ValueError(f"{', '.join(part)} cut out a part of a video; the input is an image.")
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
        if task in TASKS and TASKS[task].medium != medium:
            raise ValueError(
                f"task={task!r} is about {TASKS[task].medium}s, but the input is {'an image' if medium == 'image' else 'a video'}."
            )
        return task_content(task, text=text, span=question.get("span"), start=question.get("time"), box=question.get("box"))

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
        """Joins samples of (1, length) tensors, padded at the left; media follow one another in the order of the samples."""
        samples = [item["model_inputs"] for item in items]
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "coordinates": float("nan")}
        batch = {}
        for name, value in padding.items():
            if not any(name in sample for sample in samples):
                continue
            rows = [sample.get(name, torch.full(sample["input_ids"].shape, value, dtype=torch.float32))[0] for sample in samples]
            batch[name] = pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
        for name in ("pixel_values", "pixel_values_videos"):
            pixels = [sample[name] for sample in samples if name in sample]
            if len({p.shape[1:] for p in pixels}) > 1:
                frames = sorted({p.shape[1] for p in pixels})
                raise ValueError(f"Videos of {frames} frames cannot share a batch; give num_frames, or batch_size=1.")
            if pixels:
                batch[name] = torch.cat(pixels)
        return {"model_inputs": batch, "contexts": [item["context"] for item in items]}

    def _forward(self, batch, **generate_kwargs) -> dict[str, Any]:
        inputs = batch["model_inputs"]
        length = inputs["input_ids"].shape[1]
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                inputs[name] = inputs[name].to(self.model.dtype)
        generated = self.model.generate(**inputs, **self._prepare_generate_kwargs(generate_kwargs))
        if isinstance(generated, ModelOutput):
            generated = generated.sequences
        if len(generated) != len(batch["contexts"]):
            answers, questions = len(generated), len(batch["contexts"])
            raise ValueError(f"num_return_sequences must be 1: there is one answer to each question, not {answers} to {questions}.")
        return {"answers": generated[:, length:], "contexts": batch["contexts"]}

    # Output

    def postprocess(self, outputs) -> list[dict]:
        return [self._answer(ids, media, question) for ids, (media, question) in zip(outputs["answers"], outputs["contexts"], strict=True)]

    def _answer(self, ids: torch.Tensor, media: Media | None, question: dict) -> dict:
        processor = self.processor
        given: dict[str, Any] = {}
        if media is not None and question.get("task"):
            if (span := question.get("span")) is not None and TASKS[question["task"]].needs[:1] == ("span",):
                given["span"] = tuple(media.time_position(float(t), "span") for t in span)
            if question["task"] == "elc":
                given["start"] = media.time_position(float(question.get("time", (question.get("span") or [0])[0])), "time")
            if (box := question.get("box")) is not None:
                axes = ("width", "height", "width", "height")
                given["box"] = tuple(media.pixel_position(axis, float(v), "box") for axis, v in zip(axes, box, strict=True))
        answer = parse_answer(processor.decode_answer(ids), media, processor.num_temporal_bins, processor.num_spatial_bins, **given)
        ends = [e for e in (self.model.generation_config.eos_token_id, processor.tokenizer.eos_token_id) if e is not None]
        if not any(torch.isin(ids.cpu(), torch.tensor(e)).any() for e in ends):
            answer["notes"].append(f"The answer was cut off after {len(ids)} tokens; raise max_new_tokens for all of it.")
        return answer

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor. No code is copied beside them: importing this package is what registers the pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
