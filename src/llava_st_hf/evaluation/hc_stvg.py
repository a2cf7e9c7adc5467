# SPDX-License-Identifier: Apache-2.0
"""HC-STVG, versions 1 and 2: a sentence about a person, when it holds, and where the person is meanwhile."""

from collections.abc import Iterator

from ..data.hc_stvg import read_hc_stvg
from ..data.samples import GroundingSample
from .questions import as_questions
from .rows import Question
from .seen_frames import stvg_question


def hc_stvg_questions(annotations: str, media: str, seed: int) -> Iterator[tuple[int, Question | str]]:
    """
    The sentences of the file. The true tubelet has the boxes at those of the 100 sampled frames of the video that lie in the event.

    Frames are those that the annotation counts (`img_num`): a video that was encoded anew at another rate has others.

    Args:
        annotations: path of the file; see `data.hc_stvg`, which reads both versions.
        media: folder of the videos, in which they lie side by side.
        seed: of the wording, of which there is one.

    Yields:
        `(row, question)`, or `(row, problem)`. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    return as_questions(read_hc_stvg(annotations), lambda _, sample: _question(sample, media))


def _question(sample: GroundingSample, media: str) -> Question:
    assert sample.num_frames is not None  # the reader saw to it
    return stvg_question(sample, media, 0, sample.num_frames - 1)
