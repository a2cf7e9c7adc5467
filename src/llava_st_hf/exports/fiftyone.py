# SPDX-License-Identifier: Apache-2.0
"""FiftyOne dataset as JSON, for `fiftyone.Dataset.from_json(path)` (https://docs.voxel51.com/user_guide/basics.html, "Temporal detection"
and "Object detection").

- A sample per image or video. Videos have a field `events` (`TemporalDetections`, `support` is the first and last frame, both included) and
  in each frame of an event a field `boxes` (`Detections`), where `index` is the number of the event; images have the field `boxes` alone.
- FiftyOne counts frames from 1: its frame `n` is frame `n - 1` of the file. Its player assumes a constant rate, so the boxes of a video of
  variable rate are on the right frames in its Python API, but may be displayed early or late.
- Boxes are `[x, y, width, height]` as fractions of the upright frame. Detections of frames without a box in the answer are interpolated
  and have `interpolated: true`. Labels are the caption, else the query; `confidence` is the expected IoU.
- `filepath` is the absolute path. FiftyOne opens local files only: URLs are written as they are, and noted.

Not in the file: times in seconds (FiftyOne computes them from the frames), masks.
"""

import json
import os
from pathlib import Path
from typing import Any

from ..files import write_file
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Box, Grounding
from .tracks import Track, by_source, is_url, media_of, one_kind, report_missing


_FIELD = "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.{})"


def write(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    notes: list[str] = []
    kind = one_kind(answers, "fiftyone")
    tracks_of = by_source(answers)
    samples = []
    for source, tracks in tracks_of.items():
        media = media_of(answers, source)
        sample: dict[str, Any] = {
            "filepath": source if is_url(source) else os.path.abspath(source),
            "tags": [],
            "metadata": None,
            "_media_type": kind,
        }
        if kind == "video":
            samples.append({**sample, "events": _events(tracks, notes), "frames": _frames(tracks, media, notes)})
        else:
            boxes = [_detection(track, box, media) for track in tracks for box in track.boxes(notes)]
            samples.append({**sample, "boxes": {"_cls": "Detections", "detections": boxes}})
            notes += [f"{track.name} of {source} has no boxes and was left out." for track in tracks if not track.event.boxes]
        if is_url(source):
            notes.append(f"{source} is a URL, but FiftyOne opens local files: download it and change 'filepath'.")
    fields = {"boxes": _FIELD.format("Detections")} if kind == "image" else {"events": _FIELD.format("TemporalDetections")}
    frame_fields = {"frame_fields": {"boxes": _FIELD.format("Detections")}} if kind == "video" else {}
    everything = [track for tracks in tracks_of.values() for track in tracks]
    report_missing(everything, ("masks",), "fiftyone", notes)
    content = {"name": path.stem, "media_type": kind, "sample_fields": fields, **frame_fields, "info": {}, "samples": samples}
    write_file(path, json.dumps(content, ensure_ascii=False, allow_nan=False))
    return notes


def _events(tracks: list[Track], notes: list[str]) -> dict:
    detections = []
    for track in tracks:
        if not len(track.frames):
            notes.append(f"{track.name} has neither a span in frames nor boxes, and was left out.")
            continue
        score = track.event.score if track.event.span_score is None else track.event.span_score
        support = [track.frames[0] + 1, track.frames[-1] + 1]
        presence = {} if track.event.presence is None else {"presence": track.event.presence}
        known = {"support": support, "confidence": score, "index": track.number, **presence}
        detections.append({"_cls": "TemporalDetection", "label": track.label, **known})
    return {"_cls": "TemporalDetections", "detections": detections}


def _frames(tracks: list[Track], media: MediaInfo, notes: list[str]) -> dict[str, dict]:
    boxes: dict[int, list[dict]] = {}
    for track in tracks:
        for frame, box in track.frame_boxes(notes).items():
            boxes.setdefault(frame + 1, []).append(_detection(track, box, media))
    return {str(number): {"frame_number": number, "boxes": {"_cls": "Detections", "detections": boxes[number]}} for number in sorted(boxes)}


def _detection(track: Track, box: Box, media: MediaInfo) -> dict:
    x, y, width, height = box.xywh
    shape = [x / media.width, y / media.height, width / media.width, height / media.height]
    known = {"confidence": box.score, "index": track.number, "interpolated": box.interpolated}
    return {"_cls": "Detection", "label": track.label, "bounding_box": [round(value, 6) for value in shape], **known}
