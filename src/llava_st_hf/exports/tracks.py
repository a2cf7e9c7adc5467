# SPDX-License-Identifier: Apache-2.0
"""What all export formats share: the events of answers as numbered tracks, clipped boxes, texts, and names of files."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlsplit

from ..model.media_files_llava_st import is_data_url
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Box, Event, Grounding


#: Label of an event that has neither a caption nor a query.
UNNAMED = "object"
# Characters that XML 1.0 cannot contain.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
# Boxes are rounded to 0.01 pixels.
_ROUNDING = 0.011


def without_control_characters(text: str) -> str:
    """`text` with the control characters that XML does not allow as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`text` without control characters, and with single spaces in place of other white space."""
    return " ".join(without_control_characters(text).split())


@dataclass(frozen=True)
class Track:
    """
    One event of an answer. Two events are two tracks, also where their captions are equal.

    Args:
        number: of the track in the file, from 1.
        grounding: the answer.
        event: the event.
    """

    number: int
    grounding: Grounding
    event: Event

    @cached_property
    def media(self) -> MediaInfo:
        assert self.grounding.media is not None  # `read_answers` checked it
        return self.grounding.media

    @cached_property
    def text(self) -> str | None:
        """Caption or query of the event in one line; None if it has neither."""
        return one_line(self.grounding.label(self.event) or "") or None

    @property
    def label(self) -> str:
        """`text`, or `UNNAMED`."""
        return self.text or UNNAMED

    @property
    def name(self) -> str:
        """Of the event in notes."""
        return f"Event {self.number} ({self.label[:60]!r})"

    @cached_property
    def frames(self) -> range:
        """Indices of the frames of the video during the event."""
        return self.grounding.frames(self.event)

    def key_boxes(self, notes: list[str]) -> dict[int, Box]:
        """`{frame: box}` of the answer's boxes in a video, clipped, in the order of frames; of several boxes in one frame the first."""
        boxes: dict[int, Box] = {}
        for box in self.event.tubelet:
            frame = self.media.frame_of_seconds(box.time) if box.frame is None and box.time is not None else box.frame
            if frame is not None:
                boxes.setdefault(frame, box)
        return self._clipped(boxes, notes)

    def frame_boxes(self, notes: list[str]) -> dict[int, Box]:
        """`{frame: box}` for every frame of the event in a video: boxes of the answer and interpolated ones, clipped."""
        return self._clipped(self.grounding.boxes_per_frame(self.event), notes)

    def boxes(self, notes: list[str]) -> list[Box]:
        """The boxes of the answer in its order, in a video also those without a time or frame, clipped."""
        return list(self._clipped(dict(enumerate(self.event.boxes)), notes).values())

    def _clipped(self, boxes: Mapping[int, Box], notes: list[str]) -> dict[int, Box]:
        width, height = self.media.width, self.media.height
        clipped = {key: box.clipped(width, height) for key, box in boxes.items()}
        kept = {key: box for key, box in clipped.items() if box.area > 0}
        changed = sum(max(abs(a - b) for a, b in zip(boxes[key].xyxy, box.xyxy, strict=True)) > _ROUNDING for key, box in kept.items())
        size = f"{self.media.kind if self.media.kind == 'image' else 'frame'} of {width}x{height} pixels"
        if changed:
            notes.append(f"{self.name}: {changed} of {len(boxes)} boxes extend beyond the {size} and were clipped.")
        if len(kept) < len(boxes):
            notes.append(f"{self.name}: {len(boxes) - len(kept)} of {len(boxes)} boxes have no area in the {size} and were left out.")
        return kept


def read_answers(groundings: Grounding | Mapping[str, Any] | Iterable) -> list[Grounding]:
    """
    Answers as `Grounding` objects.

    Args:
        groundings: one `Grounding` or answer dictionary, or several.

    Raises:
        ValueError: for no answers, one that is not valid, and one without media.
    """
    several = [groundings] if isinstance(groundings, Grounding | Mapping) else list(groundings)
    if not several:
        raise ValueError("groundings is empty: give one answer or more.")
    answers = []
    for index, answer in enumerate(several):
        try:
            answers.append(answer if isinstance(answer, Grounding) else Grounding.from_dict(answer))
        except ValueError as error:
            raise ValueError(f"groundings[{index}]: {error}") from error
        if answers[-1].media is None:
            raise ValueError(
                f"groundings[{index}] has no media, so the size of the image or video is unknown. Ask about an image or video."
            )
    return answers


def read_tracks(answers: list[Grounding]) -> list[Track]:
    """The events of all answers, in order."""
    events = [(answer, event) for answer in answers for event in answer.events]
    return [Track(number, answer, event) for number, (answer, event) in enumerate(events, start=1)]


