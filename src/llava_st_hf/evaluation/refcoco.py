# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, RefCOCO+ and RefCOCOg: an expression, and its box in a picture. All their splits have one file format."""

from collections.abc import Iterator

from ..data.paths import join_path
from ..data.refcoco import read_refcoco
from ..data.samples import GroundingSample
from .questions import as_questions, chosen
from .rows import GroundingResult, Question


PROMPTS = (
    "Where can I find <event> in this image?",
    "What part of this image contains <event>?",
    "Where does <event> appear in this image?",
    "Where is <event> situated within this image?",
)


def refcoco_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    The expressions of one split, each in one of the four wordings that the model was trained on.

    Args:
        annotations: path of the file; see `data.refcoco`.
        media: folder of the pictures.
        seed: of the wording.

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    return as_questions(read_refcoco(annotations), lambda _, sample: _question(sample, media, seed))


def _question(sample: GroundingSample, media: str, seed: int) -> Question:
    assert sample.text is not None and sample.width is not None and sample.height is not None  # the reader saw to it
    return Question(
        id=sample.id,
        task="rec",
        path=join_path(media, sample.path),
        kind="image",
        prompt=chosen(PROMPTS, seed, sample.id).replace("<event>", sample.text),
        truth=GroundingResult(box=sample.boxes[0][1]),
        size=(sample.width, sample.height),
    )
