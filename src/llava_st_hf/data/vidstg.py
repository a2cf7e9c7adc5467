# SPDX-License-Identifier: Apache-2.0
"""VidSTG annotations. The sentences are published by themselves; the boxes are in the annotations of VidOR.

A file is a list of `{"vid", "frame_count", "fps", "width", "height", "used_segment", "temporal_gt", "captions", "questions", …}`:

- `used_segment` `{"begin_fid", "end_fid"}`: the frames of the clip, both included;
- `temporal_gt` `{"begin_fid", "end_fid"}`: the frames of the event, `end_fid` one past the last, as in VidOR;
- `captions` and `questions`: lists of `{"description", "target_id"}`, each a sample.

VidOR has a file `<group>/<vid>.json` per video. Of its keys, `trajectories` is used, per frame a list of
`{"tid", "bbox": {"xmin", "ymin", "xmax", "ymax"}}` in pixels, where `tid` is what `target_id` refers to. The video is
`<group>/<vid>.mp4`. The sentences were checked against the published README and `val_annotations.json`, the boxes against programs that
read them. Boxes may extend beyond the image; they are clipped.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic import model_validator

from .json_rows import parse_strictly, read_rows
from .samples import Box, GroundingSample, clip_box
from .schemas import Count, Index, Number, Schema, Text, shown, validate


class _FrameRange(Schema):
    begin_fid: Index
    end_fid: Index


class _Row(Schema):
    vid: Text
    frame_count: Count
    fps: Number
    width: Count
    height: Count
    used_segment: _FrameRange
    temporal_gt: _FrameRange
    captions: list[Any] | None = None
    questions: list[Any] | None = None

    @model_validator(mode="after")
    def _check_frames_and_sentences(self) -> "_Row":
        first, last = self.clip
        begin, after = self.temporal_gt.begin_fid, self.temporal_gt.end_fid
        if not first <= begin < after <= last + 1:
            raise ValueError(f"'temporal_gt' from {begin} until {after} is not within 'used_segment', frames {first} to {last}.")
        if not self.captions and not self.questions:
            raise ValueError("'captions' and 'questions' are both empty or missing.")
        return self

    @property
    def clip(self) -> tuple[int, int]:
        """First and last frame, both included."""
        return self.used_segment.begin_fid, min(self.used_segment.end_fid, self.frame_count - 1)


class _Sentence(Schema):
    description: Text
    target_id: Index


class _BoxFile(Schema):
    trajectories: list[Any]


class _Corners(Schema):
    xmin: Number
    ymin: Number
    xmax: Number
    ymax: Number


class _TrackedObject(Schema):
    bbox: _Corners


def read_vidstg(path: str, boxes_folder: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    Reads the samples of one annotation file.

    Args:
        path: of the annotation file.
        boxes_folder: with VidOR's `<group>/<vid>.json` of the same split (test sentences are about VidOR's validation videos).

    Yields:
        `(row, sample)`, or `(row, problem)`; a row has as many of both as it has sentences. Rows count from 1. Times are fractions of
        the frames of `clip`.

    Raises:
        BrokenFileError, OSError: naming the file or the folder, where it cannot be read.
    """
    groups = {os.path.splitext(entry.name)[0]: group for group, entry in _box_files(boxes_folder)}

    @lru_cache(maxsize=4)  # rows about one video mostly follow each other
    def trajectories(vid: str) -> list:
        if vid not in groups:
            raise ValueError(f"The boxes of the video {vid!r:.100} are missing: {boxes_folder} has no <group>/{vid}.json.")
        name = os.path.join(boxes_folder, groups[vid], f"{vid}.json")
        with open(name, "rb") as file:
            try:
                content = parse_strictly(file.read())
            except ValueError as error:
                raise ValueError(f"{name} is not valid JSON: {error}.") from error
        return validate(_BoxFile, content, f"The content of {name}").trajectories

    for row, annotation in read_rows(path):
        if isinstance(annotation, str):
            yield row, annotation
            continue
        try:
            values = validate(_Row, annotation)
            frames = trajectories(values.vid)
        except ValueError as error:
            yield row, str(error)
            continue
        sentences = [(sentence, False) for sentence in values.captions or ()] + [(sentence, True) for sentence in values.questions or ()]
        for position, (sentence, is_question) in enumerate(sentences, start=1):
            try:
                checked = validate(_Sentence, sentence, "The sentence")
                id, video = f"{values.vid}-{row}-{position}", f"{groups[values.vid]}/{values.vid}.mp4"
                yield row, _sample(id, video, values, checked, is_question, frames)
            except ValueError as error:
                yield row, f"Sentence {position}: {error}"


def boxes_digest(boxes_folder: str) -> str:
    """A hash that changes with the name, size or time of any file of boxes."""
    digest = hashlib.sha256()
    for group, entry in sorted(_box_files(boxes_folder), key=lambda found: (found[0], found[1].name)):
        status = entry.stat()
        digest.update(f"{group}/{entry.name}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _box_files(boxes_folder: str) -> Iterator[tuple[str, os.DirEntry]]:
    with os.scandir(boxes_folder) as groups:
        for group in groups:
            if group.is_dir():
                with os.scandir(group.path) as files:
                    yield from ((group.name, file) for file in files if file.name.endswith(".json"))


def _sample(id: str, path: str, row: _Row, sentence: _Sentence, is_question: bool, frames: list) -> GroundingSample:
    first, last = row.clip
    begin, after = row.temporal_gt.begin_fid, row.temporal_gt.end_fid
    boxes = []
    for frame in range(begin, min(after, len(frames))):
        if (box := _box(frames[frame], sentence.target_id, frame, row.width, row.height)) is not None:
            boxes.append(((frame - first) / max(last - first, 1), box))
    if not boxes:
        raise ValueError(f"The target {sentence.target_id} has no boxes in the frames {begin} to {after - 1}.")
    return GroundingSample(
        id=id,
        kind="video",
        path=path,
        text=sentence.description,
        clip=(first, last),
        span=((begin - first) / max(last - first, 1), (after - 1 - first) / max(last - first, 1)),
        unit="fraction",
        boxes=tuple(boxes),
        width=row.width,
        height=row.height,
        fps=row.fps,
        num_frames=last - first + 1,
        is_question=is_question,
    )


def _box(objects, target: int, frame: int, width: int, height: int) -> Box | None:
    """The box of the target in one frame, clipped to the image; None if the frame has none, because the object is not visible."""
    if not isinstance(objects, list):
        raise ValueError(f"'trajectories[{frame}]' must be a list, not {shown(objects)}.")
    for number, found in enumerate(objects):
        if not isinstance(found, dict):
            raise ValueError(f"'trajectories[{frame}][{number}]' must be an object, not {shown(found)}.")
        if found.get("tid") == target:
            what = f"The box of the target {target} in frame {frame}"
            corners = validate(_TrackedObject, found, what).bbox
            return clip_box((corners.xmin, corners.ymin, corners.xmax, corners.ymax), width, height, what, slack=float("inf"))
    return None
