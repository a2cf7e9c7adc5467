# SPDX-License-Identifier: Apache-2.0
"""Checks mixtures before training: lists all problems of a mixture, its annotations and its images and videos."""

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
from ..model.video_processing_llava_st import LlavaSTVideoProcessor
from ..model.video_reading_llava_st import check_allow_truncated, read_video
from ..model.video_sampling_llava_st import check_num_frames, resolve_clip, sample_frame_indices
from .inline import check_text
from .json_rows import BrokenFileError
from .mixture import Entry, read_entries
from .records import read_entry


# Rows about one image or video mostly follow each other; each of the last images and clips is read once.
CACHED_MEDIA = 1024
# The clip of a content item: in frames, or else its start and end in seconds.
Clip = tuple[tuple[int, int] | None, float | None, float | None]


@dataclass(frozen=True)
class Problem:
    """The reason why a row cannot be used for training.

    Args:
        file: the annotation file, or the mixture itself.
        row: of the file, counted from 1; of the mixture, the entry; 0 for the whole file.
        id: of the sample; None where it is not known.
        reason: one or more sentences.
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
    """Result of a check: all `problems`, and for each source the number of usable `rows` and of problems (`problem_rows`)."""

    problems: list[Problem] = field(default_factory=list)
    rows: Counter = field(default_factory=Counter)
    problem_rows: Counter = field(default_factory=Counter)

    def summary(self) -> list[str]:
        """One line per source."""
        sources = {**self.rows, **self.problem_rows}
        rows, problems = self.rows, self.problem_rows
        return [f"{source}: {_count(rows[source], 'usable row')}, {_count(problems[source], 'problem')}" for source in sources]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class MediaChecks:
    """
    Options of the check of images and videos.

    Args:
        num_frames: frames that the model samples of a clip, `num_frames` of its video processor; by default that of a new LLaVA-ST
            processor. As many evenly spaced frames of each clip are decoded, and answers about densely annotated videos are checked
            with boxes at them.
        decode: decode all frames of each video.
        video_backend: reader of video files, see `open_video_file`.
        allow_truncated: whether training reads truncated video files, which are then not a problem.

    Raises:
        ValueError: for a number of frames below 1, `allow_truncated` that is not a bool, or an unknown backend.
        ImportError: for a backend that is not installed.
    """

    num_frames: int = LlavaSTVideoProcessor.num_frames
    decode: bool = False
    video_backend: str | None = None
    allow_truncated: bool = False

    def __post_init__(self):
        check_num_frames(self.num_frames)
        check_backend(self.video_backend)
        check_allow_truncated(self.allow_truncated)


def validate_mixture(path: str | os.PathLike, check_media: bool = True, max_problems: int | None = None, **media_checks) -> list[Problem]:
    """
    Lists all problems of a mixture: of the file itself, rows of its annotations, and their images and videos. Every row is checked,
    whether or not the sampling strategy selects it.

    Args:
        path: of the YAML file.
        check_media: read every image to its end, and of each video the index and the frames that training would read. Finds files that
            are missing, damaged, truncated or not accepted for another reason, clips beyond the video, and times and pixels outside the
            image or video.
        max_problems: stop after this number of problems.
        media_checks: `num_frames`, `decode`, `video_backend` and `allow_truncated`, see `MediaChecks`.

    Returns:
        The problems in the order of the mixture; an empty list if there are none. A mixture that is missing or malformed is one of
        them.

    Raises:
        ValueError: for `max_problems` below 1 or an invalid argument of `MediaChecks`.
        ImportError: for a backend that is not installed.
    """
    return examine_mixture(path, check_media, max_problems, **media_checks).problems


def examine_mixture(path: str | os.PathLike, check_media: bool = True, max_problems: int | None = None, **media_checks) -> Report:
    """As `validate_mixture`, with counts per source."""
    if max_problems is not None and max_problems < 1:
        raise ValueError(f"max_problems must be at least 1, got {max_problems}.")
    checks = MediaChecks(**media_checks)
    report = Report()
    report.problems = list(islice(_problems(path, checks, check_media, report), max_problems))
    return report


def _problems(path: str | os.PathLike, checks: MediaChecks, check_media: bool, report: Report) -> Iterator[Problem]:
    media = _Media(checks) if check_media else None
    try:
        for number, entry in read_entries(path):
            if isinstance(entry, str):
                yield Problem(os.fspath(path), number, None, entry)
            else:
                for problem in _entry_problems(entry, media, checks.num_frames, report):
                    report.problem_rows[entry.source] += 1
                    yield problem
    except (ValueError, OSError) as error:
        yield Problem(os.fspath(path), 0, None, str(error))


def _entry_problems(entry: Entry, media: "_Media | None", num_frames: int, report: Report) -> Iterator[Problem]:
    report.rows[entry.source] += 0  # so that the summary lists a source without a usable row
    row = 0
    try:
        for row, found in read_entry(entry, num_frames):
            if isinstance(found, str):
                yield Problem(entry.json_path, row, None, found)
                continue
            try:
                if media is not None:
                    _check_coordinates(found, media)
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


def _check_coordinates(row: dict, read: "_Media") -> None:
    item = next((item for message in row["messages"] for item in message["content"] if item["type"] != "text"), None)
    if item is None:
        return
    media = read.of(item)

    def to_position(axis: str, value: float, written: str) -> float:
        return media.time_position(value, written) if axis == "temporal" else media.pixel_position(axis, value, written)

    for message in row["messages"]:
        for content in message["content"]:
            if content["type"] == "text":
                check_text(content["text"], item["type"], to_position)


class _Media:
    """
    Reads the images and videos of content items with the options of `checks`. The last ones are cached, with their errors: a clip is
    read once for all rows about it, and with `decode` a video once for all rows.
    """

    def __init__(self, checks: MediaChecks):
        self.checks = checks
        self.read = lru_cache(maxsize=CACHED_MEDIA)(self._read)

    def of(self, item: dict) -> MediaInfo:
        """Metadata of the image or clip of an item; raises the `ValueError` or `OSError` of one that cannot be read."""
        clip = (None if item["clip"] is None else tuple(item["clip"]), item["start"], item["end"])
        found = self.read(item["type"], item["path"], None if self.checks.decode else clip)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, MediaInfo):
            return found
        return found.media(*_frames_of(clip, found))

    def _read(self, kind: str, path: str, clip: Clip | None) -> MediaInfo | LlavaSTVideoMetadata | Exception:
        """Metadata of an image; or of a video whose clip was decoded (all frames for None); or the error of either."""

        def decode(reader) -> LlavaSTVideoMetadata:
            metadata = reader.metadata
            indices = list(range(metadata.total_num_frames))
            if clip is not None:
                indices = sorted(set(sample_frame_indices(*_frames_of(clip, metadata), self.checks.num_frames)))
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


def _frames_of(clip: Clip, metadata: LlavaSTVideoMetadata) -> tuple[int, int]:
    """First and last frame of a clip, both included."""
    frames, start, end = clip
    seconds = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
    first, last = resolve_clip({"frames": frames} if frames is not None else seconds or None, metadata)
    return first, min(last, metadata.total_num_frames - 1)


def _image_size(path: str) -> tuple[int, int]:
    """`(width, height)` in pixels of an image after EXIF rotation; raises an error for an image file that is incomplete."""
    check_image_file(path)
    height, width = original_size(path)
    return width, height
