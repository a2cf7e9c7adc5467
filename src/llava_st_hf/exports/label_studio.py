# SPDX-License-Identifier: Apache-2.0
"""Label Studio tasks with predictions (https://labelstud.io/guide/predictions): `videorectangle` tracks and `timelinelabels` spans of
videos, `rectanglelabels` of images.

- Label Studio counts frames from 1 and assumes a constant rate: it displays frame `n` at `(n - 1) / fps` seconds of the file. Frames are
  therefore numbered by time, `1 + round(seconds * fps)`, so that boxes are on the right picture also where the frame rate varies or the
  video starts late. `fps` is in the data of the task; the labeling configuration must use it: `<Video … frameRate="$fps">`.
- Boxes are in percent of the width and height of the upright frame. Boxes of the answer are keyframes, `enabled` (interpolated until the
  next) except the last one, which ends the track. `framesCount` and `duration` (seconds) are those of the file.
- The label is the caption, else the query; `label_config` returns a labeling configuration with all labels of the answers.
- URLs are written as they are, files as `/data/local-files/?d=<folder>/<path>`, the form of Label Studio's local storage: `<path>` is
  below the folder common to all sources, `<folder>` the name of this folder, and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT the folder that
  contains it (Label Studio's storages are folders within that one).

Not in the file: scores of single boxes, masks.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from ..files import write_file
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Box, Grounding
from .tracks import (
    Track,
    by_source,
    file_names,
    is_url,
    media_of,
    one_kind,
    read_answers,
    read_tracks,
    report_missing,
)


#: That of Label Studio's <Video> without `frameRate`.
DEFAULT_FPS = 24.0


@dataclass(frozen=True)
class Controls:
    """
    Names of the tags of a labeling configuration; None where it has no such tag.

    Args:
        media: of `<Video>` or `<Image>`.
        boxes: of `<VideoRectangle>` or `<RectangleLabels>`.
        spans: of `<TimelineLabels>`.
        media_kind: "video" or "image".
    """

    media: str
    boxes: str | None
    spans: str | None
    media_kind: str = "video"


VIDEO_CONTROLS = Controls("video", "box", "span")
IMAGE_CONTROLS = Controls("image", "box", None, "image")


def write(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    notes: list[str] = []
    kind = one_kind(answers, "label-studio")
    tracks_of = by_source(answers)
    names = file_names(tracks_of)
    tasks = []
    for source, tracks in tracks_of.items():
        media = media_of(answers, source)
        data = {kind: source if is_url(source) else f"/data/local-files/?d={quote(_below_storage(source, names[source]))}"}
        fps = media.fps or DEFAULT_FPS
        if kind == "video":
            data["fps"] = fps
        controls = VIDEO_CONTROLS if kind == "video" else IMAGE_CONTROLS
        if kind == "video" and media.fps is None:
            rate = f"{DEFAULT_FPS:g} frames per second"
            notes.append(f"The frame rate of {source} is unknown: frames are numbered by their index, times and duration are at {rate}.")
        regions = [region for track in tracks for region in track_regions(track, controls, track.label, fps, notes)]
        tasks.append({"data": data, "predictions": [prediction(regions, tracks, "llava-st")]})
    everything = [track for tracks in tracks_of.values() for track in tracks]
    report_missing(everything, ("scores of single boxes", "masks", "presence"), "label-studio", notes)
    write_file(path, json.dumps(tasks, ensure_ascii=False, allow_nan=False))
    return notes


def _below_storage(source: str, name: str) -> str:
    """`name`, the end of the path `source`, with the folder before it."""
    folder = Path(os.path.abspath(source)).parents[name.count("/")]
    return f"{folder.name}/{name}".lstrip("/")


def track_regions(track: Track, controls: Controls, label: str, fps: float, notes: list[str]) -> list[dict]:
    """
    The regions of an event: a track and a span in a video, rectangles in an image.

    Args:
        track: the event.
        controls: of the labeling configuration.
        label: of the labeling configuration.
        fps: frames per second by which Label Studio counts: `frameRate` of `<Video>`.
        notes: to which notes about what was left out or changed are added.
    """
    media = track.media
    parts = _video_regions(track, controls, fps, notes) if media.kind == "video" else _image_regions(track, controls, notes)
    if not parts:
        notes.append(f"{track.name} has neither boxes nor a span that the labeling configuration can hold, and was left out.")
    regions = []
    for part, type, name, value, labels_key in parts:
        region = {
            "id": f"event{track.number}-{part}",
            "type": type,
            "from_name": name,
            "to_name": controls.media,
            "origin": "prediction",
            "value": {**value, labels_key: [label]},
            "meta": {"text": [track.label]},
        }
        if media.kind == "image":
            region.update({"original_width": media.width, "original_height": media.height, "image_rotation": 0})
        score = track.event.span_score if part == "span" else track.event.score
        regions.append({**region, **({} if score is None else {"score": score})})
    return regions


def prediction(regions: list[dict], tracks: list[Track], model_version: str) -> dict:
    """A prediction of a Label Studio task, with the mean score of its events."""
    scores = [track.event.score for track in tracks if track.event.score is not None]
    mean = {"score": sum(scores) / len(scores)} if scores else {}
    return {"model_version": model_version, "result": regions, **mean}


def _video_regions(track: Track, controls: Controls, fps: float, notes: list[str]) -> list[tuple]:
    media, regions = track.media, []

    def number(frame: int, seconds: float | None) -> int:
        seconds = media.seconds_of_frame(frame) if seconds is None else seconds
        return 1 + (frame if seconds is None else max(round(seconds * fps), 0))

    last = media.last_frame_of_file
    duration = media.duration
    if duration is None:
        duration = ((media.seconds_of_frame(last) or 0.0) + 1 / media.fps) if media.fps else (last + 1) / fps
    count = max(round(duration * fps), number(last, None))
    # Two frames of a video of variable rate may have the same number: the first is kept.
    keyframes: dict[int, tuple[int, Box]] = {}
    boxes = track.key_boxes(notes) if controls.boxes is not None else {}
    for frame, box in boxes.items():
        keyframes.setdefault(number(frame, box.time), (frame, box))
    if len(keyframes) < len(boxes):
        notes.append(f"{track.name}: {len(boxes) - len(keyframes)} boxes are less than 1/{fps:g} s after another and were left out.")
    if keyframes:
        sequence = [
            {"frame": n, "time": round((n - 1) / fps, 4), "enabled": n != max(keyframes), "rotation": 0, **_percent(box, media)}
            for n, (_, box) in keyframes.items()
        ]
        value = {"framesCount": count, "duration": round(duration, 4), "sequence": sequence}
        regions.append(("box", "videorectangle", controls.boxes, value, "labels"))
    if controls.spans is not None and len(track.frames):
        start, end = number(track.frames[0], track.event.start), number(track.frames[-1], track.event.end)
        value = {"ranges": [{"start": start, "end": max(min(end, count), start)}]}
        regions.append(("span", "timelinelabels", controls.spans, value, "timelinelabels"))
    return regions


def _image_regions(track: Track, controls: Controls, notes: list[str]) -> list[tuple]:
    if controls.boxes is None:
        return []
    boxes = track.boxes(notes)
    values = [{"rotation": 0, **_percent(box, track.media)} for box in boxes]
    return [(f"box{n}", "rectanglelabels", controls.boxes, value, "rectanglelabels") for n, value in enumerate(values, start=1)]


def _percent(box: Box, media: MediaInfo) -> dict[str, float]:
    x, y, width, height = box.xywh
    values = {"x": x / media.width, "y": y / media.height, "width": width / media.width, "height": height / media.height}
    return {name: round(min(100 * value, 100.0), 4) for name, value in values.items()}


def label_config(groundings) -> str:
    """
    A labeling configuration (XML) for the exported file, with the labels of all answers.

    Args:
        groundings: as for `export`.
    """
    answers = read_answers(groundings)
    labels = list(dict.fromkeys(track.label for track in read_tracks(answers)))
    view = ElementTree.Element("View")
    if one_kind(answers, "label-studio") == "video":
        names = VIDEO_CONTROLS
        ElementTree.SubElement(view, "Video", name=names.media, value="$video", frameRate="$fps")
        ElementTree.SubElement(view, "VideoRectangle", name=str(names.boxes), toName=names.media)
        tags = [
            ElementTree.SubElement(view, "Labels", name="label", toName=names.media),
            ElementTree.SubElement(view, "TimelineLabels", name=str(names.spans), toName=names.media),
        ]
    else:
        names = IMAGE_CONTROLS
        ElementTree.SubElement(view, "Image", name=names.media, value="$image")
        tags = [ElementTree.SubElement(view, "RectangleLabels", name=str(names.boxes), toName=names.media)]
    for tag in tags:
        for label in labels:
            ElementTree.SubElement(tag, "Label", value=label)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")
