# SPDX-License-Identifier: Apache-2.0
"""Metadata of a video: number of frames, their times, and conversion of positions to seconds."""

from dataclasses import dataclass, field

import numpy as np
from transformers.video_utils import VideoMetadata

from .grounding_llava_st import MediaInfo


# How far frames may be from where a constant rate has them, as a fraction of a frame and in seconds (containers that count
# in milliseconds round to them), and still be of constant rate; at low rates a tenth of a frame would be long.
RATE_TOLERANCE, TIME_TOLERANCE, LARGEST_TOLERANCE = 0.1, 1.5e-3, 0.015
# Decimals of frame times in seconds. decord gives them in single precision, so both readers round to what that can hold.
TIME_DECIMALS = 4


@dataclass
class LlavaSTVideoMetadata(VideoMetadata):
    """
    `VideoMetadata` of transformers with the times of frames, as needed to convert frames to seconds and back.

    Seconds are those that a player displays: they count from the start of the container, so a video stream that starts later than the
    sound has its first frame after second 0.

    Args:
        start_time: seconds at which the first frame is displayed; 0 for frames in memory unless `frame_times` is given.
        frame_times: seconds at which each of the `total_num_frames` frames is displayed; `None` at a constant rate, where frame
            `i` is displayed at `start_time + i / fps`. Where it is given, `fps` is the mean rate.
        clip: first and last frame of the clip, both included.
        given_frames: where frames sampled before were passed and are unevenly spaced, which frames of the file they are.
        notes: facts about the file that affect the answer, such as a missing end.
    """

    start_time: float = 0.0
    frame_times: list[float] | None = None
    clip: tuple[int, int] | None = None
    given_frames: list[int] | None = None
    notes: list[str] = field(default_factory=list)

    def seconds(self, frame: int) -> float | None:
        """
        Seconds from the start of the container at which frame `frame` is displayed; `None` where the frame rate is unknown,
        but for frame 0.

        `frame` may be the number of frames: then the result is the end of the last frame, which lasts as long as the one before it.
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
        frames = self.given_frames  # where they are uneven, times are needed one by one
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
        num_frames: presented frames.
        fps: what the file calls its rate; 0 if it does not.
        backend: what reads the pixels.
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
        fps: what the file calls its rate; 0 if it does not.
        times: seconds at which each frame is displayed, strictly ascending, `(num_frames,)`.
    """
    stated = fps if fps > 0 else None
    if len(times) < 2:
        return stated, None if stated else times.tolist()
    passed = times - times[0]
    mean = float((len(times) - 1) / passed[-1])
    # The stated rate may be no more than the clock's, or counts a last frame of odd length: then the frames' own is tried.
    for rate in (stated, round(mean, 3), mean):
        if rate:
            tolerance = min(max(RATE_TOLERANCE / rate, TIME_TOLERANCE), LARGEST_TOLERANCE)
            if np.abs(passed - np.arange(len(times)) / rate).max() <= tolerance:
                return rate, None
    frame_times = np.round(times, TIME_DECIMALS).tolist()
    # How long the last frame stays is not said reliably: as long as the one before it.
    return len(times) / (2 * frame_times[-1] - frame_times[-2] - frame_times[0]), frame_times
