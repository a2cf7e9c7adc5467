# SPDX-License-Identifier: Apache-2.0
"""Draws a sample: its image, or frames of its video across the ground-truth span, with ground truth and answer."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import PIL.Image

from ..model.image_processing_llava_st import load_image
from ..model.media_info_llava_st import MediaInfo
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
Labelled = tuple[Box, str]  # a box and its label
# Width and height in pixels of a frame in a strip, and of a single image.
_FRAME_SIZE, _IMAGE_SIZE = (270, 270), (560, 420)


def draw_sample(prediction: Prediction) -> bytes:
    """
    Draws a sample as JPEG.

    Args:
        prediction: with an answer.

    Raises:
        ValueError, OSError: if the image or video cannot be read, or is not the one that the answer is about. (`MEDIA_ERRORS` are these.)
    """
    media = prediction.medium()
    if prediction.path is None or media is None:
        raise ValueError("The prediction does not contain the path and size of its image or video.")
    drawn = _image(prediction, prediction.path) if media.kind == "image" else _strip(prediction, prediction.path, media)
    file = BytesIO()
    drawn.save(file, "JPEG", quality=85)
    return file.getvalue()


def _image(prediction: Prediction, path: str) -> PIL.Image.Image:
    def labelled(grounding: GroundingResult, label: str) -> list[Labelled]:
        box = [] if grounding.box is None else [(grounding.box, label)]
        return [*box, *((box, phrase) for phrase, box in grounding.objects or ())]

    truth, answered = labelled(prediction.truth, "ground truth"), labelled(prediction.prediction, "answer")
    return _with_boxes(load_image(path).convert("RGB"), truth, answered, _IMAGE_SIZE)


def _strip(prediction: Prediction, path: str, media: MediaInfo) -> PIL.Image.Image:
    truth, answered = prediction.truth, prediction.prediction
    span = truth.span or prediction.given.span
    frames = _frames(truth.tubelet, span, media)
    images = []
    for frame, pixels in zip(frames, read_frames(path, frames, allow_truncated=bool(media.notes)), strict=True):
        true, own = (
            [(tubelet[frame], label)] if tubelet and frame in tubelet else []
            for tubelet, label in ((truth.tubelet, "ground truth"), (answered.tubelet, "answer"))
        )
        image = _with_boxes(PIL.Image.fromarray(pixels), true, own, _FRAME_SIZE)
        images.append(add_caption(image, _frame_text(frame, media)))
    strip = side_by_side(images)
    if span is None:
        return strip
    tracks: list[tuple[Span | None, Colour, str]] = [(span, TRUTH_COLOUR, "ground truth" if truth.span is not None else "prompt")]
    if truth.span is not None:  # else the task does not ask for a span
        tracks.append((answered.span, ANSWER_COLOUR, "answer"))
    marks = [media.frame_position(frame) for frame in frames]
    return one_above_another([strip, draw_timeline(strip.width, tracks, marks)])


def _with_boxes(image: PIL.Image.Image, truth: list[Labelled], answered: list[Labelled], size: tuple[int, int]) -> PIL.Image.Image:
    """Resizes an image to fit into `size`, then draws the boxes, so that lines have the same width in all images."""
    scale = min(size[0] / image.width, size[1] / image.height)
    scaled = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), PIL.Image.Resampling.BICUBIC)
    both = ((truth, TRUTH_COLOUR), (answered, ANSWER_COLOUR))
    return draw_boxes(scaled, [([corner * scale for corner in box], colour, label) for boxes, colour in both for box, label in boxes])


def _frames(tubelet: dict[int, Box] | None, span: Span | None, media: MediaInfo) -> list[int]:
    """Selects frames from those with a ground-truth box, else from the ground-truth span, else from the clip."""
    if tubelet:
        annotated = sorted(tubelet)
        return sorted({annotated[round(index)] for index in np.linspace(0, len(annotated) - 1, FRAMES)})
    start, end = span or (0.0, 1.0)
    return sorted({media.frame(min(max(float(position), 0.0), 1.0)) for position in np.linspace(start, end, FRAMES)})


def read_frames(path: str, frames: Sequence[int], allow_truncated: bool = False) -> list[np.ndarray]:
    """
    Reads frames of a video, uint8 (height, width, 3) each.

    Args:
        path: of the video.
        frames: their indices, ascending.
        allow_truncated: read a truncated file, as the evaluation did if the media of the prediction have notes.

    Raises:
        OSError, ValueError: if the video cannot be read or has no such frame.
    """

    def read(reader) -> list[np.ndarray]:
        count = reader.metadata.total_num_frames
        if missing := [frame for frame in frames if not 0 <= frame < count]:
            raise ValueError(f"There is no frame {missing[0]} in the video, which has {count}: it is not the video of the prediction.")
        return [frame for chunk in reader.chunks(list(frames)) for frame in chunk.numpy()]

    return read_video_file(path, read, allow_truncated=allow_truncated)


def _frame_text(frame: int, media: MediaInfo) -> str:
    seconds = media.seconds_of_frame(frame)
    return f"frame {frame}" + ("" if seconds is None else f", {seconds:.2f} s")
