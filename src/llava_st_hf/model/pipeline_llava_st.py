# SPDX-License-Identifier: Apache-2.0
"""`pipeline("video-grounding")`: spans and bounding boxes for a question about a video or image."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from functools import partial
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import GenerationConfig, Pipeline
from transformers.pipelines.base import PipelineDataset
from transformers.pipelines.pt_utils import PipelineIterator
from transformers.utils import ModelOutput, logging

from .cached_media_llava_st import LastMedium
from .compatibility_llava_st import check_model_matches_processor
from .model_card_llava_st import LlavaSTPushToHubMixin
from .outputs_llava_st import split_generate_output
from .questions_llava_st import (
    QUESTION_KEYS,
    QUESTIONS_PER_BATCH,
    READING_KEYS,
    PreparedQuestion,
    QuestionContext,
    is_chat,
    prepare_question,
    read_answer,
    split_questions,
)
from .scores_llava_st import check_calibration, score_answer
from .session_llava_st import GroundingSession
from .shared_media_llava_st import KeptPrefix, can_share, join_prompts, prompt_prefix, prompts_for_generate, repeat_pixels
from .streaming_llava_st import stream_answer
from .tasks_llava_st import TASKS
from .window_answers_llava_st import WINDOW_KEYS, WindowedQuestions, WindowOptions


logger = logging.get_logger(__name__)


class _Rows(Dataset):
    """The samples of a `datasets.Dataset`, or the values of one of its columns, as a PyTorch dataset."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def _is_of_datasets(inputs) -> bool:
    """Whether `inputs` is a dataset or a column of the library `datasets`, without an import of that library."""
    return any(kind.__module__.split(".")[0] == "datasets" for kind in type(inputs).__mro__) and not isinstance(inputs, dict)


def _cut_off(answers: torch.Tensor, limit: int | None, ends: list[int], pad: int | None) -> list[bool]:
    """
    Whether the length limit ended each answer.

    Args:
        answers: (batch_size, length) generated ids.
        limit: maximum number of generated tokens.
        ends: ids of the end tokens.
        pad: id of the padding token.
    """
    if limit is None or answers.shape[1] < limit:
        return [False] * len(answers)
    # A row that ends in padding was finished before the others, by a stop string or another stopping criterion.
    return [not set(row) & set(ends) and row[-1:] != [pad] for row in answers.tolist()]


# Arguments of `generate` that ask for more than token ids. The results of the pipeline then contain its output.
_GENERATE_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "output_coordinate_scores")


