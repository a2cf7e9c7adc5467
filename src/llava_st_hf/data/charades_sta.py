# SPDX-License-Identifier: Apache-2.0
"""Charades-STA in the form that LLaVA-ST is scored on.

A file is `[{"image_id", "caption", "timestamp": [s, e]}]`, the times as fractions of the whole video. The video file is named like
`image_id`, with `.mp4` where that has no suffix.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from ..model.coordinates_llava_st import check_position
from .checks import listing, member, number, words
from .json_rows import read_rows
from .samples import GroundingSample


def read_charades_sta(path: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    Yields `(row, sample)`, or `(row, problem)` where a row cannot be used. Rows count from 1. A video has several sentences, so the
    row is part of the sample's id.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    for row, annotation in read_rows(path):
        try:
            yield row, annotation if isinstance(annotation, str) else _sample(annotation, row)
        except ValueError as error:
            yield row, str(error)


def _sample(annotation: dict, row: int) -> GroundingSample:
    video = words(member(annotation, "image_id", "The row"), "'image_id'")
    times = listing(member(annotation, "timestamp", "The row"), "'timestamp'")
    if len(times) != 2:
        raise ValueError(f"'timestamp' must be [start, end] as fractions of the video, not {times!r:.100}.")
    start, end = (check_position(number(time, "A time of 'timestamp'"), "A time of 'timestamp'") for time in times)
    if end < start:
        raise ValueError(f"'timestamp' {times!r} ends before it starts.")
    return GroundingSample(
        id=f"{video}-{row}",
        kind="video",
        path=video if PurePosixPath(video).suffix else f"{video}.mp4",
        text=words(member(annotation, "caption", "The row"), "'caption'"),
        span=(start, end),
        unit="fraction",
    )
