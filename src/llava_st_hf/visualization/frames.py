# SPDX-License-Identifier: Apache-2.0
"""Frames of a video as arrays of pixels, with their times, through the video readers of the package."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..model.downloads_llava_st import DownloadLimits
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Grounding
from ..model.video_decoding_llava_st import Result, VideoFileReader
from ..model.video_frames_llava_st import FramesReader
from ..model.video_reading_llava_st import read_video
from .tracks import check_size


class VideoFrames:
    """
    The frames of an opened video.

    Args:
        reader: of the video, as `read_video` passes it.
        media: of the answers: frame rate or times of frames in memory.
        fps: frames per second of frames whose rate neither `media` nor the video has.

    Attributes:
        num_frames, width, height: of the video; sizes in pixels.
        rate: frames per second if it is constant, else None.
    """

    def __init__(self, reader, media: MediaInfo, fps: float | None):
        self.reader, self.media = reader, media
        self.num_frames: int = reader.metadata.total_num_frames
        first = next(self.pixels([0]))
        self.height, self.width = first.shape[:2]
        metadata = reader.metadata
        self.times: np.ndarray | None = None  # seconds of every frame, (num_frames,)
        if isinstance(reader, VideoFileReader):
            self.times = reader.index.times
        elif metadata.frame_times is not None:
            self.times = np.asarray(metadata.frame_times)
        elif media.frame_times is not None and isinstance(reader, FramesReader):
            self.times = np.array([media.seconds_of_frame(frame) for frame in range(self.num_frames)])
        is_varying = metadata.frame_times is not None or (isinstance(reader, FramesReader) and media.frame_times is not None)
        known = metadata.fps or media.fps
        if known and fps is not None:
            raise ValueError(f"fps={fps!r} can only be given for frames of unknown rate; this video has {known:g} frames per second.")
        self.rate = None if is_varying else known or fps
        self.mean_rate = known or fps
        self.start = media.start_time if isinstance(reader, FramesReader) else metadata.start_time

    def seconds(self, frame: int) -> float | None:
        """Seconds at which a frame is displayed, or the last one ends for `num_frames`; None if the rate is unknown."""
        if self.rate:
            return self.start + frame / self.rate
        if self.times is None:
            return None
        if frame < len(self.times):
            return float(self.times[frame])
        gap = self.times[-1] - self.times[-2] if len(self.times) > 1 else 1 / self.mean_rate if self.mean_rate else 0.1
        return float(self.times[-1] + gap)

    def exact_seconds(self, frame: int) -> float:
        """`seconds` of a video whose rate is known, see `known_rate`."""
        seconds = self.seconds(frame)
        assert seconds is not None
        return seconds

    def known_rate(self, what: str) -> float:
        """Frames per second on average. Raises `ValueError` if they are unknown, but `what` is to be written, which needs them."""
        if not self.mean_rate or self.bounds is None:
            raise ValueError(f"The frame rate of the video is unknown, and {what} needs one: give fps, the frames per second.")
        return self.mean_rate

    def frame_at(self, seconds: float) -> int:
        """Index of the frame that is displayed at a time; the first or last one outside the video."""
        if self.rate:
            number = int((seconds - self.start) * self.rate + 1e-6)
        else:
            assert self.times is not None
            number = int(np.searchsorted(self.times, seconds + 1e-6, side="right")) - 1
        return min(max(number, 0), self.num_frames - 1)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Seconds at which the first frame is displayed and the last one ends; None if the rate is unknown."""
        start, end = self.seconds(0), self.seconds(self.num_frames)
        return None if start is None or end is None else (start, end)

    def pixels(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yields frames at ascending indices, (height, width, 3) uint8, which the caller may change."""
        for chunk in self.reader.chunks(list(indices)):
            if isinstance(self.reader, FramesReader):
                chunk = chunk.permute(0, 2, 3, 1)  # (chunk_frames, height, width, channels)
                chunk = chunk.round().clamp(0, 255).byte() if chunk.dtype.is_floating_point else chunk.clone()
            frames = chunk.numpy()  # (chunk_frames, height, width, 3)
            for frame in frames:
                yield np.ascontiguousarray(frame)


def open_frames(
    medium,
    groundings: Sequence[Grounding],
    use: Callable[[VideoFrames], Result],
    fps: float | None = None,
    download_limits: DownloadLimits | None = None,
) -> Result:
    """
    Opens a video, checks that answers are about it, and returns the result of `use`, which may be called twice (see `read_video_file`).

    Args:
        medium: a file (path, URL, bytes, open file), a folder of image files, an array or a list of frames.
        groundings: answers; a truncated file is read if they were made of it, which their notes state.

    Raises:
        OSError, ValueError: see `read_video` and `check_size`.
    """
    described = [grounding.media for grounding in groundings if grounding.media is not None]
    is_truncated = any(media.notes for media in described)

    def read(reader) -> Result:
        frames = VideoFrames(reader, described[0], fps)
        for media in described:
            check_size(media, "video", frames.width, frames.height, frames.num_frames)
        return use(frames)

    return read_video(medium, read, allow_truncated=is_truncated, download_limits=download_limits)