class VideoGroundingPipeline(LlavaSTPushToHubMixin, Pipeline):
    """
    Spatio-temporal grounding: answers questions about videos and images with time spans in seconds and bounding boxes in pixels.

    Without `model` the demo model of this package is used, which was trained on synthetic shapes only and needs no download.

    ```python
    from transformers import pipeline
    import llava_st_hf

    grounder = pipeline("video-grounding", model="path/or/hub-id")
    grounder("clip.mp4", text="person takes a laptop from the shelf", task="tvg")
    grounder("photo.jpg", text="the left dog", task="rec")
    grounder([{"video": "a.mp4", "text": "When does the child fall?"}, {"image": "b.jpg", "task": "dgc"}], batch_size=2)
    ```
    """

    #: Real path of a checkpoint folder → message that is logged once when a pipeline with it is created.
    model_notices: ClassVar[dict[str, str]] = {}
    #: Converts the argument `refine` and the device of the model to a function of an answer and its medium; set by `llava_st_hf`. None for
    #: the files of a checkpoint alone.
    make_refinement: ClassVar[Callable[..., Callable[..., Any]] | None] = None

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
        Answers one question or several.

        Args:
            inputs: one of

                - media: a path or URL of a video or image, its bytes or an open binary file, a folder of image files (the frames of
                  a video), a PIL image, an array or tensor of frames. A list of frames is given as `{"video": frames}`, because a list
                  is a list of inputs;
                - a dictionary with "video" or "image" and any of the arguments of the question below;
                - a chat: messages in the transformers format (see `LlavaSTProcessor.apply_chat_template`);
                - a [`PreparedQuestion`] of `prepare_question`;
                - a list, generator, `torch.utils.data.Dataset` or `datasets.Dataset` of such, or a column of the last. Values that are
                  `None` in a sample count as absent.
            text (`str`): the question; with `task`, the expression or sentence that the prompt template is filled with. For several
                questions about one image or video, text, task, span, time and box may be lists of one length.
            task (`str`): prompt template used in training: "rec", "reg", "dgc", "tvg", "tr", "stvg", "svg" or "elc".
            clip (`[first, last]`), or start, end (`float`): clip of the video, in frames (both included) or in seconds.
            span (`(start, end)`): time span in seconds. Required by "tr" (describe this span) and "svg" (localize within this span).
            time (`float`): start of the event in seconds. Required by "elc".
            box (`[x1, y1, x2, y2]` or `{"xmin", "ymin", "xmax", "ymax"}`): bounding box in pixels. Required by "reg" and "elc".
            fps (`float`): frames per second of a video given as frames or as a folder of frames; an error for a video file, whose
                rate is read from the container.
            timestamps (`list[float]`): instead of `fps`, seconds at which each of the frames is displayed, ascending.
            num_frames (`int`): number of frames to sample.
            video_backend (`str`): video decoder: "pyav" (default), or "decord" for the files that docs/video_input.md lists.
            allow_truncated (`bool`): read truncated video files up to their end instead of raising an error; `notes` then states it.
            download_limits (`DownloadLimits`): maximum size and time of downloads, and the hosts that are allowed.
            grammar (`str`): form that answers are constrained to, so that each is complete and well-formed: "auto" (that of the question's
                task, or any form with spans and boxes for a question in free text) or a task; by default none. `notes` then has facts
                about the file only and, for free text, that several objects have a box at one time.
            batch_size (`int`): number of questions per batch: by default 1, and up to 8 for lists of values.
            speculative (`bool`): generate several tokens per pass of the decoder. By default only where no answer changes: in float32,
                without sampling, and where the other arguments allow it (see `LlavaSTForConditionalGeneration.generate`).
            compile (`bool`): compile vision encoder and decoder; the first call takes up to minutes longer.
            window (`float`): length in seconds of windows that the clip is divided into, for tasks "tvg" and "stvg". The question is asked
                for each window, so that long videos are sampled as densely as short ones, and the answers are merged. `notes` state the
                windows, and what was merged and left out. With `window` and `all`, `scores` is True by default, and without them only
                the presence ranks events.
            overlap (`float`): of neighbouring windows in seconds; by default a quarter of a window.
            all (`bool`): return every event that the question describes, or none if it does not occur, instead of the most probable one;
                for tasks "tvg" and "stvg", with or without `window`.
            scores (`bool`): return refined times and boxes, with bins and scores; see `parse_answer`. The calibration of the scores is
                `score_calibration` of the model's generation configuration; without one they are not calibrated.
            refine: an object detector with text queries or a video segmentation model, which locates the object in every frame of the
                span: a hub id or folder, `(model, processor)`, or a refiner; see `llava_st_hf.refinement.load`. The boxes of the result
                are those of it, with its scores and masks; the file is read a second time.
            max_new_tokens and other arguments of `generate`. With `output_scores`, `output_logits`, `output_attentions`,
                `output_hidden_states` or `output_coordinate_scores`, each result has "generation", the output of `generate` for this
                question as a dictionary of tensors, which is not JSON-serializable.

        Returns:
            A dictionary for one question, a list for a list, an iterator for a generator or dataset:
            `{"text", "events": [{"start", "end", "caption", "boxes": [{"time", "frame", "box"}]}], "notes", "media"}`, with "task" and
            "query" (the argument `text`) where they were given. Seconds are relative to the start of the file, also for a clip; boxes are
            in pixels of the original image or frame, after EXIF or container rotation. Events of an image have a caption and boxes without
            times. `notes` lists what was ignored in the answer and why. `media` is the size, frame rate and clip of the image or video
            (`MediaInfo.to_dict`). `Grounding.from_dict` converts the dictionary to objects. With `window` or `all`, "presence" of the
            answer and of each event is the probability that what is described occurs, and is this event. The events are merged from
            several answers, whose texts are the lines of "text", with coordinates relative to their windows.

        Raises:
            ValueError, OSError: naming what is wrong with media or question. Generated text never raises an exception.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        if isinstance(inputs, tuple) and not is_chat(inputs) and not (inputs and is_chat(inputs[0])):
            raise ValueError(f'A tuple of {len(inputs)} is not an input. Give frames as {{"video": frames}}, several inputs as a list.')
        if _is_of_datasets(inputs):
            inputs = _Rows(inputs) if isinstance(inputs, Sized) else (row for row in inputs)
        windows = {name: value for name in WINDOW_KEYS if (value := kwargs.pop(name, None)) is not None and value is not False}
        if windows:
            return self._in_windows(inputs, windows, kwargs)
        questions = split_questions(inputs, {name: kwargs[name] for name in QUESTION_KEYS if name in kwargs})
        if questions is None:
            return super().__call__(inputs, **kwargs)
        if not questions:
            return []
        kwargs = {name: value for name, value in kwargs.items() if name not in questions[0]}
        if kwargs.get("batch_size") is None and self._batch_size is None:
            kwargs["batch_size"] = min(len(questions), QUESTIONS_PER_BATCH)
        return super().__call__(questions, last_medium=LastMedium(always=True), **kwargs)

    def _in_windows(self, inputs, windows: dict, kwargs: dict):
        """The answers of a call with `window` or `all`: one for one question, a list for a list, an iterator for a generator or dataset."""
        size = kwargs.pop("batch_size", None)
        size = size if size is not None else self._batch_size if self._batch_size is not None else QUESTIONS_PER_BATCH
        if kwargs.pop("num_workers", None):
            raise ValueError("num_workers does not go with window and all: a video is read while its windows are answered. Leave it out.")
        if outputs := [name for name in _GENERATE_OUTPUTS if self._setting(kwargs, name)]:
            raise ValueError(f"{', '.join(outputs)} do not go with window and all: an answer is merged from several outputs of `generate`.")
        options = WindowOptions(**windows, batch_size=size)
        questions = split_questions(inputs, {name: kwargs[name] for name in QUESTION_KEYS if name in kwargs})
        if questions is not None:
            kwargs = {name: value for name, value in kwargs.items() if not questions or name not in questions[0]}
            return WindowedQuestions(self, questions, kwargs, options).answers() if questions else []
        if isinstance(inputs, list) and not is_chat(inputs):
            asked = [WindowedQuestions(self, [one], kwargs, options) for one in inputs]  # all are checked before the first is answered
            return [answer for one in asked for answer in one.answers()]
        if isinstance(inputs, (Generator, Dataset)):
            return (answer for one in inputs for answer in WindowedQuestions(self, [one], kwargs, options).answers())
        return WindowedQuestions(self, [inputs], kwargs, options).answers()[0]

    def open(self, inputs, **kwargs) -> GroundingSession:
        """
        Encodes an image or video once, for any number of questions: see [`GroundingSession`].

        Args:
            inputs: an image or video, or a dictionary with "video" or "image"; see `__call__`.
            clip, start, end, fps, timestamps, num_frames, video_backend, allow_truncated, download_limits: as of `__call__`.
            max_new_tokens and other arguments of `generate`: defaults of the questions.
        """
        return GroundingSession(self, inputs, **kwargs)

    def stream(self, inputs, **kwargs) -> Iterator[dict]:
        """
        Answers one question and returns the parts of the answer as soon as they are generated.

        Args:
            inputs, kwargs: one input and the arguments of a call.

        Returns:
            An iterator over dictionaries:

            - `{"type": "text", "text"}`: the next part of the text, with coordinate tokens. All of them together are the text of the
              answer, except for white space at its ends;
            - `{"type": "span", "start", "end"}` in seconds;
            - `{"type": "box", "box"}` in pixels, in videos with `"time"` and `"frame"`;
            - `{"type": "event", "event"}`: an event of the result, when the next one begins or the answer ends;
            - `{"type": "answer", "answer"}`: the last item, the result of a call.

            With `scores=True`, values are refined and scored when the answer ends: spans, boxes and events before that are at the bins.
            With `refine`, only the answer has the boxes of the detector.

            Generation runs in a thread. It stops at the next token when the iterator is closed, as at the end of a loop that is left by
            `break`, if no other variable refers to the iterator.

        Raises:
            ValueError, OSError: as a call does, for media and question at once and for arguments of `generate` by the iterator.
        """
        if (isinstance(inputs, (list, tuple, Generator, Dataset)) and not is_chat(inputs)) or _is_of_datasets(inputs):
            raise ValueError(
                f"stream answers one question; got a {type(inputs).__name__}. Call it for each question, or call the pipeline."
            )
        own = self._preprocess_params, self._forward_params, self._postprocess_params
        preprocess, forward, postprocess = ({**old, **new} for old, new in zip(own, self._sanitize_parameters(**kwargs), strict=True))
        question = self.preprocess(inputs, **preprocess)
        batch, context = self._collate([question]), question["context"]
        return stream_answer(
            lambda streamer: self.postprocess(self.forward(batch, streamer=streamer, **forward), **postprocess)[0],
            self.processor.tokenizer,
            context.medium,
            (self.processor.num_temporal_bins, self.processor.num_spatial_bins),
            context.prompt_positions.get("start"),
        )

    def _sanitize_parameters(self, generate_kwargs=None, **kwargs):
        question = {name: kwargs.pop(name) for name in QUESTION_KEYS if name in kwargs}
        reading = {name: kwargs.pop(name) for name in (*READING_KEYS, "processor_kwargs", "last_medium") if name in kwargs}
        if given := [name for name in WINDOW_KEYS if kwargs.get(name) is not None]:
            raise ValueError(
                f"{', '.join(given)} can only be given to a call of the pipeline: not to its constructor, `stream` or a session."
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in WINDOW_KEYS}
        if (grammar := kwargs.get("grammar")) not in (None, "auto", *TASKS):
            raise ValueError(f"grammar={grammar!r} must be 'auto', None or a task: {', '.join(TASKS)}.")
        refinement = {}
        if "refine" in kwargs:
            refine = kwargs.pop("refine")
            reading["keep_source"] = refine is not None
            refinement["refine"] = None if refine is None else self._refinement(refine)
        return {**question, **reading}, {**(generate_kwargs or {}), **kwargs}, refinement

    def _refinement(self, refine) -> Callable[..., Any]:
        if self.make_refinement is None:
            raise ValueError(f"refine={refine!r:.100} needs the package llava-st-hf: install it, and import llava_st_hf.")
        loaded = self.__dict__.setdefault("_refinements", {})  # by name: a model is loaded once
        if not isinstance(refine, (str, os.PathLike)):
            return self.make_refinement(refine, self.device)
        name = os.fspath(refine)
        if name not in loaded:
            loaded[name] = self.make_refinement(name, self.device)
        return loaded[name]

    # Input

    def preprocess(self, inputs, **question) -> PreparedQuestion:
        if not isinstance(inputs, PreparedQuestion):
            return prepare_question(self.processor, inputs, **question)
        if question.get("keep_source") and inputs["context"].source is None:
            raise ValueError("refine reads the image or video again: prepare the question with keep_source=True.")
        return inputs

    # Model

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """As in transformers, with a collate function for exact coordinates and samples without media, and with one encoding for
        consecutive questions about the same image or video."""
        kept = KeptPrefix()
        preprocess_params = {"last_medium": LastMedium(), **preprocess_params}
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            num_workers = min(num_workers, 1)  # a generator cannot be split between processes
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=self._collate)
        batches = PipelineIterator(({**batch, "kept": kept} for batch in loader), self.forward, forward_params)
        return (answer for batch in batches for answer in self.postprocess(batch, **postprocess_params))

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        batch = self._collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(batch, **forward_params), **postprocess_params)[0]

    def _collate(self, items: Sequence[dict]) -> dict[str, Any]:
        samples, media_ids = [item["model_inputs"] for item in items], self.model.config.all_media_token_ids
        prefixes = [item.get("prefix") or prompt_prefix(item["model_inputs"], item.get("medium"), media_ids) for item in items]
        inputs = join_prompts(samples, prefixes, self.processor.tokenizer.pad_token_id)
        return {"model_inputs": inputs, "prefixes": prefixes, "contexts": [item["context"] for item in items]}

    def _forward(self, batch, grammar: str | None = None, scores: bool = False, **generate_kwargs) -> dict[str, Any]:
        inputs, prefixes, contexts, kept = (batch.get(name) for name in ("model_inputs", "prefixes", "contexts", "kept"))
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                inputs[name] = inputs[name].to(self.model.dtype)
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs)
        if grammar is not None:
            generate_kwargs["grammar"] = self._constraint(contexts, grammar)
        if (self._setting(generate_kwargs, "num_return_sequences") or 1) != 1:
            raise ValueError(f"num_return_sequences must be 1, got {self._setting(generate_kwargs, 'num_return_sequences')}.")
        if generate_kwargs.setdefault("speculative", None) is not False and "draft_templates" not in generate_kwargs:
            generate_kwargs["draft_templates"] = [self.processor.draft_template(context.task) for context in contexts]
        returns_output = any(self._setting(generate_kwargs, name) for name in _GENERATE_OUTPUTS)
        if scores:
            check_calibration(self._score_calibration)
            generate_kwargs["output_coordinate_scores"] = True
        if scores or returns_output:
            generate_kwargs["return_dict_in_generate"] = True
        num_beams = self._setting(generate_kwargs, "num_beams") or 1
        if self._can_share(generate_kwargs):
            vision_chunk_size = generate_kwargs.get("vision_chunk_size")
            inputs = prompts_for_generate(self.model, inputs, prefixes, kept, num_beams, vision_chunk_size)
        else:
            inputs, kept = repeat_pixels(inputs, prefixes), None
        length = inputs["input_ids"].shape[1]
        generated = self.model.generate(**inputs, **generate_kwargs)
        if kept is not None:
            kept.update(inputs, prefixes, num_beams)
        outputs: list[dict] = [{}] * len(contexts)
        coordinate_logits = None
        if isinstance(generated, ModelOutput):
            coordinate_logits = generated["coordinate_logits"] if scores else None
            if returns_output:
                outputs = split_generate_output(generated, len(outputs))
            generated = generated.sequences
        answers = generated[:, length:]
        return {
            "answers": answers,
            "cut_off": self._rows_cut_off(answers, length, generate_kwargs),
            "contexts": contexts,
            "coordinate_logits": [None] * len(answers) if coordinate_logits is None else coordinate_logits,
            "generation": outputs,
            "constrained": [grammar is not None] * len(answers),
        }

    def _constraint(self, contexts: list[QuestionContext], grammar: str):
        """Constraint of the answers to a batch of questions; see `grammar` of `__call__`."""
        given = [context.prompt_positions for context in contexts]
        return self.processor.answer_constraint(
            tasks=[context.task if grammar == "auto" else grammar for context in contexts],
            media=[None if context.medium is None else context.medium.kind for context in contexts],
            spans=[values.get("span") or ((values["start"], None) if "start" in values else None) for values in given],
            device=self.model.device,
        )

    @property
    def _score_calibration(self) -> dict | None:
        return getattr(self.model.generation_config, "score_calibration", None)

    def _can_share(self, generate_kwargs: dict) -> bool:
        return can_share(self.model, partial(self._setting, generate_kwargs))

    def _setting(self, generate_kwargs: dict, name: str):
        """Value of a generation setting: of the call, else of its `generation_config`, else of the model."""
        sources = (generate_kwargs.get("generation_config"), self.model.generation_config)
        values = (generate_kwargs.get(name), *(getattr(source, name, None) for source in sources))
        return next((value for value in values if value is not None), None)

    def _rows_cut_off(self, answers: torch.Tensor, prompt_length: int, generate_kwargs: dict) -> list[bool]:
        tokenizer = self.processor.tokenizer
        limit, max_length = (self._setting(generate_kwargs, name) for name in ("max_new_tokens", "max_length"))
        if limit is None and max_length is not None:
            limit = max_length - prompt_length
        ends = self._setting(generate_kwargs, "eos_token_id")
        if ends is None:  # `generate` does not stop at an end token then, but the answer is complete at it
            ends = tokenizer.eos_token_id
        ends = torch.as_tensor([] if ends is None else ends).flatten().tolist()
        pad = self._setting(generate_kwargs, "pad_token_id")
        cut_off = _cut_off(answers, limit, ends, tokenizer.pad_token_id if pad is None else pad)
        stops = self._setting(generate_kwargs, "stop_strings") or ()
        stops = (stops,) if isinstance(stops, str) else stops
        # A stop string may be completed by the last token allowed.
        return [cut and not any(stop in tokenizer.decode(ids) for stop in stops) for cut, ids in zip(cut_off, answers, strict=True)]

    # Output

    def postprocess(self, outputs, refine: Callable[..., Any] | None = None) -> list[dict]:
        names = ("answers", "cut_off", "contexts", "constrained", "coordinate_logits", "generation")
        answers = [self._answer(*row) for row in zip(*(outputs[name] for name in names), strict=True)]
        if refine is None:
            return answers
        contexts = outputs["contexts"]
        return [
            answer if context.medium is None else refine(answer, **context.source)
            for answer, context in zip(answers, contexts, strict=True)
        ]

    def _answer(
        self, ids: torch.Tensor, cut_off: bool, context: QuestionContext, constrained: bool, coordinate_logits, generation: dict
    ) -> dict:
        processor, text = self.processor, self.processor.decode_answer(ids)
        bins = (processor.num_temporal_bins, processor.num_spatial_bins)
        coordinates, calibration = None, None
        if coordinate_logits is not None:
            coordinates, calibration = score_answer(processor, ids, coordinate_logits), self._score_calibration
        # With a grammar, a question in free text that is answered in words needs no coordinates.
        answer = read_answer(
            text,
            context,
            *bins,
            cut_off_after=len(ids) if cut_off else None,
            words_suffice=constrained,
            coordinates=coordinates,
            score_calibration=calibration,
        )
        if generation:
            answer["generation"] = generation
        return answer

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor, with the code of both and of the pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
