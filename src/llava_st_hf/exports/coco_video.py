# SPDX-License-Identifier: Apache-2.0
"""COCO JSON with videos and tracks, in the layout of TAO, a superset of COCO's (https://github.com/TAO-Dataset/tao).

- `videos`, `tracks`, `categories`, and `images` and `annotations` as in COCO (https://cocodataset.org/#format-data): a video is a
  sequence of images, an event a track, its label (caption, else query) a category.
- There is an annotation for every frame of an event; `interpolated` is true where the answer has no box in this frame. `bbox` is
  `[x, y, width, height]` in pixels, `frame_index` counts from 0. `file_name` is `<video without suffix>/<frame, six digits>.jpg`, as
  written by `ffmpeg -i clip.mp4 -vsync 0 -start_number 0 clip/%06d.jpg`.
- Masks are in `segmentation` as run-length encoding, with their area; `pycocotools` is needed for it. Otherwise `area` is that of the box.
- Added keys: `start` and `end` (seconds from the start of the container), `caption`, `score` and `presence` of tracks; `score` of
  annotations; `fps` of videos; `time` of images.
- Images of image answers have no `video_id`, their annotations neither `video_id` nor `track_id`.

Not in the file: events of images without boxes; expected temporal IoU of spans; the frame times of clips of variable rate where no event
is.
"""

import json
from pathlib import Path, PurePosixPath

from ..files import write_file
from ..model.results_llava_st import Box, Grounding
from .tracks import Track, by_source, file_names, media_of


def write(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    notes: list[str] = []
    tracks_of = by_source(answers)
    names = file_names(tracks_of)
    labels = list(dict.fromkeys(track.label for tracks in tracks_of.values() for track in tracks))
    categories = {label: number for number, label in enumerate(labels, start=1)}
    content: dict[str, list[dict]] = {name: [] for name in ("videos", "images", "tracks", "annotations")}
    image_ids: dict[tuple[str, int], int] = {}
    for source, tracks in tracks_of.items():
        media = media_of(answers, source)
        size = {"width": media.width, "height": media.height}
        is_video = media.kind == "video"
        video_key = {"video_id": len(content["videos"]) + 1} if is_video else {}
        if is_video:
            known = {"fps": media.fps, "length": media.total_num_frames}
            known = {name: value for name, value in known.items() if value is not None}
            content["videos"].append({"id": video_key["video_id"], "name": names[source], **size, **known})
        else:
            image_ids[source, 0] = len(image_ids) + 1
            content["images"].append({"id": image_ids[source, 0], "file_name": names[source], **size})
        for track in tracks:
            category = categories[track.label]
            boxes = list(track.frame_boxes(notes).items()) if is_video else [(0, box) for box in track.boxes(notes)]
            if is_video:
                content["tracks"].append({"id": track.number, **video_key, "category_id": category, **_event(track)})
            elif not boxes:
                notes.append(f"{track.name} of {names[source]} has no boxes and was left out: COCO has no annotation of a whole image.")
            for frame, box in boxes:
                if (source, frame) not in image_ids:
                    image_ids[source, frame] = len(image_ids) + 1
                    time = media.seconds_of_frame(frame)
                    content["images"].append(
                        {
                            "id": image_ids[source, frame],
                            **video_key,
                            "file_name": f"{PurePosixPath(names[source]).with_suffix('')}/{frame:06d}.jpg",
                            "frame_index": frame,
                            **size,
                            **({} if time is None else {"time": time}),
                        }
                    )
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": image_ids[source, frame],
                        **video_key,
                        **({"track_id": track.number} if is_video else {}),
                        "category_id": category,
                        **_shape(box, media.width, media.height),
                    }
                )
    listed = [{"id": number, "name": label} for label, number in categories.items()]
    write_file(path, json.dumps({**content, "categories": listed}, ensure_ascii=False, allow_nan=False))
    return notes


def _event(track: Track) -> dict:
    event = track.event
    values = {"caption": track.text, "start": event.start, "end": event.end, "score": event.score, "presence": event.presence}
    return {name: value for name, value in values.items() if value is not None}


def _shape(box: Box, width: int, height: int) -> dict:
    shape = {"bbox": [round(value, 2) for value in box.xywh], "area": round(box.area, 2), "iscrowd": 0}
    if box.mask is not None:
        from pycocotools import mask  # an optional dependency

        shape["segmentation"] = {"size": [height, width], "counts": box.mask}
        shape["area"] = int(mask.area(shape["segmentation"]))
    if box.score is not None:
        shape["score"] = box.score
    return {**shape, "interpolated": box.interpolated}
