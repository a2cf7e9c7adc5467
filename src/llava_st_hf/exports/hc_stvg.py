# SPDX-License-Identifier: Apache-2.0
"""HC-STVG annotations of version 1 (https://github.com/tzhhhh123/HC-STVG), as `data.hc_stvg` and `llava-st eval hc-stvg-v1` read them.

- One object, with an entry per video file: HC-STVG has one sentence for each.
- `bbox` is `[x, y, width, height]` in pixels for every frame of the event, interpolated where the answer has no box. `st_frame` and
  `ed_frame` are its first and last frame, counted from 1; `img_num` is the number of frames of the file.
- `st_time` and `ed_time` are the display times of these frames in seconds from the start of the container, for variable rates as well.

Not in the file: events beyond the first of a video, those without text or boxes, or whose object leaves the frame in between; scores,
masks,
which boxes are interpolated.
"""

import json
from pathlib import Path

from ..files import write_file
from ..model.results_llava_st import Grounding
from .tracks import Track, by_source, file_names, one_kind, report_missing


def write(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    if one_kind(answers, "hc-stvg") == "image":
        raise ValueError("The format 'hc-stvg' is for videos; the answers are about images.")
    notes: list[str] = []
    videos: dict[str, dict] = {}
    tracks_of = by_source(answers)
    names = file_names(tracks_of)
    for source, tracks in tracks_of.items():
        for track in tracks:
            if names[source] in videos:
                notes.append(f"{track.name} was left out: HC-STVG has one event per video, and {source} has one before.")
            elif (entry := _entry(track, notes)) is not None:
                videos[names[source]] = entry
    if not videos:
        raise ValueError(f"There is nothing to write to {path}: {' '.join(notes) or 'the answers have no events.'}")
    everything = [track for tracks in tracks_of.values() for track in tracks]
    report_missing(everything, ("scores", "masks", "presence"), "hc-stvg", notes)
    write_file(path, json.dumps(videos, ensure_ascii=False, allow_nan=False))
    return notes


def _entry(track: Track, notes: list[str]) -> dict | None:
    boxes = track.frame_boxes(notes)
    if track.text is None or not boxes:
        reason = "neither a caption nor a query" if track.text is None else "no boxes"
        notes.append(f"{track.name} has {reason} and was left out.")
        return None
    first, last = min(boxes), max(boxes)
    if len(boxes) < last - first + 1:
        notes.append(f"{track.name} was left out: HC-STVG needs a box in every frame, and its object leaves the frame in between.")
        return None
    if first > track.frames[0] or last < track.frames[-1]:
        notes.append(f"{track.name}: its span was shortened to the frames {first} to {last}, which have boxes.")
    media = track.media
    times = {"st_time": media.seconds_of_frame(first), "ed_time": media.seconds_of_frame(last)}
    return {
        "bbox": [[round(value, 2) for value in boxes[frame].xywh] for frame in range(first, last + 1)],
        "caption": track.text,
        "st_frame": first + 1,
        "ed_frame": last + 1,
        **{name: seconds for name, seconds in times.items() if seconds is not None},
        "img_num": media.last_frame_of_file + 1,
        "width": media.width,
        "height": media.height,
        "img_size": [media.height, media.width],
    }
