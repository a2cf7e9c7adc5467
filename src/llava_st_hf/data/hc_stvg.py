# SPDX-License-Identifier: Apache-2.0
"""HC-STVG, versions 1 and 2, as published.

A file is one object, `{"<video file>": {…}}`, with of each video

- `bbox`: `[x, y, w, h]` in pixels for each frame of the event, without gaps, and `st_frame`: the first of those frames, counted from 1;
- `img_num`: frames of the whole video;
- version 1: `caption`, `width`, `height`; version 2: `English` and `img_size`, `[height, width]`.

`st_time` and `ed_time` (seconds) say the same as the frames and are not looked at. The video is looked for in the data folder under its
name: where it was unpacked into several folders, link the files into one. Boxes come from a tracker and may reach over the picture's
edge, where they are cut. Version 1 was checked against the published README and `test.json`, version 2 against programs that read it.
"""

from collections.abc import Iterator

from .checks import listing, mapping, member, whole, words
from .json_rows import stream
from .samples import GroundingSample, within, xywh_to_xyxy


def read_hc_stvg(path: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    Yields `(row, sample)`, or `(row, problem)` where a video's annotation cannot be used. Rows count from 1. Times are fractions of
    the video's frames, which stay right whatever rate the file was encoded at.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    for row, (video, annotation) in enumerate(stream(path, "", "{"), start=1):
        try:
            yield row, _sample(video, mapping(annotation, f"The annotation of {video!r}"))
        except ValueError as error:
            yield row, str(error)


def _sample(video: str, annotation: dict) -> GroundingSample:
    width, height = _size(annotation)
    num_frames = whole(member(annotation, "img_num", "The video"), "'img_num'", minimum=1)
    first = whole(member(annotation, "st_frame", "The video"), "'st_frame'", minimum=1) - 1
    corners = listing(member(annotation, "bbox", "The video"), "'bbox'")
    if not corners:
        raise ValueError("'bbox' has no boxes.")
    if first + len(corners) > num_frames:
        raise ValueError(f"'bbox' has {len(corners)} boxes from frame {first + 1} on, but the video has {num_frames} frames.")
    boxes = []
    for frame, values in enumerate(corners, start=first):
        what = f"The box of frame {frame + 1}"
        box = within(xywh_to_xyxy(values, what), width, height, what, slack=float("inf"))
        boxes.append((frame / max(num_frames - 1, 1), box))
    text = annotation.get("English") if annotation.get("caption") is None else annotation["caption"]
    return GroundingSample(
        id=video,
        kind="video",
        path=video,
        text=words(text, "'caption' (or 'English')"),
        span=(boxes[0][0], boxes[-1][0]),
        unit="fraction",
        boxes=tuple(boxes),
        width=width,
        height=height,
        num_frames=num_frames,
    )


def _size(annotation: dict) -> tuple[int, int]:
    if annotation.get("img_size") is not None:
        size = listing(annotation["img_size"], "'img_size'")
        if len(size) != 2:
            raise ValueError(f"'img_size' must be [height, width], not {size!r:.100}.")
        height, width = size
    else:
        width, height = (member(annotation, side, "The video") for side in ("width", "height"))
    return whole(width, "The video's width", minimum=1), whole(height, "The video's height", minimum=1)
