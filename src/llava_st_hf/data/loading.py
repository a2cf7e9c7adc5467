# SPDX-License-Identifier: Apache-2.0
"""Loads mixtures as `datasets.Dataset`, stored in Arrow files on disk, or as `datasets.IterableDataset`, read while iterating.

The rows of an annotation file are stored in the cache of `datasets` and used again while the file's size and time, and the version of
this package, stay the same. Problems of rows are stored with the rows, so that a second load reports them too.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from ..model.video_sampling_llava_st import check_num_frames
from ..version import __version__
from .mixture import Entry, Strategy, read_mixture
from .records import check_num_frames_given, needs_num_frames, read_entry
from .rows import FEATURES
from .vidstg import boxes_digest


logger = logging.get_logger(__name__)

_RECORD = Features({**FEATURES, "row": Value("int64"), "problem": Value("string")})
_NOTHING = dict.fromkeys(FEATURES)


class _Skipped:
    """Counts and logs skipped rows; raises an error where none may be skipped, or too many are."""

    def __init__(self, on_error: str, max_errors: int):
        self.on_error, self.max_errors, self.count = on_error, max_errors, 0

    def __call__(self, entry: Entry, row: int, problem: str) -> None:
        where = f"{entry.json_path}, row {row}: {problem}"
        if self.on_error == "raise":
            raise ValueError(where)
        self.count += 1
        if self.count > self.max_errors:
            raise ValueError(f"More than max_errors={self.max_errors} rows had to be skipped; the last of them is {where}")
        logger.warning(f"Skipped {self.count} of at most {self.max_errors}: {where}")


def load_mixture(
    path: str | os.PathLike,
    streaming: bool = False,
    on_error: str = "raise",
    max_errors: int = 100,
    seed: int = 0,
    cache_dir: str | None = None,
    num_frames: int | None = None,
) -> Dataset | IterableDataset:
    """
    Loads the conversations of a mixture, entry by entry, each in the order of its file.

    Args:
        path: of the YAML file; see `mixture`.
        streaming: read the files while iterating, and write nothing. Only for the sampling strategies `all` and `first:N`, as the
            others need the number of rows.
        on_error: "raise" a `ValueError` for a row that cannot be used, or "skip" it with a warning. Rows that the sampling strategy
            does not select are not checked. A file that is not valid JSON to its end is an error in either case.
        max_errors: maximum number of skipped rows, of the whole mixture; while streaming, of each pass in each process.
        seed: of the sampling strategy `random`.
        cache_dir: folder of the Arrow files, by default that of `datasets`. Several processes may share it.
        num_frames: frames that the model samples of a clip, `processor.video_processor.num_frames`: answers about densely annotated
            videos (formats `vidstg` and `hc_stvg`, tasks stvg, svg and elc) have one box for each sampled frame of the event. Needed
            if the mixture has such an entry; without effect on others.

    Returns:
        A dataset with the columns of `rows.FEATURES`.

    Raises:
        ValueError: naming file, row and reason, while streaming during the iteration; or naming an argument that is missing or invalid.
        OSError: where a file cannot be read.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} must be 'raise' or 'skip'.")
    if num_frames is not None:
        check_num_frames(num_frames)
    entries = read_mixture(path)
    for entry in entries:
        check_num_frames_given(entry, num_frames)
    if streaming:
        return _stream(entries, on_error, max_errors, num_frames)
    skipped = _Skipped(on_error, max_errors)
    parts = [_load(entry, skipped, [seed, number], cache_dir, num_frames) for number, entry in enumerate(entries)]
    dataset = concatenate_datasets(parts)
    if len(dataset) == 0:
        raise ValueError(f"{os.fspath(path)} has no usable rows: {skipped.count} were skipped.")
    return dataset


def _stop(entry: Entry) -> int | None:
    """Maximum number of rows read of the file; None where it depends on the number of rows in the file."""
    strategy = entry.strategy
    return int(strategy.amount) if strategy.which == "first" and not strategy.percent else None