def by_source(answers: list[Grounding]) -> dict[str, list[Track]]:
    """
    The tracks of each image or video, numbered over all of them. An image or video whose answers have no events has an empty list.

    Raises:
        ValueError: for an answer without source, and for two answers about one source with different sizes or kinds.
    """
    media: dict[str, MediaInfo] = {}
    for index, answer in enumerate(answers):
        assert answer.media is not None
        if not answer.source:
            raise ValueError(
                f"groundings[{index}] has no source, but the format names the image or video: "
                "use Grounding.from_dict(answer, source='clip.mp4')."
            )
        if is_data_url(answer.source):
            raise ValueError(
                f"groundings[{index}] has a data: URL as its source, but the format names the video: give a source with a name."
            )
        first, own = media.setdefault(answer.source, answer.media), answer.media
        if (first.kind, first.width, first.height) != (own.kind, own.width, own.height):
            raise ValueError(
                f"groundings[{index}]: {answer.source} is a {own.kind} of {own.width}x{own.height} pixels here, but a {first.kind} of "
                f"{first.width}x{first.height} pixels in an answer before."
            )
    tracks: dict[str, list[Track]] = {source: [] for source in media}
    for track in read_tracks(answers):
        tracks[str(track.grounding.source)].append(track)
    return tracks


def media_of(answers: list[Grounding], source: str) -> MediaInfo:
    """The media of the first answer about a source."""
    media = next(answer.media for answer in answers if answer.source == source)
    assert media is not None
    return media


def one_kind(answers: list[Grounding], format: str) -> str:
    """
    "image" or "video".

    Raises:
        ValueError: if there are both.
    """
    kinds = {answer.media.kind for answer in answers if answer.media is not None}
    if len(kinds) > 1:
        raise ValueError(f"The format {format!r} holds images or videos in one file, not both: write two files.")
    return kinds.pop()


def one_video(answers: list[Grounding], format: str) -> MediaInfo:
    """
    The media of answers that are all about one video.

    Raises:
        ValueError: for images, and for answers about several videos.
    """
    if one_kind(answers, format) == "image":
        raise ValueError(f"The format {format!r} is for videos; {answers[0].source or 'the medium'} is an image.")
    sources = list(dict.fromkeys(answer.source for answer in answers))
    if len(sources) > 1:
        raise ValueError(
            f"The format {format!r} holds one video in a file; got {' and '.join(map(str, sources[:3]))}. Write a file for each."
        )
    assert answers[0].media is not None
    return answers[0].media


def is_url(source: str) -> bool:
    return "://" in source


def file_names(sources: Iterable[str]) -> dict[str, str]:
    """
    A relative name with "/" for each source: its path below the folder that is common to all; for one source, the name of the file.

    Raises:
        ValueError: for two sources with one name, such as URLs that differ in their query only.
    """
    parts = {source: _parts(source) for source in sources}
    common = 0
    while len({path[common] if common < len(path) - 1 else (source,) for source, path in parts.items()}) == 1 and all(
        common < len(path) - 1 for path in parts.values()
    ):
        common += 1
    names = {source: "/".join(part.rstrip(":") for part in path[common:] if part) for source, path in parts.items()}
    of_name: dict[str, str] = {}
    for source, name in names.items():
        if (other := of_name.setdefault(name, source)) != source:
            raise ValueError(f"{other} and {source} have the same name in the file, {name}: give sources with different names.")
    return names


def _parts(source: str) -> tuple[str, ...]:
    if is_url(source):
        url = urlsplit(source)
        return (url.netloc, *[unquote(part) for part in url.path.split("/") if part])
    path = os.path.abspath(source)
    drive, rest = os.path.splitdrive(path)
    return (drive, *[part for part in rest.split(os.sep) if part])


def has_masks(tracks: Iterable[Track]) -> bool:
    return any(box.mask for track in tracks for box in track.event.boxes)


def has_presence(tracks: Iterable[Track]) -> bool:
    return any(track.event.presence is not None for track in tracks)


def has_scores(tracks: Iterable[Track]) -> bool:
    return any(
        value is not None
        for track in tracks
        for value in (track.event.score, track.event.span_score, *(box.score for box in track.event.boxes))
    )


def has_box_scores(tracks: Iterable[Track]) -> bool:
    return any(box.score is not None for track in tracks for box in track.event.boxes)


def has_boxes(tracks: Iterable[Track]) -> bool:
    return any(track.event.boxes for track in tracks)


def has_spans(tracks: Iterable[Track]) -> bool:
    return any(track.event.span is not None for track in tracks)


_HAS = {"scores": has_scores, "masks": has_masks, "scores of single boxes": has_box_scores, "presence": has_presence, "boxes": has_boxes}


def report_missing(tracks: list[Track], kinds: Iterable[str], format: str, notes: list[str]) -> None:
    """Adds a note for each kind of value, a key of `_HAS`, that the answers have and the format cannot hold."""
    notes += [f"The format {format} has no place for {kind}: left out." for kind in kinds if _HAS[kind](tracks)]
