# SPDX-License-Identifier: Apache-2.0
"""Reader of animated WebP, PNG and AVIF files with the interface of `VideoFileReader`, which reads animated GIFs itself."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from .image_files_llava_st import IMAGE_ERRORS, image_errors, open_image_file
from .image_processing_llava_st import pil_to_array
from .video_metadata_llava_st import file_metadata


# Formats whose files may contain several images that follow each other in time.
ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")
READER_FORMATS = ("PNG", "WEBP", "AVIF")
# Milliseconds for which a frame with a duration of 0 is displayed, as in web browsers.
UNSTATED_DURATION = 100


def count_pictures(file: str | BinaryIO) -> int:
    """
    Counts the frames of a local or open binary image file: 1 for a still image (also for one with several pages, such as TIFF), 2 for
    an animation of two or more frames, 0 if the content is not an image. Only headers are read.
    """
    try:
        with open_image_file(file) as image:
            return 2 if image.format in ANIMATED_FORMATS and image.is_animated else 1
    except IMAGE_ERRORS:
        return 0


def is_animation_format(path: str) -> bool:
    """Returns whether the content of a local file has one of the formats of `AnimationReader`, still or animated."""
    with open(path, "rb") as file:
        header = file.read(12)
    return (
        header.startswith(b"\x89PNG\r\n\x1a\n")
        or (header[:4] == b"RIFF" and header[8:] == b"WEBP")
        or (header[4:8] == b"ftyp" and header[8:] in (b"avif", b"avis"))
    )


class AnimationReader:
    """
    Frames of a local WebP, PNG or AVIF file, composited and upright; a still image is a video of one frame.

    Frame times are the cumulated durations in the file. The files have no index of frames, so all frames are decoded
    once for their durations and again up to the last one requested, one in memory at a time.

    Raises:
        OSError: naming the file, if it is damaged or has fewer frames than its header states.
    """

    def __init__(self, path: str):
        self.path = path
        durations = []  # milliseconds
        for image in self._pictures():
            durations.append(float(image.info.get("duration") or UNSTATED_DURATION))
            size = image.size
        times = np.cumsum([0.0, *durations[:-1]]) / 1000  # seconds
        self.metadata = file_metadata(len(durations), 0.0, "pillow", times, [])
        self.metadata.width, self.metadata.height = size

    def _pictures(self) -> Iterator[PIL.Image.Image]:
        """Yields the frames in order, loaded and upright."""
        with image_errors(self.path, "is a damaged animation"), open_image_file(self.path, READER_FORMATS) as image:
            # A PNG may have an image for programs that do not support animations, which is not part of the animation.
            first = 1 if image.format == "PNG" and image.default_image else 0
            for index in range(first, image.n_frames):
                image.seek(index)
                image.load()
                yield PIL.ImageOps.exif_transpose(image)

    def chunks(self, indices: list[int]) -> Iterator[torch.Tensor]:
        """Yields frames at strictly ascending indices, as uint8 `(1, height, width, 3)` tensors in order."""
        wanted = iter(indices)
        next_wanted = next(wanted)
        for index, image in enumerate(self._pictures()):
            if index == next_wanted:
                yield torch.from_numpy(pil_to_array(image))[None]
                next_wanted = next(wanted, None)
                if next_wanted is None:
                    return
