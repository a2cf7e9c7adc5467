# SPDX-License-Identifier: Apache-2.0
"""Mixtures: which annotation files are trained on, and how much of each.

A mixture is a YAML file with a list `datasets`. Of each entry,

- `json_path`, `data_folder` and `boxes_folder` (of VidSTG) are relative to the YAML file's folder, or absolute;
- `source` is a name for reports, by default that of the annotation file;
- `sampling_strategy` is `all` (the default), `first:N`, `end:N` or `random:N`, N rows of the file or `K%` of them, rounded up;
- `format` is one of `FORMAT_TASKS`, by default `st_align`, and `task` one that the format serves.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import yaml

from .checks import listing, mapping, words


# Tasks that each format can be trained on, the first by default. ST-Align's samples may be called anything, and rows of our own
# format say themselves what they are for.
FORMAT_TASKS = {
    "st_align": (),
    "refcoco": ("rec", "reg"),
    "charades_sta": ("tvg", "tr"),
    "vidstg": ("stvg", "svg", "elc", "tvg", "tr"),
    "hc_stvg": ("stvg", "svg", "elc", "tvg", "tr"),
    "jsonl": (),
}
_KEYS = ("json_path", "data_folder", "source", "sampling_strategy", "format", "task", "boxes_folder")
_STRATEGY = re.compile(r"(?P<which>first|end|random):(?P<amount>\d+(?:\.\d+)?)(?P<percent>%?)")


@dataclass(frozen=True)
class Strategy:
    """How much of a file is used: `which` is "all", "first", "end" or "random"; `amount` rows, or per cent where `percent`."""

    which: str
    amount: Fraction = Fraction(0)
    percent: bool = False

    def count(self, total: int) -> int:
        """How many of `total` rows; not more than there are."""
        if self.which == "all":
            return total
        wanted = self.amount * total / 100 if self.percent else self.amount
        return min(total, -(-wanted.numerator // wanted.denominator))

    def rows(self, total: int, seed: list[int]) -> range | np.ndarray:
        """Places of the rows to use, counted from 0, in the order of the file. `seed` decides which are "random"."""
        count = self.count(total)
        if self.which == "random":
            return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
        return range(total - count, total) if self.which == "end" else range(count)


@dataclass(frozen=True)
class Entry:
    """One annotation file of a mixture, with absolute paths. `task` is None where the rows say it themselves."""

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
        ValueError: naming the file and the entry, where something is wrong with it.
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
    Yields `(number, entry)`, or `(number, problem)`, counted from 1.

    Raises:
        ValueError: naming the file, where it is no list of `datasets`.
        OSError: where the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The mixture file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = listing(mapping(content, "A mixture").get("datasets"), "'datasets'")
        if not entries:
            raise ValueError("'datasets' is empty.")
        if unknown := [key for key in content if key != "datasets"]:
            raise ValueError(f"A mixture has no use for {', '.join(map(repr, unknown))}; its only key is 'datasets'.")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    for number, raw in enumerate(entries, start=1):
        try:
            yield number, _entry(raw, path.absolute().parent)
        except ValueError as error:
            yield number, str(error)


def _entry(raw, folder: Path) -> Entry:
    raw = mapping(raw, "An entry")
    if unknown := [key for key in raw if key not in _KEYS]:
        raise ValueError(f"An entry has no use for {', '.join(map(repr, unknown))}; its keys are {', '.join(_KEYS)}.")
    json_path = _user_path(raw.get("json_path"), "json_path", folder)
    if not os.path.isfile(json_path):
        raise ValueError(f"The annotation file {json_path} does not exist.")
    data_folder = boxes_folder = None
    if raw.get("data_folder") is not None:
        data_folder = _user_path(raw["data_folder"], "data_folder", folder)
    format = raw.get("format", "st_align")
    if not isinstance(format, str) or format not in FORMAT_TASKS:
        raise ValueError(f"format={format!r} is unknown; it is one of {', '.join(FORMAT_TASKS)}.")
    if format == "vidstg":
        boxes_folder = _user_path(raw.get("boxes_folder"), "boxes_folder", folder)
        if not os.path.isdir(boxes_folder):
            raise ValueError(f"The boxes_folder {boxes_folder} does not exist.")
    elif "boxes_folder" in raw:
        raise ValueError(f"The format {format!r} has no use for a boxes_folder; vidstg has.")
    if format not in ("st_align", "jsonl") and data_folder is None:
        raise ValueError(f"The format {format!r} needs a data_folder, where its media are.")
    return Entry(
        json_path=json_path,
        data_folder=data_folder,
        source=words(raw.get("source", Path(json_path).stem), "source"),
        strategy=_strategy(raw.get("sampling_strategy", "all")),
        format=format,
        task=_task(raw.get("task"), format),
        boxes_folder=boxes_folder,
    )


def _user_path(value, key: str, folder: Path) -> str:
    """A path of the user's own, from the mixture's folder if it is relative."""
    return str(folder / os.path.expanduser(words(value, key)))


def _strategy(text) -> Strategy:
    if text == "all":
        return Strategy("all")
    match = _STRATEGY.fullmatch(text) if isinstance(text, str) else None
    if match is not None:
        amount, percent = Fraction(match["amount"]), bool(match["percent"])
        if amount > 0 and (amount <= 100 if percent else amount.denominator == 1):
            return Strategy(match["which"], amount, percent)
    raise ValueError(
        f"sampling_strategy={text!r} is unknown; it is all, first:N, end:N or random:N, where N is a number of rows above 0 or a share "
        "like 10%."
    )


def _task(task, format: str) -> str | None:
    if format == "jsonl":
        if task is not None:
            raise ValueError("Rows of the format 'jsonl' name their own task; the entry has no use for one.")
        return None
    tasks = FORMAT_TASKS[format]
    if task is None:
        return tasks[0] if tasks else "conversation"
    if tasks and task not in tasks:
        raise ValueError(f"task={task!r} does not go with the format {format!r}, which serves {', '.join(tasks)}.")
    return words(task, "task")
