# SPDX-License-Identifier: Apache-2.0
"""Size, frame rate and clip of an image or video: conversion between positions and seconds or pixels."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any

from .checks_llava_st import check_keys, checked_integer, checked_list, checked_number, checked_text, shown
from .coordinates_llava_st import AXES, bin_to_position, check_position, position_to_bin


# Times up to this many seconds before the first frame of a file refer to the first frame.
START_SLACK = 0.5
_SIZE = ("width", "height")
_RATE = "a finite number of frames per second above 0, or None"
# Fields that `to_dict` has of every image and video.
_ALWAYS = ("fps", "first_frame", "last_frame")


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
        if self.kind not in ("image", "video"):
            raise ValueError(f'kind must be "image" or "video", got {shown(self.kind)}.')
        values: dict[str, Any] = {name: checked_integer(getattr(self, name), name, 1, "a whole number of pixels above 0") for name in _SIZE}
        for name in ("first_frame", "last_frame"):
            values[name] = checked_integer(getattr(self, name), name, 0, "the index of a frame, from 0")
        if self.fps is not None:
            values["fps"] = checked_number(self.fps, "fps", _RATE)
            if values["fps"] <= 0:
                raise ValueError(f"fps must be {_RATE}, got {self.fps!r}.")
        for name in ("start_time", "end_time", "duration"):
            if name == "start_time" or getattr(self, name) is not None:
                values[name] = checked_number(getattr(self, name), name, "a finite number of seconds")
        if self.first_frame > self.last_frame:
            raise ValueError(f"first_frame must be at most last_frame, {self.last_frame}, got {self.first_frame}.")
        if self.total_num_frames is not None:
            expected = f"a whole number above last_frame, {self.last_frame}"
            values["total_num_frames"] = checked_integer(self.total_num_frames, "total_num_frames", self.last_frame + 1, expected)
        values["notes"] = tuple(checked_text(note, "notes") for note in checked_list(self.notes, "notes"))
        if self.frames is not None:
            values["frames"] = self._checked_frames()
        if self.frame_times is not None:
            count = self.last_frame - self.first_frame + 1 if self.frames is None else len(self.frames)
            values["frame_times"] = _ascending(self.frame_times, "frame_times", lambda time: checked_number(time, "frame_times"))
            if len(self.frame_times) != count:
                raise ValueError(f"frame_times must have one entry for each of {count} frames, got {len(self.frame_times)}.")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _checked_frames(self) -> tuple[int, ...]:
        expected = f"a list of frame indices from {self.first_frame} to {self.last_frame}"
        frames = _ascending(self.frames, "frames", lambda frame: checked_integer(frame, "frames", 0, expected))
        if not frames or (frames[0], frames[-1]) != (self.first_frame, self.last_frame):
            raise ValueError(f"frames must be {expected}, which are first_frame and last_frame, got {shown(frames)}.")
        return frames

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MediaInfo":
        """
        Converts what `to_dict` returns, also after JSON or Arrow: None counts as absent, since Arrow adds absent keys.

        Raises:
            ValueError: naming the key that is missing, unknown or not valid.
        """
        names = tuple(field.name for field in fields(cls))
        check_keys(values, (), names)
        known = {name: value for name, value in values.items() if value is not None}
        check_keys(known, ("kind", *_SIZE), names)
        return cls(**known)

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

    def frame_position(self, frame: int) -> float:
        """Fraction of the clip at a frame of it: the inverse of `frame`. 0 for a clip of one frame."""
        frames = self._clip_frames()
        after = bisect_left(frames, frame)
        if not frames[0] <= frame <= frames[-1]:
            raise ValueError(f"frame must be a frame of the clip, from {frames[0]} to {frames[-1]}, got {frame}.")
        if frames[after] != frame:
            return (after - (frames[after] - frame) / (frames[after] - frames[after - 1])) / (len(frames) - 1)
        return after / (len(frames) - 1) if len(frames) > 1 else 0.0

    def _clip_frames(self) -> Sequence[int]:
        """Indices in the file of the frames that `frame_times` belong to."""
        return range(self.first_frame, self.last_frame + 1) if self.frames is None else self.frames

    @property
    def last_frame_of_file(self) -> int:
        """Index of the last frame of the file; that of the clip where `total_num_frames` is unknown."""
        return self.last_frame if self.total_num_frames is None else self.total_num_frames - 1

    def seconds_of_frame(self, frame: int) -> float | None:
        """
        Seconds from the start of the container at which a frame is displayed; None where the frame rate is unknown.

        Args:
            frame: index in the file. Where the rate varies, the times of frames outside the clip are not known: they are extrapolated
                at the mean rate. Between two of `frames` they are interpolated.
        """
        if self.frame_times is None:
            return None if self.fps is None else round(self.start_time + frame / self.fps, 4)
        frames, times = self._clip_frames(), self.frame_times
        if not frames[0] <= frame <= frames[-1]:
            end = 0 if frame < frames[0] else -1
            return None if self.fps is None else round(times[end] + (frame - frames[end]) / self.fps, 4)
        after = bisect_left(frames, frame)
        if frames[after] == frame:
            return times[after]
        gap = (times[after] - times[after - 1]) / (frames[after] - frames[after - 1])
        return round(times[after - 1] + (frame - frames[after - 1]) * gap, 4)

    def frame_of_seconds(self, seconds: float) -> int | None:
        """
        Index in the file of the frame whose display time is nearest to `seconds` from the start of the container; None where the frame
        rate is unknown. The inverse of `seconds_of_frame`, with the same extrapolation and interpolation.

        The result is at least 0 and at most the last frame of the file, or that of the clip where `total_num_frames` is unknown.
        """
        frame: float
        if self.frame_times is None:
            if self.fps is None:
                return None
            frame = (seconds - self.start_time) * self.fps
        else:
            frames, times = self._clip_frames(), self.frame_times
            if not times[0] <= seconds <= times[-1]:
                end = 0 if seconds < times[0] else -1
                frame = frames[end] + (seconds - times[end]) * (self.fps or 0.0)
            else:
                after = bisect_left(times, seconds)
                frame = frames[after]
                if times[after] != seconds:
                    weight = (times[after] - seconds) / (times[after] - times[after - 1])
                    frame -= weight * (frames[after] - frames[after - 1])
        return round(min(max(frame, 0), self.last_frame_of_file))

    def bin(self, axis: str, value: float, num_bins: int) -> int:
        """
        Nearest bin of a time in seconds ("temporal") or of a pixel coordinate ("height", "width").

        Args:
            num_bins: of the axis: `num_temporal_bins` or `num_spatial_bins` of the processor.

        Raises:
            ValueError: if the value is outside the clip or frame, or the frame rate is unknown.
        """
        value = checked_number(value, "value", "a time in seconds" if axis == "temporal" else "a coordinate in pixels")
        return position_to_bin(self.position(axis, value, f"{value:g}"), num_bins)

    def value_of_bin(self, axis: str, index: int, num_bins: int) -> float | None:
        """Seconds ("temporal") or pixels ("height", "width") of a bin; None for a time where the frame rate is unknown."""
        if not 0 <= index < num_bins:
            raise ValueError(f"index must be a bin from 0 to {num_bins - 1}, got {index}.")
        return self.value(axis, bin_to_position(index, num_bins))

    def value(self, axis: str, position: float) -> float | None:
        """Seconds ("temporal") or pixels ("height", "width") at a fraction of an axis; None for a time where the rate is unknown."""
        return self.time(position) if _checked_axis(axis) == "temporal" else round(position * getattr(self, axis), 2)

    def box(self, positions: tuple[float, float, float, float]) -> dict[str, float]:
        """`{"xmin", "ymin", "xmax", "ymax"}` in pixels of a box given as fractions (x1, y1, x2, y2)."""
        axes = {"xmin": "width", "ymin": "height", "xmax": "width", "ymax": "height"}
        return {name: round(p * getattr(self, axis), 2) for (name, axis), p in zip(axes.items(), positions, strict=True)}

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
        return self.time_position(value, written) if _checked_axis(axis) == "temporal" else self.pixel_position(axis, value, written)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-serializable values, without those that most videos do not have. `from_dict` converts them back."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.default is MISSING or field.name in _ALWAYS}
        rare = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in {**found, **rare}.items()}


def _ascending(values, name: str, check: Callable) -> tuple:
    values = tuple(map(check, checked_list(values, name)))
    for before, after in pairwise(values):
        if before > after:
            raise ValueError(f"{name} must be in ascending order, got {after!r} after {before!r}.")
    return values


def _checked_axis(axis: str) -> str:
    if axis not in AXES:
        raise ValueError(f"axis must be one of {', '.join(AXES)}; got {shown(axis)}.")
    return axis


def _at(values: tuple, position: float) -> float:
    """Linear interpolation in `values` at a fraction of their length."""
    index = position * (len(values) - 1)
    before = min(int(index), len(values) - 1)
    after = min(before + 1, len(values) - 1)
    return values[before] + (index - before) * (values[after] - values[before])


__all__ = ["MediaInfo", "OutsideMediaError"]
