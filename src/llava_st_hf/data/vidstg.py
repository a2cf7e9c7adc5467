# SPDX-License-Identifier: Apache-2.0
"""VidSTG, whose sentences are published by themselves and whose boxes stand in the annotations of VidOR.

A file is a list of `{"vid", "frame_count", "fps", "width", "height", "used_segment", "temporal_gt", "captions", "questions", …}`:

- `used_segment` `{"begin_fid", "end_fid"}`: the frames to look at, both included;
- `temporal_gt` `{"begin_fid", "end_fid"}`: the frames of the event, `end_fid` one past the last, as in VidOR;
- `captions` and `questions`: lists of `{"description", "target_id"}`, each a sample of its own.

VidOR has a file `<group>/<vid>.json` per video; of its keys are used `trajectories`, per frame a list of
`{"tid", "bbox": {"xmin", "ymin", "xmax", "ymax"}}` in pixels, and the video is `<group>/<vid>.mp4`. `tid` is what `target_id` names.
The sentences were checked against the published README and `val_annotations.json`; the boxes against programs that read them. Boxes
may reach over the picture's edge, where they are cut.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache

from .checks import listing, mapping, member, number, whole, words
from .json_rows import parse_strictly, read_rows
from .samples import Box, GroundingSample, within


def read_vidstg(path: str, boxes_folder: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    The samples of one annotation file.

    Args:
        path: of the annotation file.
        boxes_folder: with VidOR's `<group>/<vid>.json` of the same split (test sentences belong to VidOR's validation videos).

    Yields:
        `(row, sample)`, or `(row, problem)`; a row has as many of both as it has sentences. Rows count from 1. Times are fractions of
        the frames of `clip`.

    Raises:
        BrokenFileError, OSError: naming the file or the folder, where it cannot be read.
    """
    groups = {os.path.splitext(entry.name)[0]: group for group, entry in _box_files(boxes_folder)}

    @lru_cache(maxsize=4)  # rows about one video mostly stand together
    def trajectories(vid: str) -> list:
        if vid not in groups:
            raise ValueError(f"The boxes of the video {vid!r:.100} are missing: {boxes_folder} has no <group>/{vid}.json.")
        with open(os.path.join(boxes_folder, groups[vid], f"{vid}.json"), "rb") as file:
            boxes = mapping(parse_strictly(file.read()), f"The boxes of the video {vid!r}")
        return listing(member(boxes, "trajectories", f"The file of the boxes of {vid!r}"), "'trajectories'")

    for row, annotation in read_rows(path):
        if isinstance(annotation, str):
            yield row, annotation
            continue
        try:
            vid = words(member(annotation, "vid", "The row"), "'vid'")
            frames = trajectories(vid)
            sentences = _sentences(annotation)
        except ValueError as error:
            yield row, str(error)
            continue
        for position, (sentence, is_question) in enumerate(sentences, start=1):
            try:
                yield row, _sample(f"{vid}-{row}-{position}", f"{groups[vid]}/{vid}.mp4", annotation, sentence, is_question, frames)
            except ValueError as error:
                yield row, f"Sentence {position}: {error}"


def boxes_digest(boxes_folder: str) -> str:
    """A short text that changes with the name, size or time of any file of boxes."""
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


def _sentences(annotation: dict) -> list[tuple[object, bool]]:
    found = []
    for key in ("captions", "questions"):
        found += [(sentence, key == "questions") for sentence in listing(annotation.get(key) or [], f"{key!r}")]
    if not found:
        raise ValueError("The row has neither 'captions' nor 'questions'.")
    return found


def _frames(annotation: dict, key: str) -> tuple[int, int]:
    span = mapping(member(annotation, key, "The row"), f"{key!r}")
    return whole(span.get("begin_fid"), f"'begin_fid' of {key!r}"), whole(span.get("end_fid"), f"'end_fid' of {key!r}")


def _sample(id: str, path: str, annotation: dict, sentence, is_question: bool, frames: list) -> GroundingSample:
    sentence = mapping(sentence, "A sentence")
    text = words(member(sentence, "description", "A sentence"), "'description'")
    target = whole(member(sentence, "target_id", "A sentence"), "'target_id'")
    width, height, count = (whole(member(annotation, key, "The row"), f"{key!r}", minimum=1) for key in ("width", "height", "frame_count"))
    first, last = _frames(annotation, "used_segment")
    last = min(last, count - 1)
    begin, after = _frames(annotation, "temporal_gt")
    if not first <= begin < after <= last + 1:
        raise ValueError(f"'temporal_gt' from {begin} until {after} is no part of 'used_segment', frames {first} to {last}.")
    boxes = []
    for frame in range(begin, min(after, len(frames))):
        if (box := _box(frames[frame], target, frame, width, height)) is not None:
            boxes.append(((frame - first) / max(last - first, 1), box))
    if not boxes:
        raise ValueError(f"The target {target} has no boxes in the frames {begin} to {after - 1}.")
    return GroundingSample(
        id=id,
        kind="video",
        path=path,
        text=text,
        clip=(first, last),
        span=((begin - first) / max(last - first, 1), (after - 1 - first) / max(last - first, 1)),
        unit="fraction",
        boxes=tuple(boxes),
        width=width,
        height=height,
        fps=number(member(annotation, "fps", "The row"), "'fps'"),
        num_frames=last - first + 1,
        is_question=is_question,
    )


def _box(things, target: int, frame: int, width: int, height: int) -> Box | None:
    """The box of the target in one frame, cut at the picture's edges; None where it is not seen."""
    for thing in listing(things, f"Frame {frame} of 'trajectories'"):
        if mapping(thing, f"A thing of frame {frame}").get("tid") == target:
            what = f"The box of {target} in frame {frame}"
            box = mapping(thing.get("bbox"), what)
            x1, y1, x2, y2 = (number(box.get(key), f"{key!r} of {what[0].lower()}{what[1:]}") for key in ("xmin", "ymin", "xmax", "ymax"))
            return within((x1, y1, x2, y2), width, height, what, slack=float("inf"))
    return None
