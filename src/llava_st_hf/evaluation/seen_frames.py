# SPDX-License-Identifier: Apache-2.0
"""Boxes of every frame, cut down to the frames that the model sees, since it can speak of no others."""

from ..data.paths import join_path
from ..data.questions import SAMPLED_FRAMES
from ..data.samples import GroundingSample
from ..tasks import task_content
from ..video_sampling_llava_st import sample_frame_indices
from .rows import Box, Grounding, Question


def at_seen_frames(boxes: dict[int, Box], first: int, last: int) -> dict[int, Box]:
    """
    The boxes at those frames that are sampled from a clip, in order.

    An event that falls between two of them would have none, and no answer could be right: it keeps the box in its middle, at the sampled
    frame nearest to that.

    Args:
        boxes: `{frame: box}`, at least one.
        first, last: frames of the clip, both included.
    """
    seen = set(sample_frame_indices(first, last, SAMPLED_FRAMES))
    frames = sorted(boxes)
    if found := {frame: boxes[frame] for frame in frames if frame in seen}:
        return found
    middle = frames[len(frames) // 2]
    return {min(seen, key=lambda frame: (abs(frame - middle), frame)): boxes[middle]}


def sample_tubelet(sample: GroundingSample, first: int, last: int) -> dict[int, Box]:
    """The same of a sample whose every frame is annotated, with times in fractions of the clip from frame `first` to `last`."""
    boxes = {first + round(time * (last - first)): box for time, box in sample.boxes if time is not None}
    return at_seen_frames(boxes, first, last)


def stvg_question(sample: GroundingSample, media: str, first: int, last: int) -> Question:
    """
    What the task "stvg" asks of a sample whose every frame is annotated.

    Args:
        media: folder of the videos.
        first, last: frames of the clip, both included.

    Raises:
        ValueError: naming a path that leaves the folder.
    """
    assert sample.width is not None and sample.height is not None  # the readers see to it
    return Question(
        id=sample.id,
        task="stvg",
        path=join_path(media, sample.path),
        kind="video",
        prompt="".join(item["text"] for item in task_content("stvg", text=sample.text)),
        truth=Grounding(span=sample.span, tubelet=sample_tubelet(sample, first, last)),
        clip=sample.clip,
        size=(sample.width, sample.height),
        frames=(first, last),
    )
