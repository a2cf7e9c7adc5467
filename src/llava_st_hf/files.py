# SPDX-License-Identifier: Apache-2.0
"""Writes of single text files that survive a crash, with errors that name the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# A lone surrogate, which a model may generate and UTF-8 cannot encode, is written as `\udxxx`: in JSON that is its escape, so it is read
# back as the same character.
_ENCODING = {"encoding": "utf-8", "errors": "backslashreplace"}


def append_file(path: str | os.PathLike, content: str) -> None:
    """
    Appends text to a file, which is created if needed, and flushes it to disk.

    Args:
        path: of the file.
        content: encoded as UTF-8, with lone surrogates as `\\udxxx`.

    Raises:
        OSError: naming the file, if it cannot be written, for example because the disk is full.
    """
    with _naming(path), open(path, "ab") as file:
        _write(file, content)


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
                _write(file, content)
            temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _write(file, content: str | bytes) -> None:
    file.write(content.encode(**_ENCODING) if isinstance(content, str) else content)
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
