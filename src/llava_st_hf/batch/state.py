# SPDX-License-Identifier: Apache-2.0
"""
State of a run, in its output folder.

    run.json                              manifest and options that the answers belong to
    answers/00000-of-00016.parquet        a finished shard: one row for each row of the manifest
    partial/00003-of-00016.parquet        rows of a shard that a run has begun when it was stopped, but not killed
    sessions/20261127T071500Z-1f0a.json   time and work of each process
    summary.json                          totals

Every file is written at once. A finished shard is not asked again; rows of shards that were begun when a process was killed are.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow

from .manifest import Manifest
from .outcomes import ANSWERS, Outcome, ShardInfo, read_info, read_outcomes, shard_name, write_outcomes
from .storage import Folder, in_parallel


RUN_FILE = "run.json"
PARTIAL = "partial"
_ROWS_PER_SHARD = 64
_MOST_SHARDS = 1000  # by default


@dataclass(frozen=True)
class Shard:
    """
    Rows of a manifest that are written to one file.

    Args:
        index: from 0.
        of: number of shards of the run.
        first_row: number of its first row, from 1.
        table: its rows of the manifest.
        questions: of its rows.
    """

    index: int
    of: int
    first_row: int
    table: pyarrow.Table
    questions: list[dict[str, Any]]

    @property
    def rows(self) -> range:
        """Numbers of its rows."""
        return range(self.first_row, self.first_row + len(self.questions))

    @property
    def name(self) -> str:
        """Name of its file."""
        return shard_name(self.index, self.of)

    def to_item(self) -> dict[str, Any]:
        """Values that other processes make the shard from, with `from_item`."""
        content = io.BytesIO()
        with pyarrow.ipc.new_stream(content, self.table.schema) as stream:
            stream.write_table(self.table)
        known = {"index": self.index, "of": self.of, "first_row": self.first_row, "table": content.getvalue()}
        return {**known, "questions": json.dumps(self.questions)}

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> "Shard":
        index, of, first_row = (int(item[name]) for name in ("index", "of", "first_row"))
        return cls(index, of, first_row, pyarrow.ipc.open_stream(item["table"]).read_all(), json.loads(item["questions"]))


@dataclass(frozen=True)
class Work:
    """
    What is left of a shard.

    Args:
        known: outcomes that are kept.
        earlier_failures: outcomes of a finished shard whose rows are asked again. A row that is not reached keeps its outcome.
    """

    known: dict[int, Outcome]
    earlier_failures: dict[int, Outcome]


@dataclass(frozen=True)
class Store:
    """
    Files of the shards of a run.

    Args:
        folder: of the output.
        run: hash of manifest and options.
        session: of this process; see `ShardInfo`.
        retry_failed: whether rows that failed in earlier sessions are asked again.
    """

    folder: Folder
    run: str
    session: str
    retry_failed: bool = False

    def work(self, shard: Shard) -> Work | None:
        """
        Reads what is left of a shard; None for nothing.

        Raises:
            ValueError: naming a file that is damaged or of another run.
        """
        info = self._info(f"{ANSWERS}/{shard.name}", shard)
        if info is not None:
            # A worker that is started again does not ask the failed rows twice.
            if not self.retry_failed or not info.failed or info.session == self.session:
                return None
            outcomes = read_outcomes(self.folder, f"{ANSWERS}/{shard.name}")
            answered = {row: outcome for row, outcome in outcomes.items() if outcome.is_answered}
            return Work(answered, {row: outcome for row, outcome in outcomes.items() if not outcome.is_answered})
        info = self._info(f"{PARTIAL}/{shard.name}", shard)
        if info is None:
            return Work({}, {})
        outcomes = read_outcomes(self.folder, f"{PARTIAL}/{shard.name}")
        kept = {row: outcome for row, outcome in outcomes.items() if outcome.is_answered or not self.retry_failed}
        return Work(kept, {})

    def save(self, shard: Shard, outcomes: dict[int, Outcome], work: Work) -> ShardInfo | None:
        """
        Writes the outcomes of a shard: to its file if all of its rows have one, else to the folder of partial shards.

        Returns:
            What the file of the shard contains; None for a partial one.
        """
        merged = {row: _with_requests(outcome, work.earlier_failures.get(row)) for row, outcome in outcomes.items()}
        merged = {**work.earlier_failures, **work.known, **merged}
        is_complete = len(merged) == len(shard.questions)
        subfolder = ANSWERS if is_complete else PARTIAL
        info = write_outcomes(
            self.folder, f"{subfolder}/{shard.name}", shard.table, shard.first_row, merged, shard.index, self.run, self.session
        )
        if not is_complete:
            return None
        self.folder.delete(f"{PARTIAL}/{shard.name}")
        return info

    def info(self, shard: Shard) -> ShardInfo:
        """
        What the file of a finished shard contains.

        Raises:
            ValueError, OSError: if it is missing, damaged or of another run.
        """
        info = self._info(f"{ANSWERS}/{shard.name}", shard)
        if info is None:
            raise FileNotFoundError(f"{self.folder.name(ANSWERS)}/{shard.name} is missing: is the output a folder that all workers share?")
        return info

    def _info(self, file: str, shard: Shard) -> ShardInfo | None:
        try:
            info = read_info(self.folder, file)
        except FileNotFoundError:
            return None
        if info.run != self.run or info.shard != shard.index:
            raise ValueError(f"{self.folder.name(file)} belongs to another run. Choose another output folder.")
        if info.rows != len(shard.questions) and file.startswith(ANSWERS):
            raise ValueError(f"{self.folder.name(file)} has {info.rows} rows, the shard has {len(shard.questions)}. Delete it.")
        return info


def _with_requests(outcome: Outcome, earlier: Outcome | None) -> Outcome:
    return outcome if earlier is None else replace(outcome, requests=outcome.requests + earlier.requests)


def make_shards(manifest: Manifest, count: int) -> list[Shard]:
    """Divides a manifest into shards of consecutive rows, whose numbers of rows differ by at most one."""
    rows = len(manifest.questions)
    bounds = [rows * index // count for index in range(count + 1)]
    return [
        Shard(
            index,
            count,
            bounds[index] + 1,
            manifest.table.slice(bounds[index], last - bounds[index]),
            manifest.questions[bounds[index] : last],
        )
        for index, last in enumerate(bounds[1:])
    ]


def open_run(folder: Folder, manifest: Manifest, options: dict[str, Any], num_shards: int | None) -> tuple[str, int]:
    """
    Creates `run.json`, or checks that the output folder belongs to this manifest and these options.

    Args:
        options: those that decide the answers, JSON-serializable.
        num_shards: None for that of the folder, or for a new run one of 64 rows, at most 1,000 shards.

    Returns:
        Hash of manifest and options, and the number of shards.

    Raises:
        ValueError: naming what differs.
    """
    rows = len(manifest.questions)
    content = folder.read(RUN_FILE)
    if content is None:
        if folder.names(ANSWERS) or folder.names(PARTIAL):
            raise ValueError(f"{folder.name(ANSWERS)} has files, but there is no {RUN_FILE}. Choose another output folder.")
        count = min(math.ceil(rows / _ROWS_PER_SHARD), _MOST_SHARDS) if num_shards is None else num_shards
        if count > rows:
            raise ValueError(f"--num-shards must be at most the number of rows, {rows}, got {count}.")
        state = {"manifest": os.path.basename(manifest.path), "manifest_sha256": manifest.sha256, "rows": rows, "shards": count}
        state["options"] = options
        folder.write(RUN_FILE, json.dumps(state, indent=2, ensure_ascii=False).encode())
        return _hash(state), count
    try:
        state = json.loads(content)
        earlier = {"manifest": state["manifest_sha256"], "shards": state["shards"], **state["options"]}
        count = state["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder.name(RUN_FILE)} was not written by `llava-st batch`, or is damaged: {error!r}") from error
    asked = {"manifest": manifest.sha256, "shards": count if num_shards is None else num_shards, **json.loads(json.dumps(options))}
    differences = [f"{name} is {asked.get(name)!r}, was {earlier.get(name)!r}" for name in _names(earlier, asked)]
    if earlier["manifest"] != asked["manifest"]:
        raise ValueError(
            f"{folder.path} has answers to another manifest, {state['manifest']} with {state['rows']} rows; {manifest.path} "
            f"has {rows} rows and another content. Choose another output folder."
        )
    if differences:
        raise ValueError(f"{folder.path} has answers with other options: {'; '.join(differences)}. Choose another output folder.")
    return _hash(state), count


def read_run(folder: Folder) -> tuple[str, dict[str, Any]] | None:
    """Hash of manifest and options of an output folder, and the options; None if it has no `run.json`."""
    content = folder.read(RUN_FILE)
    if content is None:
        return None
    state = json.loads(content)
    return _hash(state), state["options"]


def finished(folder: Folder, count: int) -> Iterator[ShardInfo]:
    """Yields the headers of the finished shards, in their order."""
    names = folder.names(ANSWERS)
    expected = {shard_name(index, count) for index in range(count)}
    if unexpected := set(names) - expected:
        raise ValueError(f"{folder.name(ANSWERS)} has files of another run: {', '.join(sorted(unexpected)[:5])}.")
    yield from in_parallel(lambda name: read_info(folder, f"{ANSWERS}/{name}"), names)


def _names(earlier: dict, asked: dict) -> list[str]:
    """Names of options that differ."""
    return [name for name in dict.fromkeys([*earlier, *asked]) if earlier.get(name) != asked.get(name)]


def _hash(state: dict) -> str:
    known = {name: state[name] for name in ("manifest_sha256", "rows", "shards", "options")}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
