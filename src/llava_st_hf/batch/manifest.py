# SPDX-License-Identifier: Apache-2.0
"""
Manifests: Parquet, JSONL or CSV files with a question in each row.

A row has exactly one of `video` and `image`, and the other keys of a question of the pipeline: `text`, `task`, `clip`, `start`, `end`,
`span`, `box`, `time` and `fps`; optionally an `id`. Further columns are carried through to the output. In CSV, an empty cell is an absent
value, and lists are written as in JSON: `[1.8, 2.5]`.
"""

import csv
import hashlib
import io
import json
import os
import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow
from pyarrow import parquet

from ..model.checks_llava_st import is_finite_number, is_integer, shown
from ..model.control_tokens_llava_st import check_control_tokens
from ..model.inline_spelling_llava_st import check_spelling
from ..model.questions_llava_st import MEDIA_KEYS, question_messages
from .outcomes import RESULT_COLUMNS, Outcome, to_parquet
from .storage import is_url, read_file


FORMATS = (".parquet", ".jsonl", ".csv")
_NUMBERS = ("start", "end", "time", "fps")
_LISTS = {"clip": 2, "span": 2, "box": 4}
QUESTION_COLUMNS = (*MEDIA_KEYS, "text", "task", *_LISTS, *_NUMBERS)
_SHOWN = 20  # problems in an error message


@dataclass(frozen=True)
class Manifest:
    """
    A checked manifest.

    Args:
        path: of the file.
        sha256: of its content.
        table: all columns as in the file.
        questions: inputs of the pipeline of each row, with media as absolute paths or URLs.
    """

    path: str
    sha256: str
    table: pyarrow.Table
    questions: list[dict[str, Any]]


def read_manifest(path: str, media_root: str | None = None) -> Manifest:
    """
    Reads and checks a whole manifest. Media are not opened.

    Args:
        path: of the file, or a URL that fsspec reads.
        media_root: folder or URL that relative paths of media are joined to; None for the folder of the manifest.

    Raises:
        ValueError: naming the rows, counted from 1, and what is wrong with each; at most 20 of them.
        OSError: if the file cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        raise ValueError(f"The manifest {path} must be a file that ends in {', '.join(FORMATS)}.")
    content = read_file(path)
    problems: list[str] = []
    read = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}[suffix]
    try:
        table, rows = read(content, problems)
    except (pyarrow.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a {suffix[1:].upper()} file that can be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if reserved := [name for name in table.column_names if name in RESULT_COLUMNS]:
        raise ValueError(f"{path} has the column {', '.join(reserved)}, which the output has: rename it.")
    _check_columns(table, path)
    root = media_root if media_root is not None else posixpath.dirname(path) if is_url(path) else os.path.dirname(os.path.abspath(path))
    questions = []
    for number, row in enumerate(rows, start=1):
        try:
            questions.append(_question(row, root))
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    problems += _repeated_ids(rows)
    if not rows and not problems:
        raise ValueError(f"{path} has no rows.")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ValueError(f"{path} has {len(problems)} problems: {'; '.join([*problems[:_SHOWN], *more])}")
    return Manifest(path, hashlib.sha256(content).hexdigest(), table, questions)


# Formats. Each function returns the table as in the file, and the values of the question and the id of each row.


def _read_parquet(content: bytes, problems: list[str]) -> tuple[pyarrow.Table, list[dict]]:
    table = parquet.ParquetFile(io.BytesIO(content)).read()
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError(f"A column name occurs twice: {', '.join(table.column_names)}.")
    return table, table.select([name for name in table.column_names if name in (*QUESTION_COLUMNS, "id")]).to_pylist()


def _read_jsonl(content: bytes, problems: list[str]) -> tuple[pyarrow.Table, list[dict]]:
    rows: list[dict] = []
    for number, line in enumerate(content.decode("utf-8-sig").rstrip("\n").split("\n") if content.strip() else [], start=1):
        try:
            row = json.loads(line, object_pairs_hook=_object)
            if not isinstance(row, dict):
                raise ValueError(f"a JSON object is expected, got {shown(row)}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {number} is not a JSON object: {error}") from error
        rows.append(row)
    # The keys of all rows: a table from rows has those of the first one only.
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise ValueError(f"The values of {name!r} cannot be stored as a column of one type: {error}") from error
    return pyarrow.table(columns), rows


def _object(pairs: list[tuple[str, Any]]) -> dict:
    """The object of pairs in JSON. Raises a `ValueError` for a repeated name, of which Python would take the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {shown(next(name for name in names if names.count(name) > 1))} occurs twice")
    return found


