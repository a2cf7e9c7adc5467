# SPDX-License-Identifier: Apache-2.0
"""Answers of `llava-st ground`: printed as a table or as JSON, and appended to a JSONL file that a later call resumes from.

A record is the answer of the pipeline with `source`, the path or URL of the input; that of an input that could not be answered has `source`
and `error`. In a file each record also has `settings`, the options that decide the answer.
"""

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_st_cli.terminal import error_line, one_line, printable, to_json

from ..files import append_file
from ..model.results_llava_st import Event, Grounding


# The beginning of every line of a file.
_BEGINNING = '{"source": '
_LONGEST_NAME = 200  # characters of a name in a table


class AnswerFile:
    """
    A JSONL file of records.

    Args:
        path: of the file, which may not exist yet.
        settings: of the records that are read and appended.

    Raises:
        ValueError: naming file and line, if a line is not a record.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: str, settings: dict):
        self.path, self.settings = path, json.loads(json.dumps(settings))
        #: Source → its answer with these settings. Records of failures are left out: their inputs are tried again.
        self.answers: dict[str, dict] = {}
        if os.path.exists(path):
            self._read()

    def append(self, record: dict) -> None:
        append_file(self.path, json.dumps({**record, "settings": self.settings}, ensure_ascii=False) + "\n")

    def _read(self) -> None:
        lines = Path(self.path).read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            self._keep(line, number)
        if not lines[-1]:
            return
        try:  # a last line without line break: of an editor, or of a process that was killed while it wrote
            self._keep(lines[-1], len(lines))
        except ValueError:
            if not lines[-1].startswith(_BEGINNING.encode()[: len(lines[-1])]):
                raise
            print(error_line(f"{self.path}: the incomplete last line of an interrupted call is removed."), file=sys.stderr)
            os.truncate(self.path, sum(len(line) + 1 for line in lines[:-1]))
        else:
            append_file(self.path, "\n")

    def _keep(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"--jsonl {self.path}, line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("source"), str) or not isinstance(record.get("settings"), dict):
            raise ValueError(f"--jsonl {self.path}, line {number} is not an answer of `llava-st ground`, to which answers are appended.")
        if "error" not in record and record.pop("settings") == self.settings:
            self.answers[record["source"]] = record


def print_json(record: dict, indent: int | None) -> None:
    """Prints a record on stdout."""
    print(to_json(record, indent), flush=True)


def print_table(record: dict) -> None:
    """Prints a record on a terminal: a line for each event, or for each box of an image."""
    console = Console(highlight=False, markup=False, emoji=False)
    source = one_line(record["source"])
    source = source if len(source) <= _LONGEST_NAME else f"{source[:_LONGEST_NAME]}…"  # a data: URL
    if "error" in record:
        console.print(Text(f"{source}: not answered", style="bold red"), soft_wrap=True)
        return
    grounding = Grounding.from_dict(record)
    heading = " · ".join(filter(None, (source, grounding.task, one_line(grounding.query or ""))))
    console.print(Text(heading, style="bold"), soft_wrap=True)
    print_events(console, grounding)
    console.print()


def print_events(console: Console, grounding: Grounding, with_text: bool = True) -> None:
    """Prints events and notes; with `with_text`, also the text of an answer that has no events."""
    if grounding.events:
        console.print(_table(grounding))
    elif with_text:
        console.print(Text(printable(grounding.text) or "The answer is empty."))
    for note in grounding.notes:
        console.print(Text(f"Note: {one_line(note)}", style="yellow"), soft_wrap=True)


def _table(grounding: Grounding) -> Table:
    has_scores = any(event.score is not None for event in grounding.events)
    has_presence = any(event.presence is not None for event in grounding.events)
    has_captions = any(event.caption for event in grounding.events)
    table = Table(box=None, pad_edge=False, show_edge=False)
    headings = ["start", "end", "boxes"] if grounding.is_video else ["x1", "y1", "x2", "y2"]
    for heading in [*headings, *["score"] * has_scores, *["presence"] * has_presence]:
        table.add_column(heading, justify="right", no_wrap=True)
    if has_captions:
        table.add_column("caption")
    for event in grounding.events:
        captions = [Text(one_line(event.caption or ""))] * has_captions
        for cells, score in _rows(event, grounding.is_video):
            scores = [_number(score, 2)] * has_scores + [_number(event.presence, 2)] * has_presence
            table.add_row(*cells, *scores, *captions)
    return table


def _rows(event: Event, is_video: bool) -> list[tuple[list[str], float | None]]:
    """Cells and score of the lines of an event: span and number of boxes of a video, each box of an image."""
    if is_video:
        return [([*(f"{_number(seconds, 3)} s" for seconds in (event.start, event.end)), str(len(event.boxes))], event.score)]
    return [([_number(edge, 1) for edge in box.xyxy], box.score) for box in event.boxes] or [([""] * 4, event.score)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
