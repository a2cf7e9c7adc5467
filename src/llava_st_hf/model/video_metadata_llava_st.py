# SPDX-License-Identifier: Apache-2.0
"""Metadata of a video: number of frames, their times, and conversion of positions to seconds."""

from dataclasses import dataclass, field

import numpy as np
from transformers.video_utils import VideoMetadata

from .media_info_llava_st import MediaInfo


# Largest deviation of frame times from a constant rate that is still treated as constant: a fraction of a frame, at least
# `TIME_TOLERANCE` seconds (some containers round to milliseconds), at most `LARGEST_TOLERANCE` seconds.
RATE_TOLERANCE, TIME_TOLERANCE, LARGEST_TOLERANCE = 0.1, 1.5e-3, 0.015
# Decimals of frame times in seconds. decord returns single precision, so both readers round to a precision that it can represent.
TIME_DECIMALS = 4


@dataclass
class LlavaSTVideoMetadata(VideoMetadata):
    """
    `VideoMetadata` of transformers with the times of frames, for conversion of frames to seconds and back.

    Seconds are those displayed by a player: they count from the start of the container, so the first frame of a video stream that starts
    later than the audio is after second 0.

    Args:
        start_time: seconds at which the first frame is displayed; 0 for frames in memory unless `frame_times` is given.
        frame_times: seconds at which each of the `total_num_frames` frames is displayed; `None` at a constant rate, where frame
            `i` is displayed at `start_time + i / fps`. If it is given, `fps` is the mean rate.
        clip: first and last frame of the clip, both included.
        given_frames: indices in the file of frames sampled by the caller, if they are unevenly spaced; otherwise `None`.
        notes: facts about the file that affect the answer, such as a missing end.
    """

    start_time: float = 0.0
    frame_times: list[float] | None = None
    clip: tuple[int, int] | None = None
    given_frames: list[int] | None = None
    notes: list[str] = field(default_factory=list)

    def seconds(self, frame: int) -> float | None:
        """
        Converts a frame index to the seconds from the start of the container at which it is displayed; `None` if the frame rate is
        unknown, except for frame 0.

        `frame` may be the number of frames: then the result is the end of the last frame, whose duration is that of the one before it.
        """
        times = self.frame_times
        if times is not None:
            if frame < len(times):
                return times[frame]
            last = times[-1] - times[-2] if len(times) > 1 else 1 / self.fps if self.fps else 0.0
            return times[-1] + last
        if frame == 0:
            return self.start_time
        return self.start_time + frame / self.fps if self.fps else None

    def media(self, first: int, last: int) -> MediaInfo:
        """Returns the `MediaInfo` of the clip from frame `first` to `last`, both included."""
        frames = self.given_frames  # set if unevenly spaced: then each frame needs its own time
        times: tuple | None = None
        end_time: float | None = None
        if self.frame_times is not None or (frames is not None and self.fps):
            times = tuple(self.seconds(frame) for frame in frames or range(first, last + 1))
            end_time = self.seconds(last + 1)
        return MediaInfo(
            "video",
            width=int(self.width),
            height=int(self.height),
            fps=self.fps,
            start_time=self.start_time,
            first_frame=first,
            last_frame=last,
            frame_times=times,
            frames=None if frames is None else tuple(frames),
            end_time=end_time,
            notes=tuple(self.notes),
            total_num_frames=self.total_num_frames,
            duration=None if (end := self.seconds(self.total_num_frames)) is None else round(end, 4),
        )

    @property
    def timestamps(self) -> list[float]:
        """Times of the sampled frames, in seconds from the start of the container."""
        if self.frames_indices is None or not (self.frame_times or self.fps or self.total_num_frames == 1):
            return super().timestamps
        return [self.seconds(index) for index in self.frames_indices]


def file_metadata(num_frames: int, fps: float, backend: str, times: np.ndarray, notes: list[str]) -> LlavaSTVideoMetadata:
    """
    Builds the metadata of a video file.

    Args:
        num_frames: number of displayed frames.
        fps: stated frame rate, in frames per second; 0 if the file does not state one.
        backend: name of the decoder.
        times: seconds from the start of the container at which each frame is displayed, `(num_frames,)`.
        notes: see `LlavaSTVideoMetadata`.
    """
    start = round(float(times[0]), TIME_DECIMALS)
    rate, frame_times = _rate_and_times(fps, times)
    return LlavaSTVideoMetadata(
        total_num_frames=num_frames,
        fps=rate,
        duration=num_frames / rate if rate else None,
        video_backend=backend,
        start_time=start,
        frame_times=frame_times,
        notes=notes,
    )


def _rate_and_times(fps: float, times: np.ndarray) -> tuple[float | None, list[float] | None]:
    """
    Returns the frames per second, and the seconds of every frame if the rate is not constant.

    Args:
        fps: stated frame rate; 0 if the file does not state one.
        times: seconds at which each frame is displayed, strictly ascending, `(num_frames,)`.
    """
    stated = fps if fps > 0 else None
    if len(times) < 2:
        return stated, None if stated else times.tolist()
    passed = times - times[0]
    mean = float((len(times) - 1) / passed[-1])
    # The stated rate may be only that of the clock, or include a last frame of different duration: then the mean rate is tried.
    for rate in (stated, round(mean, 3), mean):
        if rate:
            tolerance = min(max(RATE_TOLERANCE / rate, TIME_TOLERANCE), LARGEST_TOLERANCE)
            if np.abs(passed - np.arange(len(times)) / rate).max() <= tolerance:
                return rate, None
    frame_times = np.round(times, TIME_DECIMALS).tolist()
    # The stated duration of the last frame is unreliable, so that of the frame before it is used.
    return len(times) / (2 * frame_times[-1] - frame_times[-2] - frame_times[0]), frame_times
