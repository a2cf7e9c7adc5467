# SPDX-License-Identifier: Apache-2.0
"""Mixtures: the annotation files of a training run, and how much of each is used.

A mixture is a YAML file with a list `datasets`. Of each entry,

- `json_path`, `data_folder` and `boxes_folder` (of VidSTG) are relative to the YAML file's folder, or absolute;
- `source` is a name for reports, by default that of the annotation file;
- `sampling_strategy` is `all` (the default), `first:N`, `end:N` or `random:N`, N rows of the file or `K%` of them, rounded up;
- `format` is one of `FORMAT_TASKS`, by default `st_align`, and `task` one of the tasks of the format.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field

from .schemas import ClosedSchema, Text, shown, validate


# Tasks that each format can be trained on, the first by default. The task of an ST-Align entry is any name, and rows of the format
# "jsonl" have their own task.
FORMAT_TASKS = {
    "st_align": (),
    "refcoco": ("rec", "reg"),
    "charades_sta": ("tvg", "tr"),
    "vidstg": ("stvg", "svg", "elc", "tvg", "tr"),
    "hc_stvg": ("stvg", "svg", "elc", "tvg", "tr"),
    "jsonl": (),
}
_STRATEGY = re.compile(r"(?P<which>first|end|random):(?P<amount>\d+(?:\.\d+)?)(?P<percent>%?)")


@dataclass(frozen=True)
class Strategy:
    """How much of a file is used: `which` is "all", "first", "end" or "random"; `amount` is in rows, or in per cent if `percent`."""

    which: str
    amount: Fraction = Fraction(0)
    percent: bool = False

    def count(self, total: int) -> int:
        """Number of rows used of `total`, at most all."""
        if self.which == "all":
            return total
        wanted = self.amount * total / 100 if self.percent else self.amount
        return min(total, -(-wanted.numerator // wanted.denominator))

    def rows(self, total: int, seed: list[int]) -> range | np.ndarray:
        """Indices of the rows to use, from 0, in the order of the file; "random" ones are drawn with `seed`."""
        count = self.count(total)
        if self.which == "random":
            return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
        return range(total - count, total) if self.which == "end" else range(count)


@dataclass(frozen=True)
class Entry:
    """One annotation file of a mixture, with absolute paths. `task` is None where each row has its own."""

    json_path: str
    data_folder: str | None
    source: str
    strategy: Strategy
    format: str
    task: str | None
    boxes_folder: str | None


def read_mixture(path: str | os.PathLike) -> list[Entry]:
    """
    The entries of a mixture file.

    Raises:
        ValueError: naming the file, the entry and its invalid field.
        OSError: where the file cannot be read.
    """
    entries = []
    for number, entry in read_entries(path):
        if isinstance(entry, str):
            raise ValueError(f"{os.fspath(path)}, entry {number}: {entry}")
        entries.append(entry)
    return entries


def read_entries(path: str | os.PathLike) -> Iterator[tuple[int, Entry | str]]:
    """
    Yields `(number, entry)`, or `(number, problem)`, counted from 1. A `.jsonl` file is a mixture of itself alone, with its folder as
    data folder.

    Raises:
        ValueError: naming the file, where it is not valid YAML with a list `datasets`.
        OSError: where the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The mixture file {path} does not exist.")
    if path.suffix == ".jsonl":
        yield 1, _entry(_EntryFields(json_path=path.name, data_folder=".", format="jsonl"), path.absolute().parent)
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = validate(_Mixture, content, "The mixture").datasets
    except RecursionError:
        raise ValueError(f"{path}: The YAML is nested too deeply.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    for number, raw in enumerate(entries, start=1):
        try:
            yield number, _entry(validate(_EntryFields, raw, "The entry"), path.absolute().parent)
        except ValueError as error:
            yield number, str(error)


class _Mixture(ClosedSchema):
    datasets: Annotated[list[Any], Field(min_length=1)]


class _EntryFields(ClosedSchema):
    json_path: Text
    data_folder: Text | None = None
    source: Text | None = None
    sampling_strategy: Any = "all"
    format: Any = "st_align"
    task: Text | None = None
    boxes_folder: Text | None = None


def _entry(fields: _EntryFields, folder: Path) -> Entry:
    json_path = _user_path(fields.json_path, folder)
    if not os.path.isfile(json_path):
        raise ValueError(f"The annotation file {json_path} does not exist.")
    format = fields.format
    if not isinstance(format, str) or format not in FORMAT_TASKS:
        raise ValueError(f"'format' must be one of {', '.join(FORMAT_TASKS)}, not {shown(format)}.")
    data_folder = None if fields.data_folder is None else _user_path(fields.data_folder, folder)
    if format not in ("st_align", "jsonl") and data_folder is None:
        raise ValueError(f"'data_folder' is missing: the format {format!r} needs the folder of its images or videos.")
    boxes_folder = None if fields.boxes_folder is None else _user_path(fields.boxes_folder, folder)
    if format == "vidstg":
        if boxes_folder is None:
            raise ValueError("'boxes_folder' is missing: the format 'vidstg' needs the folder of VidOR's annotations.")
        if not os.path.isdir(boxes_folder):
            raise ValueError(f"The boxes_folder {boxes_folder} does not exist.")
    elif boxes_folder is not None:
        raise ValueError(f"'boxes_folder' is not a valid key for the format {format!r}; it is for 'vidstg'.")
    return Entry(
        json_path=json_path,
        data_folder=data_folder,
        source=fields.source or Path(json_path).stem,
        strategy=_strategy(fields.sampling_strategy),
        format=format,
        task=_task(fields.task, format),
        boxes_folder=boxes_folder,
    )


def _user_path(value: str, folder: Path) -> str:
    """A path that the user wrote: relative to the folder of the mixture, or absolute."""
    return str(folder / os.path.expanduser(value))


def _strategy(text) -> Strategy:
    if text == "all":
        return Strategy("all")
    match = _STRATEGY.fullmatch(text) if isinstance(text, str) else None
    if match is not None:
        amount, percent = Fraction(match["amount"]), bool(match["percent"])
        if amount > 0 and (amount <= 100 if percent else amount.denominator == 1):
            return Strategy(match["which"], amount, percent)
    raise ValueError(
        "'sampling_strategy' must be all, first:N, end:N or random:N, where N is a number of rows above 0 or a share like 10%, not "
        f"{shown(text)}."
    )


def _task(task: str | None, format: str) -> str | None:
    if format == "jsonl":
        if task is not None:
            raise ValueError("'task' is not a valid key for the format 'jsonl', whose rows have their own task.")
        return None
    tasks = FORMAT_TASKS[format]
    if task is None:
        return tasks[0] if tasks else "conversation"
    if tasks and task not in tasks:
        raise ValueError(f"'task' must be one of {', '.join(tasks)} for the format {format!r}, not {task!r}.")
    return task
