# SPDX-License-Identifier: Apache-2.0
"""Charades-STA annotations, in the form that LLaVA-ST is scored on.

A file is `[{"image_id", "caption", "timestamp": [start, end]}]` with times as fractions of the whole video. The video file is named
`image_id`, with `.mp4` appended if that has no suffix.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from .json_rows import read_rows
from .samples import GroundingSample
from .schemas import Position, Schema, Text, validate


def _ordered(times: tuple[float, float]) -> tuple[float, float]:
    start, end = times
    if end < start:
        raise ValueError(f"The end {end:g} is before the start {start:g}.")
    return start, end


class _Row(Schema):
    image_id: Text
    caption: Text
    timestamp: Annotated[tuple[Position, Position], Field(strict=False), AfterValidator(_ordered)]


def read_charades_sta(path: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    Yields `(row, sample)`, or `(row, problem)` for a row that cannot be used. Rows count from 1. A video has several sentences, so the
    row is part of the sample's id.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    for row, annotation in read_rows(path):
        try:
            yield row, annotation if isinstance(annotation, str) else _sample(validate(_Row, annotation), row)
        except ValueError as error:
            yield row, str(error)


def _sample(annotation: _Row, row: int) -> GroundingSample:
    video = annotation.image_id
    return GroundingSample(
        id=f"{video}-{row}",
        kind="video",
        path=video if PurePosixPath(video).suffix else f"{video}.mp4",
        text=annotation.caption,
        span=annotation.timestamp,
        unit="fraction",
    )
