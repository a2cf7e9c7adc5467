# SPDX-License-Identifier: Apache-2.0
"""Answers of a model in this process."""

import time
from typing import Any

import torch

from ..model.pipeline_llava_st import VideoGroundingPipeline
from ..model.questions_llava_st import PreparedQuestion, prepare_question
from ..model.results_llava_st import Grounding
from .media import fetch, message, size
from .outcomes import Outcome


_CUT_OFF = "The answer was cut off after"  # the beginning of the pipeline's note


class PipelineAnswering:
    """
    Answers questions with `pipeline("video-grounding")`.

    Args:
        grounder: the pipeline.
        batch_size: number of questions per batch.
        options: arguments of the pipeline, such as `max_new_tokens` and `grammar`.
    """

    connections = 0

    def __init__(self, grounder: VideoGroundingPipeline, batch_size: int, options: dict[str, Any]):
        self.batch_size = batch_size
        self._grounder, self._options = grounder, options

    def answer(self, questions: list[dict]) -> list[Outcome]:
        """Answers a batch. What concerns one question, such as a damaged file, is its outcome."""
        started = time.monotonic()
        prepared = [self._prepare(question) for question in questions]
        ready = [entry for entry in prepared if isinstance(entry, PreparedQuestion)]
        answers = iter(self._generate(ready))
        outcomes: list[Outcome] = []
        seconds = round(time.monotonic() - started, 4)
        for question, entry in zip(questions, prepared, strict=True):
            result: Any = next(answers) if isinstance(entry, PreparedQuestion) else entry
            if isinstance(result, Exception) or isinstance(entry, Exception):
                outcomes.append(Outcome(error_type=type(result).__name__, error=message(result, question), latency_s=seconds))
                continue
            outcomes.append(
                Outcome(
                    Grounding.from_dict(result),
                    finish_reason="length" if any(note.startswith(_CUT_OFF) for note in result["notes"]) else "stop",
                    prompt_tokens=entry["model_inputs"]["input_ids"].shape[-1],
                    completion_tokens=len(self._grounder.processor.tokenizer(result["text"])["input_ids"]),
                    media_bytes=size(question),
                    latency_s=seconds,
                )
            )
        return outcomes

    def _prepare(self, question: dict) -> PreparedQuestion | Exception:
        try:
            question = fetch(question)
            kind = "video" if "video" in question else "image"
            return prepare_question(self._grounder.processor, {kind: question[kind]}, **{k: v for k, v in question.items() if k != kind})
        except Exception as error:  # also those of decoders, which have classes of their own
            return error.with_traceback(None)

    def _generate(self, questions: list[PreparedQuestion]) -> list[dict | Exception]:
        """Answers of a batch. If the memory does not suffice, or a question is refused, its questions are answered one by one."""
        if not questions:
            return []
        try:
            return self._grounder(questions, batch_size=len(questions), **self._options)
        except (torch.OutOfMemoryError, ValueError, OSError) as error:
            failure = error.with_traceback(None)
        # Not in the handler, whose traceback refers to the tensors of the batch.
        return [answer for question in questions for answer in self._generate([question])] if len(questions) > 1 else [failure]
