# SPDX-License-Identifier: Apache-2.0
"""`GroundingSample`: the content of one grounding annotation, whatever its file format."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from .schemas import Number


Box = tuple[float, float, float, float]

# Pixels by which a box may extend beyond its image and is clipped without an error; the processor allows as much.
EDGE_SLACK = 1.0


@dataclass(frozen=True)
class GroundingSample:
    """
    One annotated event of a video, object in an image, or image with all its objects.

    Training turns it into a question and an answer, evaluation into a question and the ground truth.

    Args:
        id: as the annotation has it, or made of its file and row.
        kind: "image" or "video".
        path: of the image or video as the annotation has it, relative to a data folder and not yet checked; see `paths.join_path`.
        text: the expression, sentence, phrase or caption.
        clip: first and last frame of the clip, both included; None for the whole video.
        start, end: the same in seconds from the start of the file, either None.
        span: start and end of the event, in `unit`.
        unit: of `span` and of times of boxes: "seconds" from the start of the file, or "fraction" of the clip's frames.
        boxes: `(time, (x1, y1, x2, y2))` in time order, in `unit` and in pixels of the upright image; the time is None in images.
        phrases: of a caption with boxes, the phrase of each of `boxes`: consecutive pieces of the caption.
        width, height: of the image or video in pixels; None where the annotation does not have them.
        fps: frames per second; None where the annotation does not have them.
        num_frames: frames of the clip, where the annotation is dense: a box for each frame that shows the object, with times in
            fractions. None where `boxes` are to be used as they are.
        is_question: whether `text` is a question ("who holds the cup?"), which cannot serve as a caption.
        task: of the sample, where the annotation file names one for each; else None.
    """

    id: str
    kind: str
    path: str
    text: str | None = None
    clip: tuple[int, int] | None = None
    start: float | None = None
    end: float | None = None
    span: tuple[float, float] | None = None
    unit: str = "seconds"
    boxes: tuple[tuple[float | None, Box], ...] = ()
    phrases: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    is_question: bool = False
    task: str | None = None


def xywh_to_xyxy(box: Box) -> Box:
    """
    `(x1, y1, x2, y2)` of `[x, y, width, height]`, both in pixels.

    Raises:
        ValueError: naming the box, where its width or height is not above 0.
    """
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise ValueError(f"must have a width and a height above 0, not {list(box)}.")
    return x, y, x + width, y + height


#: `[x, y, width, height]` in pixels, read as `(x1, y1, x2, y2)`.
XywhBox = Annotated[tuple[Number, Number, Number, Number], Field(strict=False), AfterValidator(xywh_to_xyxy)]


def clip_box(box: Box, width: int, height: int, what: str, slack: float = EDGE_SLACK) -> Box:
    """
    A box clipped to its image.

    Args:
        box: `(x1, y1, x2, y2)` in pixels.
        width, height: of the image, in pixels.
        what: how the error calls the box.
        slack: by how many pixels it may extend beyond the image.

    Raises:
        ValueError: naming the box and the size of the image, where it extends further or has no area inside the image.
    """
    x1, y1, x2, y2 = box
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    overshoot = max(abs(a - b) for a, b in zip(box, clipped, strict=True))
    if overshoot > slack or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise ValueError(f"{what} {list(box)} lies outside the image of {width}x{height} pixels (width x height).")
    return clipped