def _read_csv(content: bytes, problems: list[str]) -> tuple[pyarrow.Table, list[dict]]:
    records = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    header = next(records, [])
    if len(set(header)) < len(header) or "" in header:
        raise ValueError(f"The header must have a name for each column, each once; got {', '.join(header)}.")
    cells = [record for record in records if record]
    for number, record in enumerate(cells, start=1):
        if len(record) != len(header):
            raise ValueError(f"row {number} has {len(record)} cells, the header has {len(header)}.")
    table = pyarrow.table({name: pyarrow.array([row[i] or None for row in cells], pyarrow.string()) for i, name in enumerate(header)})
    rows = []
    for number, record in enumerate(cells, start=1):
        row: dict[str, Any] = {}
        for name, cell in zip(header, record, strict=True):
            try:
                row[name] = _value(name, cell)
            except ValueError:
                problems.append(f"row {number}: {name} must be {'a list such as [1, 2]' if name in _LISTS else 'a number'}, got {cell!r}")
        rows.append(row)
    return table, rows


def _value(name: str, cell: str):
    """Value of a cell of a CSV file; None for an empty one."""
    if not cell:
        return None
    if name in _NUMBERS:
        return float(cell)
    return json.loads(cell) if name in _LISTS else cell


# Checks


def _check_columns(table: pyarrow.Table, path: str) -> None:
    """
    Raises:
        ValueError: if a column is of a type that cannot be written again: it would be found out after the first questions are answered.
    """
    for name in table.column_names if table.num_rows else []:
        try:
            to_parquet(table.select([name]).slice(0, 1), 1, {1: Outcome()})
        except (pyarrow.ArrowException, UnicodeEncodeError) as error:
            raise ValueError(f"{path} has the column {shown(name)}, which cannot be written to Parquet: {error}") from error


def _question(row: dict, root: str) -> dict[str, Any]:
    """The question of a row, checked without opening its media."""
    question = {name: row[name] for name in QUESTION_COLUMNS if row.get(name) is not None}
    for kind in MEDIA_KEYS:
        if kind in question:
            question[kind] = _medium(question[kind], kind, root)
    for name in ("text", "task"):
        if not isinstance(question.get(name, ""), str):
            raise ValueError(f"{name} must be a string, got {shown(question[name])}.")
    for name in _NUMBERS:
        if name in question and not is_finite_number(question[name]):
            raise ValueError(f"{name} must be a finite number, got {shown(question[name])}.")
    for name, length in _LISTS.items():
        value = question.get(name)
        if value is not None and not isinstance(value, dict) and not (isinstance(value, list) and len(value) == length):
            raise ValueError(f"{name} must be a list of {length} numbers, got {shown(value)}.")
    _check_clip(question)
    if "text" in question:
        check_control_tokens(question["text"])
        check_spelling(question["text"])
    question_messages(question, {})
    return question


def _medium(value, kind: str, root: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{kind} must be a path or URL, got {shown(value)}.")
    if is_url(value) or value[:5].lower() == "data:":
        return value
    return f"{root.rstrip('/')}/{value}" if is_url(root) else os.path.join(os.path.abspath(root), value)


def _check_clip(question: dict) -> None:
    clip, start, end = (question.get(name) for name in ("clip", "start", "end"))
    if clip is not None and (start is not None or end is not None):
        raise ValueError("clip is in frames, start and end are in seconds: give one of both.")
    if clip is not None and not (all(map(is_integer, clip)) and 0 <= clip[0] <= clip[1]):
        raise ValueError(f"clip must be the first and the last frame, from 0, got {shown(clip)}.")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"start must be before end, {end:g} seconds, got {start:g}.")


def _repeated_ids(rows: list[dict]) -> list[str]:
    """Problems of the column `id`: each row has one, and no two rows have the same."""
    if not any(row.get("id") is not None for row in rows):
        return []
    first: dict[Any, int] = {}
    problems = []
    for number, row in enumerate(rows, start=1):
        value = row.get("id")
        if not isinstance(value, (str, int)):
            problems.append(f"row {number}: id must be a string or an integer, as in other rows, got {shown(value)}")
        elif (other := first.setdefault(value, number)) != number:
            problems.append(f"row {number}: id {shown(value)} is that of row {other}")
    return problems
