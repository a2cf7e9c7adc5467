# SPDX-License-Identifier: Apache-2.0
"""
Output rows: the row of the manifest, and what became of its question, as Parquet.

`answer` is a struct with the names and units of the tables of `llava_st_hf.exports`: `text`; `events`, a list of structs with `caption`,
`start_s`, `end_s` and `boxes`, a list of structs with `frame`, `time_s`, `xmin_px`, `ymin_px`, `xmax_px`, `ymax_px` and `interpolated`;
`notes`; and `media`, the fields of `MediaInfo`. It is null where the question failed.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow
from pyarrow import parquet

from ..exports.tables import arrow_fields
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import SIDES, Box, Event, Grounding
from .storage import Folder


#: Folder of the output with a file for each shard.
ANSWERS = "answers"
_METADATA = b"llava_st_batch"  # key of the metadata of a file
_LONGEST_ERROR = 4000  # characters of a message, which may quote media in base64
_BOX = pyarrow.struct(arrow_fields("frame", "time_s", *(f"{side}_px" for side in SIDES), "interpolated"))
_EVENT = pyarrow.struct([*arrow_fields("caption", "start_s", "end_s"), ("boxes", pyarrow.list_(_BOX))])
_TYPES = {"kind": pyarrow.string(), "notes": pyarrow.list_(pyarrow.string())}
_TYPES |= dict.fromkeys(("fps", "start_time", "end_time", "duration"), pyarrow.float64())
_TYPES |= dict.fromkeys(("width", "height", "first_frame", "last_frame", "total_num_frames"), pyarrow.int64())
_TYPES |= {"frame_times": pyarrow.list_(pyarrow.float64()), "frames": pyarrow.list_(pyarrow.int64())}
_MEDIA = pyarrow.struct([(field.name, _TYPES[field.name]) for field in fields(MediaInfo)])
_ANSWER = pyarrow.struct(
    [("text", pyarrow.string()), ("events", pyarrow.list_(_EVENT)), ("notes", pyarrow.list_(pyarrow.string())), ("media", _MEDIA)]
)
#: Column → type; they follow the columns of the manifest. `row` counts from 1.
RESULT_COLUMNS = {
    "row": pyarrow.int64(),
    "status": pyarrow.string(),
    "error_type": pyarrow.string(),
    "error": pyarrow.string(),
    "answer": _ANSWER,
    "finish_reason": pyarrow.string(),
    "prompt_tokens": pyarrow.int64(),
    "completion_tokens": pyarrow.int64(),
    "media_bytes": pyarrow.int64(),
    "requests": pyarrow.int64(),
    "latency_s": pyarrow.float64(),
    "server": pyarrow.string(),
}
OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class Outcome:
    """
    What became of a question.

    Args:
        answer: None if the question failed.
        error_type, error: name of the exception or `HTTP 400`, and its message; None for an answer.
        finish_reason: of the server: "stop", or "length" for an answer that the limit of tokens ended; None if unknown.
        prompt_tokens, completion_tokens: as the server counts them; None if unknown.
        media_bytes: size of the image or video that was sent or read; None if unknown.
        requests: how often a request was sent: above 1 after retries, 0 if the question failed before.
        latency_s: seconds from the start of the preparation to the answer, retries included.
        server: URL of the server that answered; None without a server.
    """

    answer: Grounding | None = None
    error_type: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    media_bytes: int | None = None
    requests: int = 0
    latency_s: float | None = None
    server: str | None = None

    @property
    def is_answered(self) -> bool:
        return self.answer is not None


@dataclass(frozen=True)
class ShardInfo:
    """
    What a file of answers contains, as in its metadata.

    Args:
        shard: number of the shard, from 0.
        run: hash of manifest and options.
        session: of the process that wrote it.
        rows: number of rows in the file.
        failures: error type → number of rows.
        prompt_tokens, completion_tokens, media_bytes, requests: sums over its rows.
        truncated: number of answers that the limit of tokens ended.
        latency_s: sum over its rows.
    """

    shard: int
    run: str
    session: str
    rows: int
    failures: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    media_bytes: int
    requests: int
    truncated: int
    latency_s: float

    @property
    def failed(self) -> int:
        """Number of rows that failed."""
        return sum(self.failures.values())


def write_outcomes(
    folder: Folder, file: str, table: pyarrow.Table, first_row: int, outcomes: dict[int, Outcome], shard: int, run: str, session: str
) -> ShardInfo:
    """
    Writes the rows of a shard that have an outcome, in the order of the manifest.

    Args:
        table: rows of the shard, with the columns of the manifest.
        first_row: number of the first of them, from 1.
        outcomes: number of the row → outcome.
    """
    info = _info(list(outcomes.values()), shard, run, session)
    folder.write(file, to_parquet(table, first_row, outcomes, {_METADATA: json.dumps(asdict(info))}))
    return info


def to_parquet(table: pyarrow.Table, first_row: int, outcomes: dict[int, Outcome], metadata: dict | None = None) -> bytes:
    """Content of a file with the rows of a table that have an outcome; see `write_outcomes`."""
    rows = sorted(outcomes)
    written = table.take(pyarrow.array([row - first_row for row in rows], pyarrow.int64()))
    for name in RESULT_COLUMNS:
        written = written.append_column(name, _column(name, rows, outcomes))
    content = io.BytesIO()
    parquet.write_table(written.replace_schema_metadata(metadata), content)
    return content.getvalue()


def read_info(folder: Folder, file: str) -> ShardInfo:
    """
    Reads the header of a file of answers.

    Raises:
        ValueError: naming the file, if it is damaged or not one of a run.
    """
    try:
        with folder.open(file) as opened:
            found = parquet.ParquetFile(opened)
            info = ShardInfo(**json.loads(found.schema_arrow.metadata[_METADATA]))
            rows = found.metadata.num_rows
    except (pyarrow.ArrowException, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder.name(file)} is damaged or was not written by `llava-st batch`. Delete it to have its rows asked again. ({error})"
        ) from error
    if rows != info.rows:
        raise ValueError(f"{folder.name(file)} has {rows} rows, but {info.rows} were written. Delete it to have its rows asked again.")
    return info


def read_outcomes(folder: Folder, file: str) -> dict[int, Outcome]:
    """Reads the outcomes of a file of answers: number of the row → outcome."""
    content = folder.read(file)
    if content is None:
        raise FileNotFoundError(f"No such file: {folder.name(file)}")
    rows = parquet.read_table(io.BytesIO(content), columns=list(RESULT_COLUMNS)).to_pylist()
    names = [field.name for field in fields(Outcome) if field.name != "answer"]
    return {row["row"]: Outcome(_from_struct(row["answer"], row), **{name: row[name] for name in names}) for row in rows}


def shard_name(index: int, of: int) -> str:
    """Name of the file of a shard. Names are in the order of the shards."""
    return f"{index:0{max(5, len(str(of)))}d}-of-{of:05d}.parquet"


def read_answers(output: str) -> Iterator[tuple[dict[str, Any], Grounding | None]]:
    """
    Reads the output of `llava-st batch`, one file at a time, in the order of the manifest.

    Args:
        output: its folder, or a URL that fsspec reads.

    Yields:
        `(row, answer)`: the columns of the row except `answer`, and the answer; None for a question that failed.

    Raises:
        ValueError, OSError: naming a file that cannot be read, or that is missing, as in the output of a run that has not ended.
    """
    folder = Folder(output)
    names = folder.names(ANSWERS)
    if not names:
        raise FileNotFoundError(f"{folder.name(ANSWERS)} has no files: is {output} the output of `llava-st batch`?")
    count = names[0].removesuffix(".parquet").rpartition("-")[2]
    if not count.isdecimal() or names != [shard_name(index, int(count)) for index in range(int(count))]:
        raise FileNotFoundError(
            f"{folder.name(ANSWERS)} has {len(names)} of {count} files. Run the same command again to have all rows; any reader of Parquet "
            "reads the files of those that are done."
        )
    for name in names:
        file = f"{ANSWERS}/{name}"
        read_info(folder, file)
        for row in parquet.read_table(io.BytesIO(folder.read(file) or b"")).to_pylist():
            answer = row.pop("answer")
            yield row, _from_struct(answer, row)


def _info(outcomes: list[Outcome], shard: int, run: str, session: str) -> ShardInfo:
    failures: dict[str, int] = {}
    for outcome in outcomes:
        if not outcome.is_answered:
            failures[outcome.error_type or ""] = failures.get(outcome.error_type or "", 0) + 1
    names = ("prompt_tokens", "completion_tokens", "media_bytes", "requests")
    sums = {name: sum(getattr(outcome, name) or 0 for outcome in outcomes) for name in names}
    truncated = sum(outcome.finish_reason == "length" for outcome in outcomes)
    latency = round(sum(outcome.latency_s or 0.0 for outcome in outcomes), 3)
    return ShardInfo(shard, run, session, len(outcomes), failures, truncated=truncated, latency_s=latency, **sums)


def _column(name: str, rows: list[int], outcomes: dict[int, Outcome]) -> pyarrow.Array:
    if name == "row":
        values: list = rows
    elif name == "status":
        values = [OK if outcomes[row].is_answered else FAILED for row in rows]
    elif name == "answer":
        values = [None if (answer := outcomes[row].answer) is None else _to_struct(answer) for row in rows]
    else:
        values = [getattr(outcomes[row], name) for row in rows]
    if name in ("error_type", "error"):  # a lone surrogate cannot be stored
        values = [None if value is None else value[:_LONGEST_ERROR].encode("utf-8", "backslashreplace").decode("utf-8") for value in values]
    return pyarrow.array(values, RESULT_COLUMNS[name])


def _to_struct(answer: Grounding) -> dict[str, Any]:
    events = [
        {"caption": event.caption, "start_s": event.start, "end_s": event.end, "boxes": [_box_struct(box) for box in event.boxes]}
        for event in answer.events
    ]
    media = None if answer.media is None else answer.media.to_dict()
    return {"text": answer.text, "events": events, "notes": list(answer.notes), "media": media}


def _box_struct(box: Box) -> dict[str, Any]:
    sides = dict(zip((f"{side}_px" for side in SIDES), box.xyxy, strict=True))
    return {"frame": box.frame, "time_s": box.time, **sides, "interpolated": box.interpolated}


def _from_struct(answer: dict | None, row: dict) -> Grounding | None:
    """The answer of a row; None for a question that failed. Task, query and source are those of the row."""
    if answer is None:
        return None
    events = []
    for event in answer["events"]:
        boxes = [
            Box(*(box[f"{side}_px"] for side in SIDES), time=box["time_s"], frame=box["frame"], interpolated=box["interpolated"])
            for box in event["boxes"]
        ]
        events.append(Event(event["caption"], event["start_s"], event["end_s"], tuple(boxes)))
    media = None if answer["media"] is None else MediaInfo.from_dict(answer["media"])
    source = row.get("video") or row.get("image")
    return Grounding(answer["text"], tuple(events), media, tuple(answer["notes"]), row.get("task"), row.get("text"), source)
