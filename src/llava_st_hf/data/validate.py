# SPDX-License-Identifier: Apache-2.0
"""Whether a mixture can be trained on: everything that is wrong with it, at once and before the first step."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from ..model.grounding_llava_st import MediaInfo
from ..model.image_files_llava_st import check_image_file
from ..model.image_processing_llava_st import original_size
from ..model.video_decoding_llava_st import check_backend
from ..model.video_metadata_llava_st import LlavaSTVideoMetadata
from ..model.video_reading_llava_st import check_allow_truncated, read_video
from ..model.video_sampling_llava_st import check_num_frames, resolve_clip, sample_frame_indices
from .inline import check_text
from .json_rows import BrokenFileError
from .mixture import Entry, read_entries
from .questions import SAMPLED_FRAMES
from .records import read_entry


# Rows about one medium mostly stand together; each image and each part of a video among the last ones is read once.
REMEMBERED_MEDIA = 1024
# Of a content item: its clip in frames, or else its start and end in seconds.
Part = tuple[tuple[int, int] | None, float | None, float | None]


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
        rows, problems = self.rows, self.problem_rows
        return [f"{source}: {_count(rows[source], 'usable row')}, {_count(problems[source], 'problem')}" for source in sources]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class MediaChecks:
    """
    How media are read.

    Args:
        num_frames: of each part of a video that a row is about, so many frames spread evenly are decoded: those that training reads,
            where this is `num_frames` of the model's video processor.
        decode: decode all frames of each video.
        video_backend: what reads video files, see `open_video_file`.
        allow_truncated: whether training reads truncated video files: then they are no problem as far as they go.

    Raises:
        ValueError: for a number of frames below 1, `allow_truncated` that is no bool, or an unknown backend.
        ImportError: for a backend that is not installed.
    """

    num_frames: int = SAMPLED_FRAMES
    decode: bool = False
    video_backend: str | None = None
    allow_truncated: bool = False

    def __post_init__(self):
        check_num_frames(self.num_frames)
        check_backend(self.video_backend)
        check_allow_truncated(self.allow_truncated)


def validate_mixture(path: str | os.PathLike, check_media: bool = True, max_problems: int | None = None, **media_checks) -> list[Problem]:
    """
    All that is wrong with a mixture: the file itself, rows of its annotations, and their media. Every row is looked at, whichever the
    sampling strategy takes.

    Args:
        path: of the YAML file.
        check_media: read every medium: the index of each video and the frames of it that training would read, images to the end.
            Finds files that are missing, damaged, truncated or refused for another reason, clips beyond the video, and times and
            pixels outside the medium.
        max_problems: stop after so many.
        media_checks: `num_frames`, `decode`, `video_backend` and `allow_truncated`, see `MediaChecks`.

    Returns:
        The problems in the order of the mixture; an empty list where there is none. A mixture that is missing or malformed is one of
        them.

    Raises:
        ValueError: for `max_problems` below 1 or an argument of `MediaChecks` that is none.
        ImportError: for a backend that is not installed.
    """
    return examine_mixture(path, check_media, max_problems, **media_checks).problems


def examine_mixture(path: str | os.PathLike, check_media: bool = True, max_problems: int | None = None, **media_checks) -> Report:
    """As `validate_mixture`, with counts per source."""
    if max_problems is not None and max_problems < 1:
        raise ValueError(f"max_problems must be at least 1, got {max_problems}.")
    checks = MediaChecks(**media_checks)
    report = Report()
    report.problems = list(islice(_problems(path, checks if check_media else None, report), max_problems))
    return report


def _problems(path: str | os.PathLike, checks: MediaChecks | None, report: Report) -> Iterator[Problem]:
    media = _Media(checks) if checks else None
    try:
        for number, entry in read_entries(path):
            if isinstance(entry, str):
                yield Problem(os.fspath(path), number, None, entry)
            else:
                for problem in _entry_problems(entry, media, report):
                    report.problem_rows[entry.source] += 1
                    yield problem
    except (ValueError, OSError) as error:
        yield Problem(os.fspath(path), 0, None, str(error))


def _entry_problems(entry: Entry, media: "_Media | None", report: Report) -> Iterator[Problem]:
    report.rows[entry.source] += 0  # so that a source without a usable row is in the summary
    row = 0
    try:
        for row, found in read_entry(entry):
            if isinstance(found, str):
                yield Problem(entry.json_path, row, None, found)
                continue
            try:
                if media is not None:
                    _check_against_medium(found, media)
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


def _check_against_medium(row: dict, read: "_Media") -> None:
    item = next((item for message in row["messages"] for item in message["content"] if item["type"] != "text"), None)
    if item is None:
        return
    media = read.of(item)

    def to_position(axis: str, value: float, written: str) -> float:
        return media.time_position(value, written) if axis == "temporal" else media.pixel_position(axis, value, written)

    for message in row["messages"]:
        for part in message["content"]:
            if part["type"] == "text":
                check_text(part["text"], item["type"], to_position)


class _Media:
    """
    Media of content items, whose pixels are read as `checks` say. Those read last are remembered, with the errors that they gave: a part
    of a video is read once for all rows about it, and with `decode` a video once for all rows.
    """

    def __init__(self, checks: MediaChecks):
        self.checks = checks
        self.read = lru_cache(maxsize=REMEMBERED_MEDIA)(self._read)

    def of(self, item: dict) -> MediaInfo:
        """The medium of an item; `ValueError` or `OSError` where it cannot be had."""
        part = (None if item["clip"] is None else tuple(item["clip"]), item["start"], item["end"])
        found = self.read(item["type"], item["path"], None if self.checks.decode else part)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, MediaInfo):
            return found
        return found.media(*_frames_of(part, found))

    def _read(self, kind: str, path: str, part: Part | None) -> MediaInfo | LlavaSTVideoMetadata | Exception:
        """An image; or the metadata of a video after the frames of a part were decoded, or all for None; or the error of either."""

        def decode(reader) -> LlavaSTVideoMetadata:
            metadata = reader.metadata
            indices = list(range(metadata.total_num_frames))
            if part is not None:
                indices = sorted(set(sample_frame_indices(*_frames_of(part, metadata), self.checks.num_frames)))
            for _ in reader.chunks(indices):
                pass
            return metadata

        try:
            if not os.path.exists(path):
                raise FileNotFoundError(f"{path} does not exist.")
            if os.path.isfile(path) and os.path.getsize(path) == 0:
                raise OSError(f"{path} is empty.")
            if kind == "image":
                width, height = _image_size(path)
                return MediaInfo("image", width=width, height=height)
            return read_video(path, decode, self.checks.video_backend, self.checks.allow_truncated)
        except (ValueError, OSError) as error:
            return error


def _frames_of(part: Part, metadata: LlavaSTVideoMetadata) -> tuple[int, int]:
    """First and last frame of a part of a video, both included."""
    frames, start, end = part
    seconds = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
    first, last = resolve_clip({"frames": frames} if frames is not None else seconds or None, metadata)
    return first, min(last, metadata.total_num_frames - 1)


def _image_size(path: str) -> tuple[int, int]:
    """`(width, height)` of an upright picture whose data is whole."""
    check_image_file(path)
    height, width = original_size(path)
    return width, height
