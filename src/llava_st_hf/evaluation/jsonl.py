# SPDX-License-Identifier: Apache-2.0
"""This package's own annotation format, for all eight tasks. `data.jsonl` describes it; it is in seconds and pixels."""

from collections.abc import Iterator

from ..data.jsonl import read_jsonl
from ..data.paths import join_path
from ..data.questions import question_and_answer
from ..data.samples import GroundingSample
from .questions import as_questions
from .rows import GROUNDING_FIELDS, GroundingResult, Question


def jsonl_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    The task rows of a file, in the wording of `tasks.TASKS`.

    Which frames the seconds of videos are is not known before a video is opened: until then the truth has captions alone, and
    `Question.sample` the rest.

    Args:
        annotations: path of the file, `.jsonl` or `.json`.
        media: folder of the videos and pictures.
        seed: of the wording, of which there is one.

    Yields:
        `(row, question)`, or `(row, problem)`, also for a chat row, which has nothing to score. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    return as_questions(read_jsonl(annotations), lambda _, sample: _question(sample, media))


def _question(sample: object, media: str) -> Question:
    if not isinstance(sample, GroundingSample):
        raise ValueError("The row is a chat ('messages'): it does not tell what is true, so there is nothing to score.")
    assert sample.task is not None  # the reader saw to it
    prompt, _ = question_and_answer(sample, sample.task)
    return Question(
        id=sample.id,
        task=sample.task,
        path=join_path(media, sample.path),
        kind=sample.kind,
        prompt=prompt,
        truth=GroundingResult(caption=sample.text if "caption" in GROUNDING_FIELDS[sample.task] else None),
        clip=sample.clip,
        start=sample.start,
        end=sample.end,
        sample=sample,
    )
