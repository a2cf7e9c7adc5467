# SPDX-License-Identifier: Apache-2.0
"""Rows of JSON files, read one at a time, so that memory does not grow with the size of the file.

Stricter than Python's own reader: NaN, Infinity and numbers beyond the range of a float are errors, as are values nested deeper than
`MAX_DEPTH`.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import ijson
import numpy as np

from .schemas import shown


#: Objects and lists inside each other; annotations have fewer than ten. Parsing takes memory that grows with the square of the depth.
MAX_DEPTH = 100
_TOO_DEEP = f"The value is nested deeper than {MAX_DEPTH} objects and lists."
_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
# (256,) by how much each byte changes the depth of nesting.
_STEPS = np.zeros(256, np.int64)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


class BrokenFileError(ValueError):
    """
    An annotation file that cannot be read from some row on. What follows is lost, so this is not a problem of one row alone.

    Args:
        path: of the file.
        row: the first that cannot be read, counted from 1; 0 where nothing of the file can be read.
        reason: a sentence.
    """

    def __init__(self, path: str, row: int, reason: str):
        super().__init__(path, row, reason)
        self.path, self.row, self.reason = path, row, reason

    def __str__(self) -> str:
        return f"{self.path}{f', row {self.row}' if self.row else ''}: {self.reason}"


def read_rows(path: str) -> Iterator[tuple[int, dict | str]]:
    """
    Reads the rows of a `.json` list or a `.jsonl` file of objects.

    Args:
        path: of the file; its suffix selects the format.

    Yields:
        `(row, object)`, or `(row, problem)` with a sentence why the row cannot be used. Rows count from 1: items of a list, or lines of
        a `.jsonl` file, of which blank ones are skipped.

    Raises:
        BrokenFileError: naming the file and the row, where a list is not valid JSON from there on.
        OSError: where the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        rows = _lines(path)
    elif suffix == ".json":
        rows = enumerate(stream(path, "item", "["), start=1)
    else:
        raise BrokenFileError(path, 0, "The file must be a .json list or a .jsonl file.")
    for row, value in rows:
        if isinstance(value, (dict, _Problem)):
            yield row, value
        else:
            yield row, f"The row must be an object, not {shown(value)}."


class _Problem(str):
    """Distinguishes the problem of a row from a row that is a string."""


def _lines(path: str) -> Iterator[tuple[int, object]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield number, _parse(line)


def _parse(text: bytes) -> object:
    try:
        return parse_strictly(text)
    except ValueError as error:
        return _Problem(f"The line is not valid JSON: {str(error).rstrip('.')}.")


def parse_strictly(text: bytes) -> object:
    """
    The value of a JSON text.

    Raises:
        ValueError: where the text is not UTF-8 or not JSON, contains NaN, Infinity or a number beyond the range of a float, or is nested
            deeper than `MAX_DEPTH`.
    """
    # A text with fewer brackets than that cannot be nested deeper: most rows are.
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and _DepthGuard().first_too_deep(text) is not None:
        raise ValueError(_TOO_DEEP)
    return json.loads(text.decode("utf-8"), parse_constant=_reject_constant, parse_float=_finite)


def _reject_constant(constant: str):
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is beyond the range of a float")
    return value


def stream(path: str, prefix: str, opening: str) -> Iterator:
    """
    Reads parts of a JSON file, one at a time.

    Args:
        path: of the file.
        prefix: of the items, as ijson writes it: `item` for those of a list, `images.item` for those of a list in an object;
            "" for the `(key, value)` pairs of the object itself.
        opening: `[` or `{`, the first character of the file.

    Raises:
        BrokenFileError: naming the file and the number of the item, counted from 1, that cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(len(_BOM))
        file.seek(len(_BOM) if start == _BOM else 0)
        _check_opening(file, path, opening)
        guarded = _GuardedFile(file)
        items = ijson.items(guarded, prefix, use_float=True) if prefix else ijson.kvitems(guarded, "", use_float=True)
        number = 0
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except _TooDeepError as error:
                raise BrokenFileError(path, number + 1, str(error)) from error
            except (ijson.JSONError, UnicodeDecodeError) as error:
                reason = str(error).strip().split("\n")[0]
                raise BrokenFileError(path, number + 1, f"The file is not valid JSON from there on: {reason}") from error
            number += 1
            yield item


def _check_opening(file, path: str, opening: str) -> None:
    """Raises an error for a file that begins with another character, of which ijson would silently find nothing."""
    start = file.tell()
    while (character := file.read(1)).isspace():
        pass
    first = character.decode("latin-1")
    if first != opening:
        kind = "a list" if opening == "[" else "an object"
        found = f"begins with {first!r}" if first else "is empty"
        raise BrokenFileError(path, 0, f"The file {found}, but it must contain {kind}.")
    file.seek(start)


class _DepthGuard:
    """Depth of nesting of a JSON text that comes in chunks."""

    def __init__(self):
        self.depth, self.in_string, self.tail = 0, False, b""

    def first_too_deep(self, chunk: bytes) -> int | None:
        """Index, in `chunk`, of the bracket that exceeds `MAX_DEPTH`; None if there is none. Brackets in strings do not count."""
        if b"\\" in chunk or self.tail:  # blank out escapes, so that each quote left begins or ends a string
            joined = _ESCAPE.sub(b"  ", self.tail + chunk)
            skipped, self.tail = len(self.tail), b"\\" if joined.endswith(b"\\") else b""
            chunk = joined[skipped:]
        characters = np.frombuffer(chunk, np.uint8)
        quotes = np.cumsum(characters == ord('"')) + self.in_string  # odd inside strings
        outside = quotes % 2 == 0
        depths = self.depth + np.cumsum(_STEPS[characters] * outside)
        if len(characters):
            self.depth, self.in_string = int(depths[-1]), bool(quotes[-1] % 2)
        too_deep = np.flatnonzero(depths > MAX_DEPTH)
        return int(too_deep[0]) if len(too_deep) else None


class _TooDeepError(Exception):
    """Raised while ijson reads a file that is nested too deeply."""


class _GuardedFile:
    """A file for ijson, which ends with `_TooDeepError` directly before the bracket that exceeds `MAX_DEPTH`."""

    def __init__(self, file: BinaryIO):
        self.file, self.guard, self.is_too_deep = file, _DepthGuard(), False

    def read(self, size: int = -1) -> bytes:
        if self.is_too_deep:
            raise _TooDeepError(_TOO_DEEP)
        chunk = self.file.read(size)
        end = self.guard.first_too_deep(chunk)
        if end is None:
            return chunk
        self.is_too_deep = True
        return chunk[:end] or self.read(size)
