# SPDX-License-Identifier: Apache-2.0
"""Limits of what visitors of the page may upload and ask."""

import math
import os
from dataclasses import dataclass, fields

import PIL.Image

from ..model.checks_llava_st import is_finite_number
from ..model.image_files_llava_st import check_image_file
from ..model.image_processing_llava_st import original_size
from ..model.media_info_llava_st import MediaInfo
from ..model.media_kind_llava_st import media_kind
from ..model.video_reading_llava_st import read_video_metadata


@dataclass(frozen=True)
class Limits:
    """
    Limits of the page.

    Args:
        upload_bytes: size of an uploaded file.
        video_seconds: duration of a video.
        pixels: width times height of an image, or of the frames of a video.
        video_frames: frames of a video.
        text_characters: length of a question.
        answer_seconds: time in which an answer must be complete.
        idle_seconds: time without a request after which the files of a visitor are deleted.
        visits: visitors with uploaded files at one time; another one has to wait.
        open_media: encoded images and videos that are kept at one time, one for each visitor. That of the visitor who asked least recently
            is dropped first, and encoded again at the next question.
        waiting: visitors whose question waits for the model; another one gets an error.

    Raises:
        ValueError: naming a value that is not a positive number.
    """

    upload_bytes: int = 200 * 2**20
    video_seconds: float = 600.0
    pixels: int = 3840 * 2160
    video_frames: int = 40_000
    text_characters: int = 1000
    answer_seconds: float = 300.0
    idle_seconds: float = 1800.0
    visits: int = 50
    open_media: int = 4
    waiting: int = 32

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not is_finite_number(value) or value <= 0 or (field.type in (int, "int") and value != int(value)):
                raise ValueError(f"{field.name}={value!r} must be a positive {'number' if 'seconds' in field.name else 'integer'}.")

    def describe(self) -> str:
        """One line for visitors."""
        size = f"{self.upload_bytes / 2**20:.0f} MB" if self.upload_bytes >= 2**20 else f"{self.upload_bytes / 2**10:.0f} kB"
        return f"Up to {size}, {duration_text(self.video_seconds)}, {self.pixels / 1e6:.1f} megapixels"

    def check_text(self, text: str) -> None:
        if len(text) > self.text_characters:
            raise ValueError(f"The question has {len(text)} characters, more than the {self.text_characters} that are allowed. Shorten it.")

    def read_medium(self, path: str, name: str) -> MediaInfo:
        """
        Checks an uploaded file before the model sees it.

        Args:
            path: of the file.
            name: of the file on the visitor's computer, for messages.

        Returns:
            Size, frame rate and duration of the whole file.

        Raises:
            ValueError: naming the limit that it exceeds.
            OSError: if it is not an image or video, or damaged.
        """
        try:
            return self._read(path, name)
        except OSError as error:
            raise OSError(str(error).replace(path, name).replace(os.path.basename(path), name)) from error

    def _read(self, path: str, name: str) -> MediaInfo:
        self._check_header(path, name)
        if media_kind(path) == "image":
            check_image_file(path)
            height, width = original_size(path)
            return MediaInfo("image", width=width, height=height)
        metadata = read_video_metadata(path)
        info = metadata.media(0, metadata.total_num_frames - 1)
        self._check_pixels(info.width, info.height, name)
        if info.fps is None or info.duration is None:
            raise ValueError(f"{name} has no frame rate, so its answers would have no times. Convert it to MP4.")
        if info.duration - info.start_time > self.video_seconds:
            raise ValueError(
                f"{name} lasts {duration_text(info.duration - info.start_time)}, longer than the {duration_text(self.video_seconds)} "
                "that are allowed. Cut out the part that the question is about."
            )
        if metadata.total_num_frames > self.video_frames:
            raise ValueError(
                f"{name} has {metadata.total_num_frames} frames, more than the {self.video_frames} allowed. Reduce its frame rate."
            )
        return info

    def _check_header(self, path: str, name: str) -> None:
        """Checks the size of an image before anything is decoded: a small file may have very many pixels."""
        try:
            with PIL.Image.open(path) as image:
                self._check_pixels(*image.size, name)
        except PIL.Image.DecompressionBombError as error:
            raise ValueError(f"{name} has more than the {self.pixels / 1e6:.1f} megapixels that are allowed. Scale it down.") from error
        except PIL.UnidentifiedImageError:
            pass  # a video, or a damaged file, which the readers report

    def _check_pixels(self, width: int, height: int, name: str) -> None:
        if width * height > self.pixels:
            raise ValueError(
                f"{name} has {width}×{height} pixels ({width * height / 1e6:.1f} megapixels), more than the "
                f"{self.pixels / 1e6:.1f} megapixels that are allowed. Scale it down."
            )


def duration_text(seconds: float) -> str:
    """ "45 seconds", "10 minutes"."""
    if seconds < 120:
        return f"{math.ceil(seconds)} second{'' if math.ceil(seconds) == 1 else 's'}"
    return f"{seconds / 60:.0f} minutes" if seconds % 60 == 0 else f"{seconds / 60:.1f} minutes"


__all__ = ["Limits"]
