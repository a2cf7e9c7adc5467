# SPDX-License-Identifier: Apache-2.0
"""Functions that the loaders of the benchmarks share."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ..data.paths import join_path
from ..data.questions import question_text
from ..data.samples import GroundingSample
from .rows import GroundingResult, Question


Sample = TypeVar("Sample")


def as_questions(
    samples: Iterable[tuple[int, Sample | str]], make: Callable[[int, Sample], Question]
) -> Iterator[tuple[int, Question | str]]:
    """
    Converts rows of an annotation file to questions.

    Args:
        samples: `(row, sample)`, or `(row, problem)` for a row that could not be read.
        make: the question of `(row, sample)`. A ValueError that it raises is the problem of the row.

    Yields:
        `(row, question)`, or `(row, problem)`.
    """
    for row, sample in samples:
        try:
            yield row, sample if isinstance(sample, str) else make(row, sample)
        except ValueError as error:
            yield row, str(error)


def choose_template(templates: Sequence[str], seed: int, id: str) -> str:
    """One of `templates`, determined by the seed and the id of the sample only: the order and number of rows have no effect."""
    digest = hashlib.sha256(f"{seed}:{id}".encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def stvg_question(sample: GroundingSample, media: str, first: int, last: int) -> Question:
    """
    The question of the task "stvg" about a sample with a box for every frame.

    Args:
        sample: densely annotated, with the size of its video.
        media: folder of the videos.
        first, last: frames of the clip, both included.

    Raises:
        ValueError: naming a path that leaves the folder.
    """
    assert sample.width is not None and sample.height is not None  # the reader checked it
    return Question(
        id=sample.id,
        task="stvg",
        path=join_path(media, sample.path),
        kind="video",
        prompt=question_text(sample, "stvg"),
        truth=GroundingResult(span=sample.span),
        clip=sample.clip,
        size=(sample.width, sample.height),
        frames=(first, last),
        sample=sample,
    )
