# SPDX-License-Identifier: Apache-2.0
"""VidSTG annotations (https://github.com/Guaranteer/VidSTG-Dataset) with the boxes in VidOR's layout
(https://xdshang.github.io/docs/vidor.html), as `data.vidstg` and `llava-st eval vidstg-declarative` read them.

- `path` is the file of sentences, a row per event: `captions`, or `questions` where the text ends with "?". VidOR's files with the boxes
  are written beside it, `boxes/<group>/<vid>.json`: `<vid>` is the name of the video file without suffix, `<group>` that of its folder.
- Frames are indices in the file, from 0. `temporal_gt.end_fid` is one past the last frame of the event, `used_segment.end_fid` the last
  frame of the clip. There is a box `{"xmin", "ymin", "xmax", "ymax"}` in pixels for every frame of the event, interpolated ones with
  `"generated": 1`.
- Times are not in the file but frames, so a variable frame rate makes no difference; `fps` is the mean rate.

Not in the file: events without text, boxes or span in frames; videos of unknown rate; scores, masks.
"""

import json
import os
from pathlib import Path, PurePosixPath

from ..files import write_file
from ..model.results_llava_st import Grounding
from .tracks import Track, by_source, file_names, is_url, media_of, one_kind, report_missing


def write(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the files. Returns notes about what was left out or changed."""
    if one_kind(answers, "vidstg") == "image":
        raise ValueError("The format 'vidstg' is for videos; the answers are about images.")
    notes: list[str] = []
    rows: list[dict] = []
    box_files: dict[str, dict] = {}
    tracks_of = by_source(answers)
    names = file_names(tracks_of)
    vids: dict[str, str] = {}
    for source, tracks in tracks_of.items():
        media, name = media_of(answers, source), PurePosixPath(names[source])
        other = vids.setdefault(name.stem, source)
        if other != source:
            raise ValueError(f"VidSTG names videos by their file name, which is {name.stem!r} for both {other} and {source}: rename one.")
        if media.fps is None:
            notes.append(f"{source} was left out: its frame rate is unknown, and VidSTG needs one.")
            continue
        if name.suffix != ".mp4":
            notes.append(f"VidSTG's videos are <vid>.mp4; {source} is another kind of file: convert it.")
        frames: list[list[dict]] = [[] for _ in range(media.last_frame_of_file + 1)]
        count = len(rows)
        for track in tracks:
            boxes = track.frame_boxes(notes)
            if track.text is None or not boxes or not len(track.frames):
                reason = "neither a caption nor a query" if track.text is None else "no boxes"
                notes.append(f"{track.name} of {source} has {reason} and was left out.")
                continue
            first, last = min(boxes), max(boxes)
            if first > track.frames[0] or last < track.frames[-1]:
                notes.append(f"{track.name}: its span was shortened to the frames {first} to {last}, which have boxes.")
            for frame, box in boxes.items():
                corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box.xyxy, strict=True))
                frames[frame].append({"tid": track.number, "bbox": corners, "generated": int(box.interpolated), "tracker": "llava-st"})
            rows.append(_row(track, name.stem, first, last))
        if len(rows) > count:
            group = _group(source)
            objects = [{"tid": row["target"], "category": "object"} for row in rows[count:]]
            about = {key: rows[-1][key] for key in ("frame_count", "fps", "width", "height")}
            video = {"version": "llava-st", "video_id": name.stem, "video_path": f"{group}/{name.name}", **about}
            box_files[f"{group}/{name.stem}.json"] = {**video, "subject/objects": objects, "trajectories": frames, "relation_instances": []}
    if not rows:
        raise ValueError(f"There is nothing to write to {path}: {' '.join(notes) or 'the answers have no events.'}")
    everything = [track for tracks in tracks_of.values() for track in tracks]
    report_missing(everything, ("scores", "masks", "presence"), "vidstg", notes)
    for file, content in box_files.items():
        target = path.parent / "boxes" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, json.dumps(content, allow_nan=False))
    sentences = [{key: value for key, value in row.items() if key != "target"} for row in rows]
    write_file(path, json.dumps(sentences, ensure_ascii=False, allow_nan=False))
    return notes


def _group(source: str) -> str:
    folder = PurePosixPath(source.partition("://")[2]).parent.name if is_url(source) else Path(os.path.abspath(source)).parent.name
    # ".." would place the boxes outside their folder, where the file of sentences may replace them.
    return folder if folder not in ("", ".", "..") else "videos"


def _row(track: Track, vid: str, first: int, last: int) -> dict:
    media, text = track.media, str(track.text)
    sentence = [{"description": text, "target_id": track.number, "type": "subject"}]
    is_question = text.endswith("?")
    return {
        "vid": vid,
        "frame_count": media.last_frame_of_file + 1,
        "fps": media.fps,
        "width": media.width,
        "height": media.height,
        "subject/objects": [{"tid": track.number, "category": "object"}],
        "used_segment": {"begin_fid": min(media.first_frame, first), "end_fid": max(media.last_frame, last)},
        "temporal_gt": {"begin_fid": first, "end_fid": last + 1},
        "captions": [] if is_question else sentence,
        "questions": sentence if is_question else [],
        "target": track.number,
    }
