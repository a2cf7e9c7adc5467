# SPDX-License-Identifier: Apache-2.0
"""Predictions files (JSONL): appended to while a benchmark runs, and read again after any interruption."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..files import append_file
from .rows import Prediction


def append_predictions(path: str | os.PathLike, predictions: Iterable[Prediction]) -> None:
    """
    Appends one line per prediction and flushes them to disk.

    Raises:
        OSError: naming the file, if it cannot be written, for example because the disk is full.
    """
    lines = "".join(json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n" for prediction in predictions)
    append_file(path, lines)


def read_predictions(path: str | os.PathLike) -> Iterator[Prediction]:
    """
    Reads the predictions of a file one at a time.

    Raises:
        ValueError: naming file and line, if a line is not a valid prediction. (`drop_broken_end` repairs a file whose writer was killed.)
        OSError: if the file cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Prediction.from_dict(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{os.fspath(path)}, line {number} is not a valid prediction: {error}") from error


def drop_broken_end(path: Path) -> None:
    """Removes an incomplete last line, which a killed writer leaves."""
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
