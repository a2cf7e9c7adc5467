# SPDX-License-Identifier: Apache-2.0
"""The frames of a clip that the model sees: it can speak of no others, so boxes of truths and answers go there."""

from collections.abc import Iterable, Sequence

from ..data.paths import join_path
from ..data.questions import SAMPLED_FRAMES
from ..data.samples import GroundingSample
from ..model.coordinates_llava_st import bin_to_position
from ..model.grounding_llava_st import MediaInfo
from ..model.tasks_llava_st import task_content
from ..model.video_sampling_llava_st import sample_frame_indices
from .rows import Box, GroundingResult, Question


def at_sampled_frames(boxes: dict[int, Box], first: int, last: int) -> dict[int, Box]:
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


def at_nearest_seen(moments: Iterable[tuple[float, Box]], media: MediaInfo, num_frames: int) -> dict[int, Box]:
    """
    Boxes of an answer, each at the nearest of the frames that are sampled; of several that go to one, the nearest stays.

    Args:
        moments: `(position, box)`, positions as fractions of the clip.
        media: the clip.
        num_frames: that are sampled of it.
    """
    return _at_nearest(moments, _positions(num_frames), media)


def ground_truth_at_sampled_frames(moments: Sequence[tuple[float, Box]], media: MediaInfo, num_frames: int) -> dict[int, Box]:
    """
    The same of a truth whose boxes are at any times: none goes to a frame before the first of them or after the last, where the thing
    may not be. An event between two sampled frames keeps the box in its middle, as in `at_sampled_frames`.

    Args:
        moments: `(position, box)` in time order, at least one.
        media, num_frames: see `at_nearest_seen`.
    """
    first, last = (media.frame(moments[end][0]) for end in (0, -1))
    positions = _positions(num_frames)
    if within := [position for position in positions if first <= media.frame(position) <= last]:
        return _at_nearest(moments, within, media)
    return _at_nearest([moments[len(moments) // 2]], positions, media)


def _positions(num_frames: int) -> list[float]:
    """Where in a clip its sampled frames lie."""
    return [0.0] if num_frames == 1 else [bin_to_position(number, num_frames) for number in range(num_frames)]


def _at_nearest(moments: Iterable[tuple[float, Box]], positions: list[float], media: MediaInfo) -> dict[int, Box]:
    nearest: dict[float, tuple[float, Box]] = {}
    for position, box in moments:
        place = min(positions, key=lambda seen: abs(seen - position))
        distance = abs(place - position)
        if place not in nearest or distance < nearest[place][0]:
            nearest[place] = distance, box
    return {media.frame(place): box for place, (_, box) in nearest.items()}


def sample_tubelet(sample: GroundingSample, first: int, last: int) -> dict[int, Box]:
    """The same of a sample whose every frame is annotated, with times in fractions of the clip from frame `first` to `last`."""
    boxes = {first + round(time * (last - first)): box for time, box in sample.boxes if time is not None}
    return at_sampled_frames(boxes, first, last)


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
        truth=GroundingResult(span=sample.span, tubelet=sample_tubelet(sample, first, last)),
        clip=sample.clip,
        size=(sample.width, sample.height),
        frames=(first, last),
    )
