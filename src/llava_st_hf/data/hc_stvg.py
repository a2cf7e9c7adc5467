# SPDX-License-Identifier: Apache-2.0
"""HC-STVG annotations, versions 1 and 2, as published.

A file is one object, `{"<video file>": {…}}`, with for each video

- `bbox`: `[x, y, w, h]` in pixels for each frame of the event, without gaps, and `st_frame`: the first of those frames, counted from 1;
- `img_num`: frames of the whole video;
- version 1: `caption`, `width`, `height`; version 2: `English` and `img_size`, `[height, width]`.

`st_time` and `ed_time` (seconds) repeat the frames and are not read. The video is looked for in the data folder under its name: if the
archive was unpacked into several folders, link the files into one. Boxes come from a tracker and may extend beyond the image; they are
clipped. Version 1 was checked against the published README and `test.json`, version 2 against programs that read it.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from .json_rows import stream
from .samples import GroundingSample, XywhBox, clip_box
from .schemas import Count, Schema, Text, validate


class _Video(Schema):
    bbox: Annotated[list[XywhBox], Field(min_length=1)]
    st_frame: Count
    img_num: Count
    caption: Text | None = None
    English: Text | None = None
    width: Count | None = None
    height: Count | None = None
    img_size: Annotated[tuple[Count, Count], Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _check_fields_of_either_version(self) -> "_Video":
        if self.caption is None and self.English is None:
            raise ValueError("'caption' (or 'English', in version 2) is missing.")
        if self.img_size is None and (self.width is None or self.height is None):
            raise ValueError("'width' and 'height' (or 'img_size', in version 2) are missing.")
        if self.st_frame - 1 + len(self.bbox) > self.img_num:
            raise ValueError(f"'bbox' has {len(self.bbox)} boxes from frame {self.st_frame} on, but the video has {self.img_num} frames.")
        return self


def read_hc_stvg(path: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    Yields `(row, sample)`, or `(row, problem)` for a video whose annotation cannot be used. Rows count from 1. Times are fractions of
    the video's frames, which stay valid if the file was encoded again at another rate.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    for row, (video, annotation) in enumerate(stream(path, "", "{"), start=1):
        try:
            yield row, _sample(video, validate(_Video, annotation, f"The annotation of {video!r:.100}"))
        except ValueError as error:
            yield row, str(error)


def _sample(video: str, annotation: _Video) -> GroundingSample:
    if annotation.img_size is not None:
        height, width = annotation.img_size
    else:
        width, height = annotation.width, annotation.height
    boxes = []
    for frame, corners in enumerate(annotation.bbox, start=annotation.st_frame - 1):
        box = clip_box(corners, width, height, f"The box of frame {frame + 1}", slack=float("inf"))
        boxes.append((frame / max(annotation.img_num - 1, 1), box))
    return GroundingSample(
        id=video,
        kind="video",
        path=video,
        text=annotation.English if annotation.caption is None else annotation.caption,
        span=(boxes[0][0], boxes[-1][0]),
        unit="fraction",
        boxes=tuple(boxes),
        width=width,
        height=height,
        num_frames=annotation.img_num,
    )
