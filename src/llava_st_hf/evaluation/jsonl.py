# SPDX-License-Identifier: Apache-2.0
"""Questions of this package's own annotation format, for all eight tasks. `data.jsonl` describes it; it is in seconds and pixels."""

from collections.abc import Iterator

from ..data.jsonl import read_jsonl
from ..data.paths import join_path
from ..data.questions import question_text
from ..data.samples import GroundingSample
from .questions import as_questions
from .rows import GROUNDING_FIELDS, GroundingResult, Question


def jsonl_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    Yields the task rows of a file, with the prompt templates of `tasks.TASKS`.

    The frames of times in seconds are not known before the video is opened: until `ground_truth.to_clip_coordinates`, the ground truth
    has captions only, and `Question.sample` the rest.

    Args:
        annotations: path of the file, `.jsonl` or `.json`.
        media: folder of the videos and images.
        seed: not used; each task has one prompt template.

    Yields:
        `(row, question)`, or `(row, problem)`, also for a chat row, which has no ground truth. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    return as_questions(read_jsonl(annotations), lambda _, sample: _question(sample, media))


def _question(sample: object, media: str) -> Question:
    if not isinstance(sample, GroundingSample):
        raise ValueError("The row is a chat ('messages'), which has no ground truth and cannot be evaluated: remove it from the file.")
    assert sample.task is not None  # the reader checked it
    return Question(
        id=sample.id,
        task=sample.task,
        path=join_path(media, sample.path),
        kind=sample.kind,
        prompt=question_text(sample, sample.task),
        truth=GroundingResult(caption=sample.text if "caption" in GROUNDING_FIELDS[sample.task] else None),
        clip=sample.clip,
        start=sample.start,
        end=sample.end,
        sample=sample,
    )