def _read(entry: Entry, num_frames: int | None) -> Iterator[tuple[int, dict | str]]:
    """The rows of an entry, up to the last that its strategy can select."""
    stop, seen, last = _stop(entry), 0, None
    for row, found in read_entry(entry, num_frames):
        if row != last:  # one row of a file may give several
            seen, last = seen + 1, row
        if stop is not None and seen > stop:
            return
        yield row, found
    if last is None:
        raise ValueError(f"{entry.json_path} has no rows{f' for the task {entry.task!r}' if entry.task else ''}.")


def _records(entry: Entry, num_frames: int | None, state: str) -> Iterator[dict]:
    """Rows as they are stored in Arrow. `state` is not used: `datasets` hashes it, and so reads a changed file again."""
    for row, found in _read(entry, num_frames):
        if isinstance(found, str):
            yield {**_NOTHING, "row": row, "problem": found}
        else:
            yield {**found, "row": row, "problem": None}


def _state(entry: Entry) -> str:
    """A text that changes whenever stored Arrow files are out of date."""
    status = os.stat(entry.json_path)
    boxes = boxes_digest(entry.boxes_folder) if entry.boxes_folder is not None else ""
    return f"{__version__}:{status.st_size}:{status.st_mtime_ns}:{boxes}"


def _load(entry: Entry, skipped: _Skipped, seed: list[int], cache_dir: str | None, num_frames: int | None) -> Dataset:
    # Without the strategy and the number of frames where the rows read do not depend on them: such a file is stored once for all.
    whole = entry if _stop(entry) is not None else replace(entry, strategy=Strategy("all"))
    gen_kwargs = {"entry": whole, "num_frames": num_frames if needs_num_frames(entry) else None, "state": _state(entry)}
    try:
        table = Dataset.from_generator(_records, features=_RECORD, cache_dir=cache_dir, gen_kwargs=gen_kwargs)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, (ValueError, OSError)):  # the reason, without the internals of `datasets`
            raise error.__cause__ from None
        raise
    places = _places(table, entry, seed)
    problems = table.data.column("problem")
    if problems.null_count < len(problems):
        bad = np.intersect1d(places, np.flatnonzero(pc.is_valid(problems).to_numpy()))
        for place in bad.tolist():
            skipped(entry, table[place]["row"], table[place]["problem"])
        places = np.setdiff1d(places, bad)
    if len(places) < len(table):
        table = table.select(places)
    return table.remove_columns(["row", "problem"])


def _places(table: Dataset, entry: Entry, seed: list[int]) -> range | np.ndarray:
    """Indices in the table of the rows of the file that the strategy selects, ascending."""
    if entry.strategy.which == "all":
        return range(len(table))
    rows = table.data.column("row").to_numpy()  # (records,), ascending; a row may have several records, one after the other
    starts = np.flatnonzero(np.diff(rows, prepend=-1))  # (rows of the file,), where each begins
    chosen = entry.strategy.rows(len(starts), seed)
    if len(starts) == len(rows) or len(chosen) == 0:
        return chosen
    ends = np.append(starts[1:], len(rows))
    return np.concatenate([np.arange(starts[place], ends[place]) for place in chosen])


def _stream(entries: list[Entry], on_error: str, max_errors: int, num_frames: int | None) -> IterableDataset:
    for entry in entries:
        if entry.strategy.which != "all" and _stop(entry) is None:
            raise ValueError(
                f"{entry.json_path}: streaming supports the sampling strategies all and first:N only, as it does not read the number of "
                f"rows first; this is {entry.strategy.which}:{'…%' if entry.strategy.percent else 'N'}."
            )
    return IterableDataset.from_generator(
        _usable_rows,
        features=FEATURES,
        gen_kwargs={"entries": entries, "on_error": on_error, "max_errors": max_errors, "num_frames": num_frames},
    )


def _usable_rows(entries: list[Entry], on_error: str, max_errors: int, num_frames: int | None) -> Iterator[dict]:
    skipped = _Skipped(on_error, max_errors)
    for entry in entries:
        for row, found in _read(entry, num_frames):
            if isinstance(found, str):
                skipped(entry, row, found)
            else:
                yield found
