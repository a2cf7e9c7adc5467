# SPDX-License-Identifier: Apache-2.0
"""Predictions files (JSONL): appended to while a benchmark runs, and read again after any interruption.

Also the one function by which an evaluation writes whole files: atomically, with an error that names the file.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .rows import Prediction


# A lone surrogate, which a model may generate and UTF-8 cannot encode, is written as `\udxxx`: in JSON that is its escape, so it is read
# back as the same character.
_ENCODING = {"encoding": "utf-8", "errors": "backslashreplace"}


def append_predictions(path: str | os.PathLike, predictions: Iterable[Prediction]) -> None:
    """
    Appends one line per prediction and flushes them to disk.

    Raises:
        OSError: naming the file, if it cannot be written, for example because the disk is full.
    """
    lines = "".join(json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n" for prediction in predictions)
    with _naming(path), open(path, "ab") as file:
        file.write(lines.encode(**_ENCODING))
        _flush(file)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """
    Writes a whole file atomically: after a crash or on a full disk the file is the old one or the new one.

    Args:
        path: of the file; a temporary file `.<name>` beside it is used and replaces it at the end.
        content: text is encoded as UTF-8, with lone surrogates as `\\udxxx`.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    try:
        with _naming(path):
            with open(temporary, "wb") as file:
                file.write(content.encode(**_ENCODING) if isinstance(content, str) else content)
                _flush(file)
            temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path to an `OSError` of a write, which the operating system reports without it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


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
