# SPDX-License-Identifier: Apache-2.0
"""HC-STVG questions, versions 1 and 2: spatio-temporal grounding of a sentence about a person."""

from collections.abc import Iterator

from ..data.hc_stvg import read_hc_stvg
from ..data.samples import GroundingSample
from .questions import as_questions, stvg_question
from .rows import Question


def hc_stvg_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    Yields the sentences of the file. Their boxes, one for every frame of the event, become the ground-truth tubelet at the sampled frames
    in `ground_truth.to_clip_coordinates`.

    `Question.frames` counts frames as the annotation does (`img_num`); a video that was encoded again at another rate has others.

    Args:
        annotations: path of the file; see `data.hc_stvg`, which reads both versions.
        media: folder of the videos, all in this one folder.
        seed: not used; the benchmark has one prompt template.

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    return as_questions(read_hc_stvg(annotations), lambda _, sample: _question(sample, media))


def _question(sample: GroundingSample, media: str) -> Question:
    assert sample.num_frames is not None  # the reader checked it
    return stvg_question(sample, media, 0, sample.num_frames - 1)
