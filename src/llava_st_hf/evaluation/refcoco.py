# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, RefCOCO+ and RefCOCOg questions: the bounding box of an expression in an image. All splits have one file format."""

from collections.abc import Iterator

from ..data.paths import join_path
from ..data.refcoco import read_refcoco
from ..data.samples import GroundingSample
from ..model.tasks_llava_st import REC_PROMPTS
from .questions import as_questions, choose_template
from .rows import GroundingResult, Question


def refcoco_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    Yields the expressions of one split, each in one of the four prompt templates that the model was trained on.

    Args:
        annotations: path of the file; see `data.refcoco`.
        media: folder of the images.
        seed: of the choice of prompt templates.

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    return as_questions(read_refcoco(annotations), lambda _, sample: _question(sample, media, seed))


def _question(sample: GroundingSample, media: str, seed: int) -> Question:
    assert sample.text is not None and sample.width is not None and sample.height is not None  # the reader checked it
    return Question(
        id=sample.id,
        task="rec",
        path=join_path(media, sample.path),
        kind="image",
        prompt=choose_template(REC_PROMPTS, seed, sample.id).replace("{text}", sample.text),
        truth=GroundingResult(box=sample.boxes[0][1]),
        size=(sample.width, sample.height),
    )
