# SPDX-License-Identifier: Apache-2.0
"""Parquet and CSV tables with a row per box of the answers.

- An event without boxes has one row with empty columns of the box, an answer without events one row with empty columns of the event.
- Boxes are those of the answer (interpolated ones only if the answer contains them), clipped to the image or frame, in pixels. `frame`
  counts from 0, times are in seconds from the start of the container, both as in the file, so clips and variable rates need no
  conversion.
- `source` is the path or URL as given. `event` counts the events of all answers from 1, `answer` the answers.
- CSV is UTF-8 with a header, commas and quotes as in RFC 4180 (https://www.rfc-editor.org/rfc/rfc4180). Spreadsheets evaluate cells that
  begin with = + - @ or a control character, so texts that do are written with an apostrophe before them
  (https://owasp.org/www-community/attacks/CSV_Injection), and noted. Control characters are written as U+FFFD. Parquet
  (https://parquet.apache.org) keeps all texts as they are.
"""

import csv
import io
from pathlib import Path
from typing import Any

from ..files import write_file
from ..model.results_llava_st import Box, Grounding
from .tracks import Track, read_tracks, without_control_characters


#: Columns and their types: "text", "integer", "number" or "boolean".
COLUMNS = {
    "answer": "integer",
    "source": "text",
    "kind": "text",
    "width_px": "integer",
    "height_px": "integer",
    "fps": "number",
    "task": "text",
    "query": "text",
    "answer_presence": "number",
    "event": "integer",
    "caption": "text",
    "start_s": "number",
    "end_s": "number",
    "event_score": "number",
    "span_score": "number",
    "event_presence": "number",
    "frame": "integer",
    "time_s": "number",
    "xmin_px": "number",
    "ymin_px": "number",
    "xmax_px": "number",
    "ymax_px": "number",
    "box_score": "number",
    "interpolated": "boolean",
    "mask_rle": "text",
}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    notes: list[str] = []
    escaped = 0
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for row in _rows(answers, notes):
        cells = []
        for name, kind in COLUMNS.items():
            value = row.get(name)
            if kind == "text" and value:
                value = without_control_characters(value)
                if value.startswith(_FORMULA_STARTS):
                    value, escaped = f"'{value}", escaped + 1
            cells.append(value)
        table.writerow(cells)
    if escaped:
        notes.append(f"{escaped} cells that a spreadsheet would evaluate, because of their first character, begin with an apostrophe.")
    write_file(path, text.getvalue())
    return notes


def write_parquet(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    import pyarrow  # an optional dependency
    from pyarrow import parquet

    notes: list[str] = []
    rows = [{name: row.get(name) for name in COLUMNS} for row in _rows(answers, notes)]
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(arrow_fields(*COLUMNS)))
    file = io.BytesIO()
    parquet.write_table(table, file)
    write_file(path, file.getvalue())
    return notes


def arrow_fields(*columns: str) -> list[tuple]:
    """Names of `COLUMNS` with their types in Parquet."""
    import pyarrow

    types = {"text": pyarrow.string(), "integer": pyarrow.int64(), "number": pyarrow.float64(), "boolean": pyarrow.bool_()}
    return [(name, types[COLUMNS[name]]) for name in columns]


def _rows(answers: list[Grounding], notes: list[str]) -> list[dict[str, Any]]:
    rows = []
    numbered = iter(read_tracks(answers))
    for number, answer in enumerate(answers, start=1):
        media = answer.media
        assert media is not None  # `read_answers` checked it
        about = {
            **{"answer": number, "source": answer.source, "kind": media.kind, "width_px": media.width, "height_px": media.height},
            **{"fps": media.fps, "task": answer.task, "query": answer.query, "answer_presence": answer.presence},
        }
        tracks = [next(numbered) for _ in answer.events]
        rows += [{**about, **_event(track), **box} for track in tracks for box in _boxes(track, notes) or [{}]] or [about]
    return rows


def _event(track: Track) -> dict[str, Any]:
    event = track.event
    times = {"start_s": event.start, "end_s": event.end}
    scores = {"event_score": event.score, "span_score": event.span_score, "event_presence": event.presence}
    return {"event": track.number, "caption": event.caption, **times, **scores}


def _boxes(track: Track, notes: list[str]) -> list[dict[str, Any]]:
    return [_box(box) for box in track.boxes(notes)]


def _box(box: Box) -> dict[str, Any]:
    corners = dict(zip(("xmin_px", "ymin_px", "xmax_px", "ymax_px"), box.xyxy, strict=True))
    known = {"box_score": box.score, "interpolated": box.interpolated, "mask_rle": box.mask}
    return {"frame": box.frame, "time_s": box.time, **corners, **known}
