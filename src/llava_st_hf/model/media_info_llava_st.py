# SPDX-License-Identifier: Apache-2.0
"""Size, frame rate and clip of an image or video: conversion between positions and seconds or pixels."""

from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass

from .coordinates_llava_st import bin_to_position, check_position, position_to_bin


# Times up to this many seconds before the first frame of a file refer to the first frame.
START_SLACK = 0.5


class OutsideMediaError(ValueError):
    """
    A time or pixel coordinate is outside the clip, video or image that it refers to.

    Args:
        written: how the user wrote the coordinate.
        reason: the rest of the message.
    """

    def __init__(self, written: str, reason: str):
        super().__init__(f"{written} {reason}")
        self.written, self.reason = written, reason


@dataclass(frozen=True)
class MediaInfo:
    """Size, frame rate and clip of one image or video, as needed to convert positions into seconds and pixels and back.

    Args:
        kind: "image" or "video".
        width, height: of the original file after EXIF or container rotation, in pixels.
        fps: frames per second of the file; None if unknown (frames given without metadata) and for images.
        start_time: seconds from the start of the container at which frame 0 of the file is displayed.
        first_frame, last_frame: the clip that the model sees, as indices of the original frames, both included. Positions
            in time are fractions of this clip.
        frame_times: seconds from the start of the container of each of those frames if the frame rate varies; None if
            frame i is displayed at start_time + i / fps.
        frames: indices of the original frames in the clip if they are unevenly spaced; None if evenly. Positions are then fractions
            of this list, and `frame_times` has one entry per index.
        end_time: with `frame_times`, the seconds until which the last of those frames is displayed; None for the duration of one
            frame at the mean rate after it.
        notes: facts about the file that affect the answer, such as a missing end. They are copied to the notes of the answer.
        total_num_frames: frames of the whole file, of which the clip may be a part; None for images and where unknown.
        duration: seconds from the start of the container until which the last frame of the file is displayed; None for images and
            where unknown.
    """

    kind: str
    width: int
    height: int
    fps: float | None = None
    first_frame: int = 0
    last_frame: int = 0
    frame_times: tuple[float, ...] | None = None
    frames: tuple[int, ...] | None = None
    end_time: float | None = None
    start_time: float = 0.0
    notes: tuple[str, ...] = ()
    total_num_frames: int | None = None
    duration: float | None = None

    def __post_init__(self):
        count = self.last_frame - self.first_frame + 1 if self.frames is None else len(self.frames)
        for name in ("frame_times", "frames", "notes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON makes lists of them
        if self.frame_times is not None and len(self.frame_times) != count:
            raise ValueError(f"frame_times must have one entry for each of {count} frames, got {len(self.frame_times)}.")

    def time(self, position: float) -> float | None:
        """Seconds from the start of the file at a fraction of the clip; None where the frame rate is unknown."""
        if self.frame_times is not None:
            return round(_at(self.frame_times, position), 3)
        if self.fps is None:
            return None
        return round(self.start_time + (self.first_frame + position * (self.last_frame - self.first_frame)) / self.fps, 3)

    def frame(self, position: float) -> int:
        """Index of the original frame at a fraction of the clip."""
        if self.frames is not None:
            return round(_at(self.frames, position))
        return self.first_frame + round(position * (self.last_frame - self.first_frame))

    def seconds_of_frame(self, frame: int) -> float | None:
        """
        Seconds from the start of the container at which a frame is displayed; None where the frame rate is unknown.

        Args:
            frame: index in the file. Where the rate varies, the times of frames outside the clip are not known: they are extrapolated
                at the mean rate.
        """
        if self.frame_times is None:
            return None if self.fps is None else round(self.start_time + frame / self.fps, 4)
        frames = range(self.first_frame, self.last_frame + 1) if self.frames is None else self.frames
        after = min(bisect_left(frames, frame), len(frames) - 1)
        if frames[after] == frame:
            return self.frame_times[after]
        before = max(after - 1, 0)
        if frames[0] < frame < frames[-1]:
            gap = (self.frame_times[after] - self.frame_times[before]) / (frames[after] - frames[before])
            return round(self.frame_times[before] + (frame - frames[before]) * gap, 4)
        end = after if frame > frames[-1] else 0
        return None if not self.fps else round(self.frame_times[end] + (frame - frames[end]) / self.fps, 4)

    def frame_of_seconds(self, seconds: float) -> int | None:
        """
        Index in the file of the frame whose display time is nearest to `seconds` from the start of the container, at least 0 and at
        most the last frame of the file, if its number of frames is known; None where the frame rate is unknown.
        """
        last = self.last_frame if self.total_num_frames is None else self.total_num_frames - 1
        if self.frame_times is None:
            return None if self.fps is None else min(max(round((seconds - self.start_time) * self.fps), 0), last)
        after = bisect_right(self.frame_times, seconds)
        nearest = min(range(max(after - 1, 0), min(after + 1, len(self.frame_times))), key=lambda i: abs(self.frame_times[i] - seconds))
        return self.first_frame + nearest if self.frames is None else self.frames[nearest]

    def bin(self, axis: str, value: float, num_bins: int) -> int:
        """
        Nearest bin of a time in seconds ("temporal") or of a pixel coordinate ("height", "width").

        Args:
            num_bins: of the axis: `num_temporal_bins` or `num_spatial_bins` of the processor.

        Raises:
            ValueError: if the value is outside the clip or frame.
        """
        return position_to_bin(self.position(axis, value, f"{value:g}"), num_bins)

    def value_of_bin(self, axis: str, index: int, num_bins: int) -> float | None:
        """Seconds ("temporal") or pixels ("height", "width") of a bin; None for a time where the frame rate is unknown."""
        position = bin_to_position(index, num_bins)
        return self.time(position) if axis == "temporal" else round(position * (self.width if axis == "width" else self.height), 2)

    def box(self, positions: tuple[float, float, float, float]) -> dict[str, float]:
        """`{"xmin", "ymin", "xmax", "ymax"}` in pixels of a box given as fractions (x1, y1, x2, y2)."""
        scale = (self.width, self.height, self.width, self.height)
        return {name: round(p * s, 2) for name, p, s in zip(("xmin", "ymin", "xmax", "ymax"), positions, scale, strict=True)}

    def time_position(self, seconds: float, written: str) -> float:
        """Fraction of the clip at `seconds` from the start of the container.

        A time up to `START_SLACK` seconds before the first frame of the file refers to that frame: in many files the video starts
        slightly later than the sound, and users write 0 for the start.

        Args:
            seconds: from the start of the container.
            written: the name of the value in error messages.

        Raises:
            ValueError: naming `written`, if the media is an image, the frame rate is unknown, or the time is outside the clip.
        """
        if self.kind != "video":
            raise OutsideMediaError(written, "is a time, but the media before it is an image.")
        if self.frame_times is not None:
            return self._position_in_times(self.frame_times, seconds, written)
        if self.fps is None:
            raise OutsideMediaError(
                written, "is in seconds, but the frame rate of the video is unknown. Give fps or timestamps of the video item."
            )
        frames = self.last_frame - self.first_frame
        if self.first_frame == 0 and self.start_time - START_SLACK <= seconds < self.start_time and seconds >= 0:
            return 0.0
        frame = (seconds - self.start_time) * self.fps
        # The last frame of the clip is displayed until the next one would be: its whole duration belongs to the clip.
        if not self.first_frame - 0.5 <= frame <= self.last_frame + 1.5:
            start, end = (self.start_time + frame / self.fps for frame in (self.first_frame, self.last_frame + 1))
            raise OutsideMediaError(written, f"is outside the clip, which lasts from {start:g} to {end:g} seconds.")
        return min(max((frame - self.first_frame) / frames, 0.0), 1.0) if frames else 0.0

    def _position_in_times(self, times: tuple[float, ...], seconds: float, written: str) -> float:
        mean_gap = 1 / (self.fps or 1)
        end = self.end_time if self.end_time is not None else times[-1] + mean_gap
        # Half a frame of tolerance at either end, as for a constant rate.
        if self.first_frame == 0 and times[0] - START_SLACK <= seconds < times[0] and seconds >= 0:
            return 0.0
        if not times[0] - mean_gap / 2 <= seconds <= end + mean_gap / 2:
            raise OutsideMediaError(written, f"is outside the clip, which lasts from {times[0]:g} to {end:g} seconds.")
        after = bisect_left(times, seconds)
        if after in (0, len(times)):
            return 0.0 if after == 0 or len(times) == 1 else 1.0
        before = times[after - 1]
        return (after - 1 + (seconds - before) / (times[after] - before)) / (len(times) - 1)

    def pixel_position(self, axis: str, pixels: float, written: str) -> float:
        """Fraction of the height or width at `pixels` from the top or left.

        Args:
            axis: "height" or "width".
            pixels: in the original image or frame.
            written: the name of the value in error messages.

        Raises:
            ValueError: naming `written`, if it is outside the image or frame by more than one pixel.
        """
        length = self.width if axis == "width" else self.height
        if not -1 <= pixels <= length + 1:
            raise OutsideMediaError(written, f"is outside the {self.kind}, whose {axis} is {length} pixels.")
        return check_position(min(max(pixels / length, 0.0), 1.0), written)

    def position(self, axis: str, value: float, written: str) -> float:
        """Fraction of an axis at `value`, in seconds or pixels: see `time_position` and `pixel_position`."""
        return self.time_position(value, written) if axis == "temporal" else self.pixel_position(axis, value, written)

    def to_dict(self) -> dict:
        """The fields as JSON-serializable values, without those that most videos do not have."""
        rare = ("frame_times", "frames", "end_time", "start_time", "notes", "total_num_frames", "duration")
        return {name: value for name, value in asdict(self).items() if value or name not in rare}


def _at(values: tuple, position: float) -> float:
    """Linear interpolation in `values` at a fraction of their length."""
    index = position * (len(values) - 1)
    before = min(int(index), len(values) - 1)
    after = min(before + 1, len(values) - 1)
    return values[before] + (index - before) * (values[after] - values[before])


__all__ = ["MediaInfo", "OutsideMediaError"]
