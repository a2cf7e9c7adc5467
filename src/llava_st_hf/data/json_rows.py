# SPDX-License-Identifier: Apache-2.0
"""Rows of JSON files, one at a time: memory does not grow with the file.

NaN and Infinity, which Python's own reader would let through, are no JSON and are refused, as are numbers beyond a float.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import ijson


_BOM = b"\xef\xbb\xbf"


class BrokenFileError(ValueError):
    """
    An annotation file that cannot be read on from some row: what follows is lost, so this is no problem of one row alone.

    Args:
        path: of the file.
        row: where it breaks off, counted from 1; 0 where nothing of it can be read.
        reason: in plain words.
    """

    def __init__(self, path: str, row: int, reason: str):
        super().__init__(path, row, reason)
        self.path, self.row, self.reason = path, row, reason

    def __str__(self) -> str:
        return f"{self.path}{f', row {self.row}' if self.row else ''}: {self.reason}"


def read_rows(path: str) -> Iterator[tuple[int, dict | str]]:
    """
    The rows of a `.json` list or a `.jsonl` file of objects.

    Args:
        path: of the file; the suffix tells which it is.

    Yields:
        `(row, object)`, or `(row, problem)` with a string that says why the row cannot be used. Rows count from 1: items of a
        list, lines of a `.jsonl` file, of which blank ones are passed over.

    Raises:
        BrokenFileError: naming the file and the row, where a list breaks off or is no JSON from there on.
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
            yield row, f"A row is an object, not {value!r:.100}."


class _Problem(str):
    """Tells what went wrong in a row from a row that is a string."""


def _lines(path: str) -> Iterator[tuple[int, object]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield number, _parse(line)


def _parse(text: bytes) -> object:
    try:
        return parse_strictly(text)
    except RecursionError:
        return _Problem("The line is nested too deeply.")
    except ValueError as error:
        return _Problem(f"The line is no JSON: {error}.")


def parse_strictly(text: bytes) -> object:
    """What a JSON text holds; `ValueError` also for NaN, Infinity, numbers beyond a float and text that is not UTF-8."""
    return json.loads(text.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)


def _refuse(constant: str):
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is beyond all floats")
    return value


def stream(path: str, prefix: str, opening: str) -> Iterator:
    """
    Parts of a JSON file, one at a time.

    Args:
        path: of the file.
        prefix: of the items, as ijson writes it: `item` for those of a list, `images.item` for those of a list in an object;
            "" for the `(key, value)` pairs of the object itself.
        opening: `[` or `{`, what the file must begin with.

    Raises:
        BrokenFileError: naming the file and the number of the item, counted from 1, that cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(len(_BOM))
        file.seek(len(_BOM) if start == _BOM else 0)
        _check_opening(file, path, opening)
        items = ijson.items(file, prefix, use_float=True) if prefix else ijson.kvitems(file, "", use_float=True)
        number = 0
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
                reason = str(error).strip().split("\n")[0]
                raise BrokenFileError(path, number + 1, f"The file is no JSON from there on: {reason}") from error
            number += 1
            yield item


def _check_opening(file, path: str, opening: str) -> None:
    """Refuses a file that begins with something else: ijson would find nothing in it and say nothing."""
    start = file.tell()
    while (character := file.read(1)).isspace():
        pass
    first = character.decode("latin-1")
    if first != opening:
        kind = "a list" if opening == "[" else "an object"
        found = f"begins with {first!r}" if first else "is empty"
        raise BrokenFileError(path, 0, f"The file {found}, and {kind} is needed.")
    file.seek(start)
