# SPDX-License-Identifier: Apache-2.0
"""Charades-STA: a sentence, and when in the video it happens."""

from collections.abc import Iterator

from ..data.charades_sta import read_charades_sta
from ..data.paths import join_path
from ..data.samples import GroundingSample
from .questions import as_questions
from .rows import GroundingResult, Question


PROMPT = (
    "Give you a textual query: '<event>'. When does the described content occur in the video? Please return the start and end timestamps."
)


def charades_sta_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    The sentences of the file, in small letters and without the full stop, as the published numbers were asked for.

    Args:
        annotations: path of the file; see `data.charades_sta`.
        media: folder of the videos.
        seed: of the wording, of which there is one.

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    return as_questions(read_charades_sta(annotations), lambda _, sample: _question(sample, media))


def _question(sample: GroundingSample, media: str) -> Question:
    assert sample.text is not None  # the reader saw to it
    sentence = sample.text.strip(" .").lower()
    if not sentence:
        raise ValueError(f"'caption' says nothing: {sample.text!r:.100}.")
    return Question(
        id=sample.id,
        task="tvg",
        path=join_path(media, sample.path),
        kind="video",
        prompt=PROMPT.replace("<event>", sentence),
        truth=GroundingResult(span=sample.span),
    )
