# SPDX-License-Identifier: Apache-2.0
"""What a grounding annotation says, whichever file it stands in. Training asks questions of it, evaluation scores against it."""

from dataclasses import dataclass

from .checks import listing, number


Box = tuple[float, float, float, float]

# How far, in pixels, a box may reach beyond its picture and still be taken to end at its edge; the processor allows as much.
EDGE_SLACK = 1.0


@dataclass(frozen=True)
class GroundingSample:
    """
    One annotated event of a video, thing in a picture, or picture full of things.

    Args:
        id: what the annotation calls it, or made of its file and place.
        kind: "image" or "video".
        path: of the medium as the annotation has it, relative to a data folder and not yet checked; see `paths.join_path`.
        text: the expression, sentence, phrase or caption.
        clip: first and last frame that the annotation is about, both included; None for the whole video.
        start, end: the same in seconds, either None.
        span: when it happens, in `unit`.
        unit: of `span` and of times of boxes: "seconds" from the start of the file, or "fraction" of the clip's frames.
        boxes: `(time, (x1, y1, x2, y2))` in time order, in `unit` and in pixels of the upright picture; the time is None in images.
        phrases: of a picture full of things, what each of `boxes` is of, as consecutive pieces of its caption.
        width, height: of the medium in pixels, where the annotation tells.
        fps: frames per second, where the annotation tells.
        num_frames: frames of the clip, where boxes were annotated frame by frame; None where the boxes are all there are.
        is_question: whether `text` asks ("who holds the cup?"), so that it can be no caption.
        task: where the annotation file says of each sample what it is for; None where it serves several.
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


def xywh_to_xyxy(box, what: str) -> Box:
    """`(x1, y1, x2, y2)` of `[x, y, width, height]` in pixels; `ValueError` where it is no such list or has no area."""
    values = listing(box, what)
    if len(values) != 4:
        raise ValueError(f"{what} must be [x, y, width, height] in pixels, not {box!r:.100}.")
    x, y, width, height = (number(value, f"A number of {what}") for value in values)
    if width <= 0 or height <= 0:
        raise ValueError(f"{what} must have a width and a height above 0, not {box!r}.")
    return x, y, x + width, y + height


def within(box: Box, width: int, height: int, what: str, slack: float = EDGE_SLACK) -> Box:
    """
    A box cut at the edges of its picture.

    Args:
        box: pixels.
        width, height: of the picture, in pixels.
        slack: how far outside it may reach, in pixels.

    Raises:
        ValueError: naming the box and the picture's size, where it reaches further or nothing of it is left.
    """
    x1, y1, x2, y2 = box
    cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    reach = max(abs(a - b) for a, b in zip(box, cut, strict=True))
    if reach > slack or cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise ValueError(f"{what} {list(box)} lies outside the picture of {width}x{height} pixels (width x height).")
    return cut
