# SPDX-License-Identifier: Apache-2.0
"""Frame sampling: clips of a video in frames or seconds, and evenly spaced frames of a clip."""

import math
from bisect import bisect_left, bisect_right

import numpy as np
from transformers.video_utils import VideoMetadata

from .checks_llava_st import is_finite_number, is_integer


# Rounding error of seconds in annotations and arguments; a frame is four orders of magnitude longer.
SECONDS_SLACK = 1e-6
# Rounding error of times of frames, which containers store in milliseconds.
FRAME_TIMES_SLACK = 1e-3

# Maximum number of sampled frames of a video: a larger number is a mistake, or a request that is meant to exhaust the memory.
MAX_SAMPLED_FRAMES = 10_000


def sample_frame_indices(first: int, last: int, num_frames: int) -> list[int]:
    """`num_frames` evenly spaced indices from `first` to `last`, both included, rounded half to even; `[first]` for one.

    Indices are repeated if the clip has fewer than `num_frames` frames.
    """
    if num_frames == 1:
        return [first]
    return [first + round(i / (num_frames - 1) * (last - first)) for i in range(num_frames)]


def check_num_frames(num_frames, name: str = "num_frames") -> None:
    """Raises `ValueError` naming `name` unless `num_frames` is an integer from 1 to `MAX_SAMPLED_FRAMES`."""
    if not is_integer(num_frames) or num_frames < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {num_frames!r}")
    if int(num_frames) > MAX_SAMPLED_FRAMES:
        raise ValueError(f"{name} must be at most {MAX_SAMPLED_FRAMES}, which is 18 GB of pixels at 384x384; got {num_frames!r}")


def resolve_clip(clip: dict | None, metadata: VideoMetadata) -> tuple[int, int]:
    """
    Converts a clip to its first and last frame, both included.

    Args:
        clip: `None`, `{"frames": [first, last]}`, or `{"start": s, "end": s}` in seconds, either optional. Annotations
            sometimes give the number of frames as the last one, so a clip may end one frame late, which is clamped.
        metadata: of the video; `total_num_frames` is needed, and for a clip in seconds `fps`, or `frame_times` where the
            rate varies.

    Raises:
        ValueError: naming the clip and the length of the video, if the clip is empty, reversed, negative, not finite or beyond the
            end of the video.
    """
    total, fps = metadata.total_num_frames, metadata.fps
    if clip is None:
        return 0, total - 1
    if not isinstance(clip, dict) or not clip or not (set(clip) == {"frames"} or set(clip) <= {"start", "end"}):
        raise ValueError(f"a clip must be None, {{'frames': [first, last]}} or {{'start': seconds, 'end': seconds}}; got {clip!r}")
    if "frames" in clip:
        return _resolve_frames(clip["frames"], total)
    if not fps and not getattr(metadata, "frame_times", None):
        raise ValueError(f"clip {clip} is in seconds and the frame rate of the video is unknown; give fps or timestamps of the video item")
    return _resolve_seconds(clip, total, metadata)


def _resolve_frames(frames: tuple[int, int], total: int) -> tuple[int, int]:
    if not isinstance(frames, (list, tuple, np.ndarray)) or len(frames) != 2:
        raise ValueError(f"clip frames must be [first, last]; got {frames!r}")
    if not all(map(is_integer, frames)):
        raise ValueError(f"clip frames must be whole numbers; got {frames!r}")
    first, last = int(frames[0]), int(frames[1])
    if first < 0:
        raise ValueError(f"The first frame of a clip must not be negative, got {first}.")
    if last < first:
        raise ValueError(f"The last frame of a clip ({last}) must not be before the first ({first}).")
    if first >= total or last > total:
        raise ValueError(f"clip frames [{first}, {last}] lie beyond the video, which has {total} frames, 0 to {total - 1}")
    return first, last


def _resolve_seconds(clip: dict[str, float], total: int, metadata: VideoMetadata) -> tuple[int, int]:
    fps, times = metadata.fps, getattr(metadata, "frame_times", None)
    begin = times[0] if times else getattr(metadata, "start_time", 0.0)  # second at which the first frame is displayed
    if times:  # the last frame is displayed as long as the one before it
        last_gap = times[-1] - times[-2] if len(times) > 1 else 1 / fps if fps else 0.0
        finish = times[-1] + last_gap
    else:
        last_gap = 1 / fps
        finish = begin + total / fps
    start, end = clip.get("start", 0.0), clip.get("end", finish)
    for value in (start, end):
        if not is_finite_number(value):
            raise ValueError(f"clip times must be finite numbers of seconds; got {clip}")
    # A container's own duration may exceed the frames' by less than a frame.
    if start >= finish or end > finish + last_gap:
        raise ValueError(f"clip {clip} lies beyond the end: the video lasts {finish:.3f} s")
    if start < 0:
        raise ValueError(f"The start of a clip must not be negative, got {start:g} s.")
    if end <= start:
        raise ValueError(f"The end of a clip ({end:g} s) must be after its start ({start:g} s).")
    if end <= begin:
        raise ValueError(f"clip {clip} ends before the first frame, which is displayed at {begin:.3f} s")
    if times:  # frame i is displayed from times[i] until times[i + 1]
        first = max(bisect_right(times, start + FRAME_TIMES_SLACK) - 1, 0)
        return first, max(first, bisect_left(times, end - FRAME_TIMES_SLACK) - 1)
    # Frame i is displayed from begin + i / fps until begin + (i + 1) / fps: take every frame displayed within the clip.
    first = min(max(math.floor((start - begin + SECONDS_SLACK) * fps), 0), total - 1)
    last = min(math.ceil((end - begin - SECONDS_SLACK) * fps) - 1, total - 1)
    return first, max(first, last)
