# SPDX-License-Identifier: Apache-2.0
"""Sessions of `pipeline("video-grounding")`: an image or video is read and encoded once, for any number of questions and follow-up
questions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from .cache_name_llava_st import CACHE_NAME
from .cached_media_llava_st import LastMedium
from .questions_llava_st import (
    LISTED_KEYS,
    QUESTION_KEYS,
    QUESTIONS_PER_BATCH,
    READING_KEYS,
    PreparedQuestion,
    medium_item,
    question_messages,
    reading_arguments,
    split_questions,
)
from .shared_media_llava_st import (
    PIXELS,
    KeptPrefix,
    PrefixStates,
    PromptPrefix,
    common_length,
    encode_prefixes,
    join_prompts,
    prompt_prefix,
)
from .streaming_llava_st import stream_answer
from .video_frames_llava_st import flatten_videos, is_frames


if TYPE_CHECKING:  # not executed: the pipeline imports this file
    from .pipeline_llava_st import VideoGroundingPipeline

# Stand for a video that has been read: the checks of a question depend only on whether it consists of frames.
_READ_FRAMES, _READ_FILE = np.zeros((1, 1, 1, 3), np.uint8), b""
_OF_OPEN = (*(name for name in QUESTION_KEYS if name not in LISTED_KEYS), *READING_KEYS, "processor_kwargs")


class _SessionStates(KeptPrefix):
    """
    The states of the image or video, and those of the last prompt with its answer.

    Args:
        prefix: of all prompts of the session.
        states: its states.
    """

    def __init__(self, prefix: PromptPrefix, states: dict):
        self.prefix, self.of_medium, self.states = prefix, states, states
        self.last: PrefixStates | None = None

    def update(self, inputs: dict, prefixes: list[PromptPrefix], num_beams: int = 1) -> None:
        self.states, self.last = self.of_medium, None
        if len(prefixes) > 1:
            return  # no chat continues several questions
        cache, length = inputs[CACHE_NAME], inputs["input_ids"].shape[1]
        places = inputs["attention_mask"][0].nonzero().flatten()
        if num_beams == 1:  # otherwise the first beam of the cache need not be the answer
            places = torch.cat((places, torch.arange(length, cache.get_seq_length(), device=places.device)))
        self.last = PrefixStates.from_cache(cache, 0, places)

    def continue_from(self, prompt: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> PromptPrefix:
        """Returns the prefix of a prompt whose states need not be computed, given the tokens of the last prompt with its answer."""
        num_tokens = prompt["input_ids"].shape[-1]
        length = 0 if self.last is None else min(common_length(prompt, before), self.last.length, num_tokens - 1)
        if self.last is None or length <= self.prefix.length:
            return self.prefix
        self.states = {**self.of_medium, "last": self.last}
        return PromptPrefix("last", length)


class GroundingSession:
    """
    An image or video that has been encoded, for questions about it. `VideoGroundingPipeline.open` returns it.

    The video is decoded once, and the vision encoder and the decoder process it once. The keys and values of its tokens are kept:
    `2 · num_hidden_layers · num_key_value_heads · head_dim` numbers for each token. A file that changes afterwards is not read again.

    ```python
    with grounder.open("clip.mp4") as session:
        session.ask(text="the child falls", task="tvg")
        session.follow_up(text="Where is it afterwards?")
        session.ask(text=["the child falls", "the dog runs"], task="stvg")
    ```

    Args:
        pipeline: [`VideoGroundingPipeline`].
        inputs: an image or video, or a dictionary with "video" or "image"; see `VideoGroundingPipeline.__call__`.
        kwargs: arguments that describe how the video is read, such as `clip` and `num_frames`; and defaults of other arguments, such as
            `max_new_tokens`.

    Attributes:
        media_info ([`MediaInfo`]): size, frame rate and clip of the image or video.

    Raises:
        ValueError, OSError: naming what is wrong with the media or an argument.
    """

    def __init__(self, pipeline: "VideoGroundingPipeline", inputs, **kwargs):
        self._pipeline, self._defaults = pipeline, kwargs
        before, forward, _ = self._parameters({})
        item, question = medium_item(inputs, {name: before[name] for name in QUESTION_KEYS if name in before})
        if question:
            raise ValueError(f"{', '.join(question)}: the session is opened without a question. Pass this to `ask`.")
        model_inputs = pipeline.processor.apply_chat_template(
            [{"role": "user", "content": [item]}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=reading_arguments(**self._reading),
        )
        self._medium = LastMedium(always=True)
        read = self._medium.keep(None, [], pipeline.processor, model_inputs)
        kind, options = item["type"], {name: value for name, value in item.items() if name != "type"}
        frames = kind == "video" and all(map(is_frames, flatten_videos(item[kind])))
        self.media_info = read.media
        self._inputs = {**options, kind: _READ_FRAMES if frames else _READ_FILE}
        self._states: _SessionStates | None = self._encode(dict(model_inputs), read.id, forward.get("vision_chunk_size"))
        read.pixels = {}
        self._messages: list[dict] = []  # of the chat that the last question belongs to, with its answer
        self._tokens: dict[str, torch.Tensor] = {}  # of these messages, on the CPU

    def ask(self, questions: list[dict] | None = None, batch_size: int | None = None, **kwargs) -> dict | list[dict]:
        """
        Answers one question or several, each as the pipeline answers it without a session.

        Args:
            questions: one dictionary for each of several questions, with any of `text`, `task`, `span`, `time` and `box`. Those below
                are the defaults.
            batch_size: number of questions answered together; by default up to 8.
            text, task, span, time, box: as of the pipeline; for several questions also lists of one length.
            kwargs: all other arguments of the pipeline, except those that describe how the image or video is read.

        Returns:
            The result of the pipeline, or a list of results for several questions.

        Raises:
            ValueError: naming what is wrong with a question, before any is answered; or if the session is closed.
        """
        before, forward, after = self._parameters(self._checked(kwargs))
        if questions is None:
            listed = split_questions(self._inputs, before)
        else:
            listed = [self._with_medium(question) for question in self._checked_questions(questions)]
        inputs = [self._inputs] if listed is None else listed
        prepared = [self._prepare(given, {name: v for name, v in before.items() if name not in given}) for given in inputs]
        size = QUESTIONS_PER_BATCH if batch_size is None else batch_size
        self._messages = []
        results = [self._answer(prepared[first : first + size], forward, after) for first in range(0, len(prepared), size)]
        answers = [answer for batch, _ in results for answer in batch]
        if listed is not None:
            return answers
        ((_, ids),) = results
        return self._remember(question_messages(self._inputs, self._question(before))[0], prepared[0], answers[0], ids)

    def follow_up(self, **kwargs) -> dict:
        """
        Answers a question that continues the chat of the last question and answer, as the pipeline answers a chat of all these messages.
        Only the tokens that are new are processed.

        Args:
            kwargs: as of `ask`, for one question.

        Raises:
            ValueError: naming what is wrong with the question; if the session is closed; or if the last call of `ask` had several
            questions, or there was none.
        """
        prepared, messages, forward, after = self._single(kwargs, "follow_up")
        (answer,), ids = self._answer([prepared], forward, after)
        return self._remember(messages, prepared, answer, ids)

    def stream(self, follow_up: bool = False, **kwargs) -> Iterator[dict]:
        """
        Answers one question, and returns the parts of the answer as soon as they are generated.

        Args:
            follow_up: whether the question continues the chat of the last question and answer, as in `follow_up`.
            kwargs: as of `ask`, for one question.

        Returns:
            An iterator as of `VideoGroundingPipeline.stream`. Closing it early stops the generation; a follow-up question then continues
            no chat until the next question has been answered.

        Raises:
            ValueError: as `ask` and `follow_up` do, at once.
        """
        prepared, messages, forward, after = self._single(kwargs, "follow_up" if follow_up else "stream")
        self._messages = []  # the cache of a chat whose generation stops early is incomplete

        def generate(streamer) -> dict:
            (answer,), ids = self._answer([prepared], {**forward, "streamer": streamer}, after)
            return self._remember(messages, prepared, answer, ids)

        processor, context = self._pipeline.processor, prepared["context"]
        bins = (processor.num_temporal_bins, processor.num_spatial_bins)
        return stream_answer(generate, processor.tokenizer, context.medium, bins, context.prompt_positions.get("start"))

    def close(self) -> None:
        """Frees the keys and values. Questions after that are an error."""
        self._states, self._messages, self._tokens = None, [], {}

    def __enter__(self) -> "GroundingSession":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    # Arguments

    def _checked(self, kwargs: dict) -> dict:
        if self._states is None:
            raise ValueError("This session is closed. Open the image or video again.")
        if fixed := [name for name in kwargs if name in _OF_OPEN]:
            raise ValueError(f"{', '.join(fixed)}: the image or video has been read already. Pass this to `open`.")
        return kwargs

    def _checked_questions(self, questions) -> list[dict]:
        if not isinstance(questions, (list, tuple)) or not all(isinstance(question, dict) for question in questions):
            raise ValueError(f"questions={questions!r:.200} must be a list of dictionaries. A single question is given as text=….")
        return list(questions)

    def _with_medium(self, question: dict) -> dict:
        if other := [name for name in question if name not in LISTED_KEYS]:
            raise ValueError(
                f"A question of a session has {', '.join(LISTED_KEYS)}; got {', '.join(map(str, other))}. The image or video is that of "
                "the session."
            )
        return {**self._inputs, **{name: value for name, value in question.items() if value is not None}}

    def _parameters(self, kwargs: dict) -> tuple[dict, dict, dict]:
        """
        Arguments of preprocessing, generation and postprocessing: of the call, else of `open`, else of the pipeline.

        Raises:
            ValueError: if generation does not continue from the states of the session.
        """
        pipeline = self._pipeline
        defaults = (pipeline._preprocess_params, pipeline._forward_params, pipeline._postprocess_params)
        given = pipeline._sanitize_parameters(**{**self._defaults, **kwargs})
        before, forward, after = ({**default, **own} for default, own in zip(defaults, given, strict=True))
        if not pipeline._can_share(pipeline._prepare_generate_kwargs(forward)):
            raise ValueError(
                "A session keeps its keys and values in the default cache, which cache_implementation, use_cache=False, a cache of your "
                "own, an assistant model or a decoder with sliding windows exclude. Call the pipeline without a session."
            )
        return before, forward, after

    @property
    def _reading(self) -> dict:
        before, _, _ = self._parameters({})
        return {name: before[name] for name in (*READING_KEYS, "processor_kwargs") if name in before}

    def _single(self, kwargs: dict, method: str) -> tuple[PreparedQuestion, list[dict], dict, dict]:
        """One question with the messages of its chat, and the arguments of generation and postprocessing."""
        before, forward, after = self._parameters(self._checked(kwargs))
        if method == "follow_up" and not self._messages:
            raise ValueError("follow_up continues the chat of one question, but there is none. Call `ask` with a single question first.")
        if split_questions(self._inputs, before) is not None:
            raise ValueError(f"{method} takes one question: text, task, span, time and box must not be lists of several values.")
        (message,) = question_messages(self._inputs, self._question(before))[0]
        if method != "follow_up":
            return self._prepare(self._inputs, before), [message], forward, after
        prepared = self._prepare(self._inputs, before, history=self._messages)
        prepared["prefix"] = self._states.continue_from(prepared["model_inputs"], self._tokens)
        return prepared, [*self._messages, {**message, "content": message["content"][1:]}], forward, after

    def _question(self, before: dict) -> dict:
        return {name: before[name] for name in LISTED_KEYS if name in before}

    # Prompts and answers

    def _encode(self, sample: dict[str, torch.Tensor], medium: str, vision_chunk_size: int | None) -> _SessionStates:
        model = self._pipeline.model
        prefix = prompt_prefix(sample, medium, model.config.all_media_token_ids)
        inputs = join_prompts([sample], [prefix], self._pipeline.processor.tokenizer.pad_token_id)
        with self._pipeline.device_placement():
            inputs = {name: tensor.to(model.device, model.dtype if name in PIXELS else None) for name, tensor in inputs.items()}
            return _SessionStates(prefix, encode_prefixes(model, inputs, [prefix], [0], vision_chunk_size))

    def _prepare(self, inputs: dict, before: dict, **history) -> PreparedQuestion:
        prepared = self._pipeline.preprocess(inputs, **{**before, "last_medium": self._medium}, **history)
        sample, media_ids = prepared["model_inputs"], self._pipeline.model.config.all_media_token_ids
        # Not the counts of media: the pixels have been freed.
        if prompt_prefix(sample, prepared["medium"], media_ids).key != self._states.prefix.key:
            raise ValueError("The chat template writes other tokens before the image or video of this prompt than when it was opened.")
        prepared["prefix"] = self._states.prefix
        return prepared

    def _answer(self, prepared: list[PreparedQuestion], forward: dict, after: dict) -> tuple[list[dict], torch.Tensor]:
        """Results, and generated ids of shape `(batch_size, length)`."""
        outputs = self._pipeline.forward({**self._pipeline._collate(prepared), "kept": self._states}, **forward)
        return self._pipeline.postprocess(outputs, **after), outputs["answers"]

    def _remember(self, messages: list[dict], prepared: PreparedQuestion, answer: dict, ids: torch.Tensor) -> dict:
        """Keeps a chat with its last answer, for a question that continues it, and returns the answer."""
        self._messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer["text"]}]}]
        sample, ids = prepared["model_inputs"], ids[0].cpu()
        self._tokens = {"input_ids": torch.cat((sample["input_ids"].flatten(), ids))}
        if "coordinate_values" in sample:
            exact = sample["coordinate_values"].flatten()
            self._tokens["coordinate_values"] = torch.cat((exact, torch.full(ids.shape, float("nan"), dtype=exact.dtype)))
        return answer
