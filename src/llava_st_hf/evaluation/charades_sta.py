# SPDX-License-Identifier: Apache-2.0
"""Charades-STA questions: temporal grounding of a sentence in a video."""

from collections.abc import Iterator
from dataclasses import replace

from ..data.charades_sta import read_charades_sta
from ..data.paths import join_path
from ..data.questions import question_text
from ..data.samples import GroundingSample
from .questions import as_questions
from .rows import GroundingResult, Question


def charades_sta_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    Yields the sentences of the file in lower case and without the full stop, as for the published numbers.

    Args:
        annotations: path of the file; see `data.charades_sta`.
        media: folder of the videos.
        seed: not used; the benchmark has one prompt template.

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    return as_questions(read_charades_sta(annotations), lambda _, sample: _question(sample, media))


def _question(sample: GroundingSample, media: str) -> Question:
    assert sample.text is not None  # the reader checked it
    sentence = sample.text.strip(" .").lower()
    if not sentence:
        raise ValueError(f"'caption' must contain a sentence, not {sample.text!r:.100}.")
    return Question(
        id=sample.id,
        task="tvg",
        path=join_path(media, sample.path),
        kind="video",
        prompt=question_text(replace(sample, text=sentence), "tvg"),
        truth=GroundingResult(span=sample.span),
    )
