# SPDX-License-Identifier: Apache-2.0
"""Whether a mixture can be trained on: everything that is wrong with it, at once and before the first step."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from ..grounding import Media
from ..image_files_llava_st import check_image_file
from ..image_processing_llava_st import original_size
from ..video_decoding_llava_st import read_video_metadata
from ..video_sampling_llava_st import resolve_clip
from .inline import check_text
from .json_rows import BrokenFileError
from .mixture import Entry, read_entries
from .records import read_entry


# Rows about one medium mostly stand together; each medium among the last ones is opened once.
REMEMBERED_MEDIA = 1024


@dataclass(frozen=True)
class Problem:
    """`reason` why a row cannot be trained on.

    Args:
        file: the annotation file, or the mixture itself.
        row: of the file, counted from 1; of the mixture, the entry; 0 where it is about the whole file.
        id: of the sample; None where it is not known.
        reason: in plain words.
    """

    file: str
    row: int
    id: str | None
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}, row {self.row}" if self.row else self.file
        return f"{place}{f' (id {self.id})' if self.id is not None else ''}: {self.reason}"


@dataclass
class Report:
    """What was found: all `problems`, and of each source the usable `rows` and the number of problems, `problem_rows`."""

    problems: list[Problem] = field(default_factory=list)
    rows: Counter = field(default_factory=Counter)
    problem_rows: Counter = field(default_factory=Counter)

    def summary(self) -> list[str]:
        """A line per source."""
        sources = {**self.rows, **self.problem_rows}
        return [f"{source}: {self.rows[source]} usable rows, {self.problem_rows[source]} problems" for source in sources]


def validate_mixture(path: str | os.PathLike, check_media: bool = True, max_problems: int | None = None) -> list[Problem]:
    """
    All that is wrong with a mixture: the file itself, rows of its annotations, and their media. Every row is looked at, whichever the
    sampling strategy takes.

    Args:
        path: of the YAML file.
        check_media: open every medium: videos as far as their first frame, images to the end. Finds missing and damaged files, clips
            beyond the video, and times and pixels outside the medium.
        max_problems: stop after so many.
    """
    return examine_mixture(path, check_media, max_problems).problems


def examine_mixture(path: str | os.PathLike, check_media: bool = True, max_problems: int | None = None) -> Report:
    """As `validate_mixture`, with counts per source."""
    if max_problems is not None and max_problems < 1:
        raise ValueError(f"max_problems must be at least 1, got {max_problems}.")
    report = Report()
    report.problems = list(islice(_problems(path, check_media, report), max_problems))
    return report


def _problems(path: str | os.PathLike, check_media: bool, report: Report) -> Iterator[Problem]:
    read = lru_cache(maxsize=REMEMBERED_MEDIA)(_read_medium) if check_media else None
    try:
        for number, entry in read_entries(path):
            if isinstance(entry, str):
                yield Problem(os.fspath(path), number, None, entry)
            else:
                for problem in _entry_problems(entry, read, report):
                    report.problem_rows[entry.source] += 1
                    yield problem
    except (ValueError, OSError) as error:
        yield Problem(os.fspath(path), 0, None, str(error))


def _entry_problems(entry: Entry, read: Callable | None, report: Report) -> Iterator[Problem]:
    report.rows[entry.source] += 0  # so that a source without a usable row is in the summary
    row = 0
    try:
        for row, found in read_entry(entry):
            if isinstance(found, str):
                yield Problem(entry.json_path, row, None, found)
                continue
            try:
                if read is not None:
                    _check_against_medium(found, read)
                report.rows[entry.source] += 1
            except (ValueError, OSError) as error:
                yield Problem(entry.json_path, row, found["id"], str(error))
    except BrokenFileError as error:
        yield Problem(entry.json_path, error.row, None, error.reason)
    except OSError as error:
        yield Problem(entry.json_path, 0, None, str(error))
    else:
        if row == 0:
            yield Problem(entry.json_path, 0, None, "The file has no rows.")


def _check_against_medium(row: dict, read: Callable) -> None:
    item = next((item for message in row["messages"] for item in message["content"] if item["type"] != "text"), None)
    if item is None:
        return
    media = _media(item, read)

    def to_position(axis: str, value: float, written: str) -> float:
        return media.time_position(value, written) if axis == "temporal" else media.pixel_position(axis, value, written)

    for message in row["messages"]:
        for part in message["content"]:
            if part["type"] == "text":
                check_text(part["text"], item["type"], to_position)


def _media(item: dict, read: Callable) -> Media:
    """The medium of a content item; `ValueError` or `OSError` where it cannot be had. `read` remembers `_read_medium`."""
    found = read(item["type"], item["path"])
    if isinstance(found, Exception):
        raise found
    if item["type"] == "image":
        width, height = found
        return Media("image", width=width, height=height)
    if item["clip"] is not None:
        clip = {"frames": item["clip"]}
    else:
        clip = {name: item[name] for name in ("start", "end") if item[name] is not None} or None
    return found.media(*resolve_clip(clip, found))


def _read_medium(kind: str, path: str):
    """The metadata of a video, `(width, height)` of an image, or the error that reading it gives."""
    try:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} does not exist.")
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise OSError(f"{path} is empty.")
        return read_video_metadata(path) if kind == "video" else _image_size(path)
    except (ValueError, OSError) as error:
        return error


def _image_size(path: str) -> tuple[int, int]:
    """`(width, height)` of an upright picture whose data is whole."""
    check_image_file(path)
    height, width = original_size(path)
    return width, height
