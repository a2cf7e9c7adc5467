# SPDX-License-Identifier: Apache-2.0
"""Comparison of the outputs of the public video processor for a numbered video with the ground truth."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from transformers import AutoProcessor

import llava_st_hf
from modeling_tests.numbered_videos import NumberedVideo, read_corners, read_number


TIME_TOLERANCE = 0.02  # seconds
MANY_FRAMES, FEW_FRAMES = 100, 7  # every frame of a short video; few frames with long seeks


@dataclass(frozen=True)
class Verdict:
    """
    Result of the comparison for one file.

    Args:
        outcome: `"right"`, `"refused"` (an `OSError` or `ValueError` that names the file), `"wrong"`, or `"exception"` (any other
            exception, or one that does not name the file).
        detail: the error, or the difference.
        frames: number of frames read.
        wrong: number of frames that are not those stated in the metadata, or are mirrored or rotated.
        seconds: the largest error of a time in the metadata.
    """

    outcome: str
    detail: str = ""
    frames: int = 0
    wrong: int = 0
    seconds: float = 0.0


@cache
def video_processor():
    """Video processor of the bundled model."""
    return AutoProcessor.from_pretrained(llava_st_hf.DEMO_MODEL_PATH).video_processor


def read_raw(processor, path, **kwargs) -> tuple[np.ndarray, object]:
    """Reads displayed frames, `(frames, height, width, 3)` from 0 to 255, and the metadata."""
    out = processor(
        videos=[str(path)], return_metadata=True, do_resize=False, do_rescale=False, do_normalize=False, return_tensors="pt", **kwargs
    )
    return out["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy(), out["video_metadata"][0]


def faults(video: NumberedVideo, frames: np.ndarray, metadata) -> tuple[list[str], int, float]:
    """Descriptions of the differences, the number of wrong frames, and the largest error of a time in seconds."""
    found = []
    if metadata.total_num_frames != len(video.numbers):
        found.append(f"counts {metadata.total_num_frames} frames for {len(video.numbers)}")
    if (metadata.width, metadata.height) != (video.width, video.height):
        found.append(f"says {metadata.width}x{metadata.height} for {video.width}x{video.height}")
    if frames.shape[1:3] != (video.height, video.width):
        found.append(f"frames of {frames.shape[2]}x{frames.shape[1]} for {video.width}x{video.height}")
    wrong, seconds = 0, 0.0
    for pixels, index, time in zip(frames, metadata.frames_indices, metadata.timestamps, strict=True):
        if index >= len(video.numbers) or read_number(pixels) != video.numbers[index] or read_corners(pixels) != video.corners:
            wrong += 1
        if index < len(video.times):
            seconds = max(seconds, abs(time - video.times[index]))
    if wrong:
        found.append(f"{wrong} of {len(frames)} frames wrong")
    if seconds > TIME_TOLERANCE:
        found.append(f"times {seconds:.3f} s off")
    return found, wrong, seconds


def clip_inside(video: NumberedVideo) -> tuple[dict, int, int] | None:
    """Clip in seconds of the middle third, and its first and last frame; `None` if there are too few frames."""
    first, last = len(video.times) // 3, 2 * len(video.times) // 3
    if last + 1 >= len(video.times):
        return None
    # A third of a frame after the start of each frame, so that rounding to milliseconds has no effect.
    start, end = (video.times[index] + (video.times[index + 1] - video.times[index]) / 3 for index in (first, last))
    return {"start": start, "end": end}, first, last


def judge(video: NumberedVideo, backend: str | None = None) -> Verdict:
    """Reads a file with many frames, with few, and with a clip in seconds."""
    processor = video_processor()
    kwargs = {} if backend is None else {"video_backend": backend}
    clip = clip_inside(video)
    calls = [{"num_frames": MANY_FRAMES}, {"num_frames": FEW_FRAMES}]
    if clip is not None:
        calls.append({"num_frames": FEW_FRAMES, "clips": [clip[0]]})
    found, read, wrong, seconds = [], 0, 0, 0.0
    try:
        for call in calls:
            frames, metadata = read_raw(processor, video.path, **call, **kwargs)
            faults_here, wrong_here, seconds_here = faults(video, frames, metadata)
            if "clips" in call:
                seen = (metadata.frames_indices[0], metadata.frames_indices[-1])
                if seen != clip[1:]:
                    faults_here.append(f"clip is frames {seen[0]} to {seen[1]} for {clip[1]} to {clip[2]}")
            found += [fault for fault in faults_here if fault not in found]
            read, wrong, seconds = read + len(frames), wrong + wrong_here, max(seconds, seconds_here)
    except (OSError, ValueError) as error:
        if video.path.name not in str(error):
            return Verdict("exception", f"does not name the file: {type(error).__name__}: {error}")
        return Verdict("refused", str(error).replace(str(video.path), video.path.name).splitlines()[0])
    except Exception as error:
        return Verdict("exception", f"{type(error).__name__}: {error}")
    if video.right == "refused":
        found.insert(0, "read, not refused")
    return Verdict("wrong" if found else "right", "; ".join(found), read, wrong, seconds)


def is_right(video: NumberedVideo, verdict) -> bool:
    """Returns whether a verdict is the expected one for the file; a child that crashed or hung is never."""
    if not isinstance(verdict, Verdict) or verdict.outcome not in ("right", "refused"):
        return False
    return video.right == "read or refused" or (verdict.outcome == "refused") == (video.right == "refused")
