# SPDX-License-Identifier: Apache-2.0
"""VidSTG questions: spatio-temporal grounding of a sentence about an object. Declarative and interrogative sentences are separate
benchmarks."""

from collections.abc import Iterator
from pathlib import Path

from ..data.samples import GroundingSample
from ..data.vidstg import read_vidstg
from .questions import as_questions, stvg_question
from .rows import Question


# Folder with VidOR's boxes, next to the file of sentences.
BOXES = "boxes"


def declarative_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """Yields the declarative sentences ("a child holds a cup."); see `_questions`."""
    return _questions(annotations, media, is_question=False)


def interrogative_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """Yields the interrogative sentences ("who holds the cup?"); see `_questions`."""
    return _questions(annotations, media, is_question=True)


def _questions(annotations: str, media: str, is_question: bool) -> Iterator[tuple[int, Question | str]]:
    """
    Yields the sentences of one kind. Their boxes, one for every frame that shows the object, become the ground-truth tubelet at the
    sampled frames in `ground_truth.to_clip_coordinates`.

    Args:
        annotations: path of the file of sentences; see `data.vidstg`. VidOR's `<group>/<vid>.json` are in the folder `boxes` next to it.
        media: folder of VidOR's videos, `<group>/<vid>.mp4`.
        is_question: whether to yield the interrogative sentences.

    Yields:
        `(row, question)`, or `(row, problem)`, also for a problem in a sentence of the other kind. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file or folder, where it cannot be read.
    """
    samples = read_vidstg(annotations, str(Path(annotations).parent / BOXES))
    wanted = ((row, sample) for row, sample in samples if isinstance(sample, str) or sample.is_question == is_question)
    return as_questions(wanted, lambda _, sample: _question(sample, media))


def _question(sample: GroundingSample, media: str) -> Question:
    assert sample.clip is not None  # the reader checked it
    return stvg_question(sample, media, *sample.clip)
