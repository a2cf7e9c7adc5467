# SPDX-License-Identifier: Apache-2.0
"""Ground-truth boxes at the frames that the model samples of a clip, for training answers and for evaluation."""

from ..model.video_sampling_llava_st import check_num_frames, sample_frame_indices
from .samples import Box, GroundingSample


def boxes_at_sampled_frames(sample: GroundingSample, num_frames: int) -> list[tuple[int, Box]]:
    """
    The boxes of a dense annotation at the sampled frames of its clip.

    Args:
        sample: with `num_frames`, the number of frames of the clip, at least one box, and times of boxes as fractions of the clip.
        num_frames: frames that the model samples of the clip, evenly spaced with both ends: `num_frames` of its video processor.

    Returns:
        `[(frame, box)]`, frames ascending and counted from the start of the clip, boxes in pixels. A frame that is sampled several
        times (of a clip with fewer frames than `num_frames`) is listed once; one without an annotated box, because the object is not
        visible, is not listed. If no sampled frame has a box, the event lies between two of them: then the one entry is the box in
        the middle of the event, at the sampled frame nearest to it.

    Raises:
        ValueError: for a `num_frames` that is not a valid number of frames.
    """
    check_num_frames(num_frames)
    assert sample.num_frames is not None
    last = sample.num_frames - 1
    boxes = {round(time * last): box for time, box in sample.boxes if time is not None}
    sampled = list(dict.fromkeys(sample_frame_indices(0, last, num_frames)))
    if found := [(frame, boxes[frame]) for frame in sampled if frame in boxes]:
        return found
    annotated = sorted(boxes)
    middle = annotated[len(annotated) // 2]
    return [(min(sampled, key=lambda frame: (abs(frame - middle), frame)), boxes[middle])]
