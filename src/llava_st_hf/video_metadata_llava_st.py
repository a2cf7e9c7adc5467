# SPDX-License-Identifier: Apache-2.0
"""What is known of a video: how many frames, when each is displayed, and how positions in it turn into seconds."""

from dataclasses import dataclass

import numpy as np
from transformers.video_utils import VideoMetadata

from .grounding import Media


# How far frames may be from where a constant rate has them, as a fraction of a frame and in seconds (containers that count
# in milliseconds round to them), and still be of constant rate.
RATE_TOLERANCE, TIME_TOLERANCE = 0.1, 1.5e-3
# Decimals of frame times in seconds. decord gives them in single precision, so both readers round to what that can hold.
TIME_DECIMALS = 4


@dataclass
class LlavaSTVideoMetadata(VideoMetadata):
    """
    What transformers keeps of a video, and what it takes to turn frames into seconds and back.

    Args:
        frame_times: seconds from the first frame of the file to each of its `total_num_frames` frames; `None` at a constant
            rate, where frame `i` is shown at `i / fps`. Where it is given, `fps` is the mean rate.
        clip: first and last frame looked at, both included, whichever of them were sampled.
        given_frames: where frames sampled before were passed and are unevenly spaced, which frames of the file they are.
    """

    frame_times: list[float] | None = None
    clip: tuple[int, int] | None = None
    given_frames: list[int] | None = None

    def seconds(self, frame: int) -> float | None:
        """
        Seconds from the first frame of the file to frame `frame`; `None` where the frame rate is unknown.

        `frame` may be the number of frames: then it is when the last frame leaves the screen, after as long as the one before.
        """
        if self.frame_times is not None:
            if frame == len(self.frame_times):
                return 2 * self.frame_times[-1] - self.frame_times[-2]
            return self.frame_times[frame]
        return frame / self.fps if self.fps else None

    def media(self, first: int, last: int) -> Media:
        """What it takes to turn positions in the clip from frame `first` to `last`, both included, into seconds and pixels."""
        frames = self.given_frames  # where they are uneven, times are needed one by one
        times: tuple | None = None
        end_time: float | None = None
        if self.frame_times is not None or (frames is not None and self.fps):
            times = tuple(self.seconds(frame) for frame in frames or range(first, last + 1))
            end_time = self.seconds(last + 1)
        return Media(
            "video",
            width=int(self.width),
            height=int(self.height),
            fps=self.fps,
            first_frame=first,
            last_frame=last,
            frame_times=times,
            frames=None if frames is None else tuple(frames),
            end_time=end_time,
        )

    @property
    def timestamps(self) -> list[float]:
        """Times of the sampled frames, in seconds from the first frame of the file."""
        if self.frame_times is None or self.frames_indices is None:
            return super().timestamps
        return [self.frame_times[index] for index in self.frames_indices]


def file_metadata(path: str, num_frames: int, fps: float, backend: str, times) -> LlavaSTVideoMetadata:
    """`times`: seconds at which each frame is shown."""
    if num_frames <= 0:
        raise OSError(f"{path} has no video frames")
    rate, frame_times = _rate_and_times(float(fps), np.asarray(times, dtype=np.float64))
    return LlavaSTVideoMetadata(
        total_num_frames=num_frames,
        fps=rate,
        duration=num_frames / rate if rate else None,
        video_backend=backend,
        frame_times=frame_times,
    )


def _rate_and_times(fps: float, times: np.ndarray) -> tuple[float | None, list[float] | None]:
    """
    Frames per second, and the seconds of every frame if no constant rate says them.

    Args:
        fps: what the file calls its rate; at most 0 if it does not.
        times: seconds at which each frame is shown, `(num_frames,)`, counted from anywhere.
    """
    stated = fps if fps > 0 else None
    times = times - times[:1]
    if len(times) < 2 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        return stated, None  # times that say nothing
    mean = float((len(times) - 1) / np.round(times[-1], TIME_DECIMALS)) if times[-1] > 10**-TIME_DECIMALS else None
    # The stated rate may be no more than the clock's, or counts a last frame of odd length: then the frames' own is tried.
    for rate in (stated, mean):
        if rate and np.abs(times - np.arange(len(times)) / rate).max() <= max(RATE_TOLERANCE / rate, TIME_TOLERANCE):
            return rate, None
    frame_times = np.round(times, TIME_DECIMALS).tolist()
    # How long the last frame stays is not told reliably: as long as the one before it.
    return len(times) / (2 * frame_times[-1] - frame_times[-2]), frame_times
