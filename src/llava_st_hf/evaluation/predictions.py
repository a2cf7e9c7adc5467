# SPDX-License-Identifier: Apache-2.0
"""Predictions files: lines that are appended as answers come, and read back whatever happened in between."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .rows import Prediction


def append_predictions(path: str | os.PathLike, predictions: Iterable[Prediction]) -> None:
    """Appends lines, and waits until they are on the disk."""
    lines = "".join(json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n" for prediction in predictions)
    with open(path, "a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def read_predictions(path: str | os.PathLike) -> Iterator[Prediction]:
    """
    The predictions of a file.

    Raises:
        ValueError: naming file and line, where a line is no prediction. (`drop_broken_end` mends a file whose writer was killed.)
        OSError: where the file cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Prediction.from_dict(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{os.fspath(path)}, line {number} is no prediction: {error}") from error


def drop_broken_end(path: Path) -> None:
    """Cuts off what a killed writer left of its last line."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 2**16)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
