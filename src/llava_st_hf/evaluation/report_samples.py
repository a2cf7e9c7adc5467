# SPDX-License-Identifier: Apache-2.0
"""A sample as a picture: the picture that was asked about, or frames across the true span of a video, with truth and answer drawn."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import PIL.Image

from ..model.grounding_llava_st import MediaInfo
from ..model.image_processing_llava_st import load_image
from ..model.video_decoding_llava_st import read_video_file
from ..visualization import (
    ANSWER_COLOUR,
    TRUTH_COLOUR,
    Colour,
    add_caption,
    draw_boxes,
    draw_timeline,
    one_above_another,
    side_by_side,
)
from .rows import Box, GroundingResult, Prediction, Span


FRAMES = 4
Labelled = tuple[Box, str]  # a box, and the words beside it
# Pixels: a frame in a strip, a picture alone.
_FRAME_SIZE, _PICTURE_SIZE = (270, 270), (560, 420)


def draw_sample(prediction: Prediction) -> bytes:
    """
    A JPEG picture of a sample.

    Args:
        prediction: with an answer.

    Raises:
        ValueError, OSError: in plain words, where the medium cannot be read, or is not the one that the answer is about. (`MEDIA_ERRORS`
            are these.)
    """
    media = prediction.medium()
    if prediction.path is None or media is None:
        raise ValueError("The predictions do not tell what was looked at.")
    drawn = _picture(prediction, prediction.path) if media.kind == "image" else _strip(prediction, prediction.path, media)
    file = BytesIO()
    drawn.save(file, "JPEG", quality=85)
    return file.getvalue()


def _picture(prediction: Prediction, path: str) -> PIL.Image.Image:
    image = load_image(path).convert("RGB")
    return _with_boxes(image, _labelled(prediction.truth, "truth"), _labelled(prediction.prediction, "answer"), _PICTURE_SIZE)


def _labelled(grounding: GroundingResult, label: str) -> list[Labelled]:
    """The boxes of a picture: those of a caption each with its phrase, else the one box with `label`."""
    return [*([] if grounding.box is None else [(grounding.box, label)]), *((box, phrase) for phrase, box in grounding.objects or ())]


def _strip(prediction: Prediction, path: str, media: MediaInfo) -> PIL.Image.Image:
    truth, said = prediction.truth, prediction.prediction
    span = truth.span or prediction.given.span
    frames = _frames(truth.tubelet, span, media)
    true_boxes, said_boxes = truth.tubelet or {}, said.tubelet or {}
    pictures = []
    for frame, pixels in zip(frames, read_frames(path, frames, allow_truncated=bool(media.notes)), strict=True):
        true, own = ([(boxes[frame], label)] if frame in boxes else [] for boxes, label in ((true_boxes, "truth"), (said_boxes, "answer")))
        picture = _with_boxes(PIL.Image.fromarray(pixels), true, own, _FRAME_SIZE)
        pictures.append(add_caption(picture, _when(frame, media)))
    strip = side_by_side(pictures)
    if span is None:
        return strip
    tracks: list[tuple[Span | None, Colour, str]] = [(span, TRUTH_COLOUR, "truth" if truth.span is not None else "given")]
    if truth.span is not None:  # else the span was not asked for
        tracks.append((said.span, ANSWER_COLOUR, "answer"))
    marks = [_position(frame, media) for frame in frames]
    return one_above_another([strip, draw_timeline(strip.width, tracks, [mark for mark in marks if mark is not None])])


def _with_boxes(image: PIL.Image.Image, truth: list[Labelled], said: list[Labelled], size: tuple[int, int]) -> PIL.Image.Image:
    """The picture as large as fits, with the boxes drawn afterwards, so that their lines are as wide in all pictures."""
    scale = min(size[0] / image.width, size[1] / image.height)
    scaled = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), PIL.Image.Resampling.BICUBIC)
    both = ((truth, TRUTH_COLOUR), (said, ANSWER_COLOUR))
    return draw_boxes(scaled, [([corner * scale for corner in box], colour, label) for boxes, colour in both for box, label in boxes])


def _frames(tubelet: dict[int, Box] | None, span: Span | None, media: MediaInfo) -> list[int]:
    """Frames to show: of those with a true box, or else of the true span, or else of the clip."""
    if tubelet:
        known = sorted(tubelet)
        return sorted({known[round(place)] for place in np.linspace(0, len(known) - 1, FRAMES)})
    start, end = span or (0.0, 1.0)
    return sorted({media.frame(min(max(float(position), 0.0), 1.0)) for position in np.linspace(start, end, FRAMES)})


def read_frames(path: str, frames: Sequence[int], allow_truncated: bool = False) -> list[np.ndarray]:
    """
    Frames of a video, uint8 `(height, width, 3)` each.

    Args:
        path: of the video.
        frames: their indices, ascending.
        allow_truncated: read a truncated file, as the run that asked about it did where its media have notes.

    Raises:
        OSError, ValueError: where the video cannot be read or has no such frame.
    """

    def read(reader) -> list[np.ndarray]:
        count = reader.metadata.total_num_frames
        if missing := [frame for frame in frames if not 0 <= frame < count]:
            raise ValueError(f"There is no frame {missing[0]} in the video, which has {count}: it is not the one that was asked about.")
        return [frame for chunk in reader.chunks(list(frames)) for frame in chunk.numpy()]

    return read_video_file(path, read, allow_truncated=allow_truncated)


def _position(frame: int, media: MediaInfo) -> float | None:
    """Of a frame, as a fraction of the clip; None where the clip leaves frames out unevenly."""
    if media.frames is not None or media.last_frame <= media.first_frame:
        return None
    return (frame - media.first_frame) / (media.last_frame - media.first_frame)


def _when(frame: int, media: MediaInfo) -> str:
    position = _position(frame, media)
    seconds = None if position is None else media.time(position)
    return f"frame {frame}" + ("" if seconds is None else f", {seconds:.2f} s")
