# SPDX-License-Identifier: Apache-2.0
"""VidSTG: a sentence about a thing, when it holds, and where the thing is meanwhile. Statements and questions are scored apart."""

from collections.abc import Iterator
from pathlib import Path

from ..data.samples import GroundingSample
from ..data.vidstg import read_vidstg
from .questions import as_questions
from .rows import Question
from .seen_frames import stvg_question


# Folder with VidOR's boxes, beside the file of sentences.
BOXES = "boxes"


def declarative_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """The statements ("a child holds a cup."); see `_questions`."""
    return _questions(annotations, media, is_question=False)


def interrogative_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """The questions ("who holds the cup?"); see `_questions`."""
    return _questions(annotations, media, is_question=True)


def _questions(annotations: str, media: str, is_question: bool) -> Iterator[tuple[int, Question | str]]:
    """
    The sentences of one kind. The true tubelet has the boxes at those of the 100 sampled frames of the clip that lie in the event.

    Args:
        annotations: path of the file of sentences; see `data.vidstg`. VidOR's `<group>/<vid>.json` stand in the folder `boxes` beside it.
        media: folder of VidOR's videos, `<group>/<vid>.mp4`.
        is_question: which kind.

    Yields:
        `(row, question)`, or `(row, problem)`, also where the problem is in a sentence of the other kind. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file or folder, where it cannot be read.
    """
    samples = read_vidstg(annotations, str(Path(annotations).parent / BOXES))
    wanted = ((row, sample) for row, sample in samples if isinstance(sample, str) or sample.is_question == is_question)
    return as_questions(wanted, lambda _, sample: _question(sample, media))


def _question(sample: GroundingSample, media: str) -> Question:
    assert sample.clip is not None  # the reader saw to it
    return stvg_question(sample, media, *sample.clip)
