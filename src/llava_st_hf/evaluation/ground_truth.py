# SPDX-License-Identifier: Apache-2.0
"""Ground truth of a question in the coordinates of its clip: times as fractions, boxes at the frames that the model samples.

Where it lies depends on the video and on the model: a tubelet has one box for each sampled frame of the event, and answers are read as
boxes at the same frames. So annotations are converted once the video is opened and the number of sampled frames is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..data.ground_truth import boxes_at_sampled_frames
from ..data.samples import Box, GroundingSample, clip_box
from ..model.coordinates_llava_st import bin_to_position
from ..model.grounding_llava_st import MediaInfo
from .rows import GROUNDING_FIELDS, GroundingResult, Question, Span


def to_clip_coordinates(question: Question, media: MediaInfo, num_frames: int) -> Question:
    """
    A question with its ground truth and prompt values in fractions of the clip and pixels at frames of the file.

    Args:
        question: as `read_benchmark` returns it. One that is converted already is returned unchanged.
        media: the image or clip that the model sees.
        num_frames: frames that the model samples of a clip, `num_frames` of its video processor: ground-truth tubelets have boxes at
            these frames.

    Raises:
        ValueError: naming a time outside the clip or a box outside the image; or both numbers of frames, for a question that was
            converted with another one.
    """
    wanted = num_frames if question.kind == "video" else None
    if question.sample is None:
        if question.num_frames not in (None, wanted):
            raise ValueError(f"The ground truth of {question.id!r} is at {question.num_frames} sampled frames, not at num_frames={wanted}.")
        return question if question.num_frames == wanted else replace(question, num_frames=wanted)
    convert = _convert_seconds if question.sample.num_frames is None else _convert_dense
    return replace(convert(question, question.sample, media, num_frames), num_frames=wanted, sample=None)


def _convert_dense(question: Question, sample: GroundingSample, media: MediaInfo, num_frames: int) -> Question:
    """Of a sample with a box for every frame, and with times in fractions already. Its boxes are scaled to a file of another size."""
    sample = _at_frames_of(sample, media)
    assert sample.num_frames is not None and sample.width is not None and sample.height is not None  # the reader checked it
    scale = media.width / sample.width, media.height / sample.height
    last = max(sample.num_frames - 1, 1)
    moments = [(frame / last, _scaled(box, scale)) for frame, box in boxes_at_sampled_frames(sample, num_frames)]
    given = question.given
    if given.box is not None:
        given = replace(given, box=_scaled(given.box, scale))
    return replace(question, truth=replace(question.truth, tubelet=boxes_at_nearest_frames(moments, media, num_frames)), given=given)


def _scaled(box: Box, scale: tuple[float, float]) -> Box:
    x1, y1, x2, y2 = box
    return box if scale == (1, 1) else (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1])


def _at_frames_of(sample: GroundingSample, media: MediaInfo) -> GroundingSample:
    """The sample with only those frames that the clip has, where frames are missing from it."""
    if media.frames is None:
        return sample
    assert sample.num_frames is not None
    first, last = (sample.clip or (0, 0))[0], sample.num_frames - 1
    index = {frame: number for number, frame in enumerate(media.frames)}
    frames = [(first + round(time * last), box) for time, box in sample.boxes if time is not None]
    boxes = tuple((index[frame] / max(len(index) - 1, 1), box) for frame, box in frames if frame in index)
    if not boxes:
        raise ValueError(f"None of the {len(frames)} frames with annotated boxes is among the {len(index)} frames of the video.")
    return replace(sample, boxes=boxes, num_frames=len(index))


def _convert_seconds(question: Question, sample: GroundingSample, media: MediaInfo, num_frames: int) -> Question:
    """Of a sample in seconds and pixels, whose boxes are at any times."""
    boxes = [clip_box(box, media.width, media.height, "The annotated box") for _, box in sample.boxes]
    truth, fields = question.truth, GROUNDING_FIELDS[question.task]
    if "objects" in fields:
        truth = replace(truth, objects=tuple(zip(sample.phrases, boxes, strict=True)))
    if media.kind == "image":
        truth = replace(truth, box=boxes[0] if "box" in fields else None)
        given = GroundingResult(box=boxes[0]) if question.task == "reg" else GroundingResult()
        return replace(question, truth=truth, given=given)
    span = _span_in_clip(sample, media)
    truth = replace(truth, span=span if "span" in fields else None)
    if "tubelet" in fields:
        times = [time for time, _ in sample.boxes if time is not None]
        positions = [media.time_position(time, f"The annotated box at {time:g} s") for time in times]
        moments = list(zip(positions, boxes, strict=True))
        truth = replace(truth, tubelet=sparse_boxes_at_sampled_frames(moments, media, num_frames))
    given = GroundingResult() if question.task in ("tvg", "stvg") else GroundingResult(span=span)
    if question.task == "elc":
        given = GroundingResult(span=(span[0], span[0]), box=boxes[0])
    return replace(question, truth=truth, given=given)


def _span_in_clip(sample: GroundingSample, media: MediaInfo) -> Span:
    assert sample.span is not None  # the reader checked it
    start, end = (media.time_position(seconds, f"The annotated time {seconds:g} s") for seconds in sample.span)
    return start, end


def sparse_boxes_at_sampled_frames(moments: Sequence[tuple[float, Box]], media: MediaInfo, num_frames: int) -> dict[int, Box]:
    """
    Ground-truth boxes that are annotated at any times, at the nearest sampled frames.

    No box is moved before the first annotated one or after the last, where the object may not be visible. An event between two sampled
    frames keeps the box in its middle, as in `boxes_at_sampled_frames`.

    Args:
        moments: `(position, box)` in time order, at least one; positions as fractions of the clip, boxes in pixels.
        media: the clip.
        num_frames: frames that are sampled of it.

    Returns:
        `{frame: box}` with frames of the file.
    """
    first, last = (media.frame(moments[end][0]) for end in (0, -1))
    positions = sampled_positions(num_frames)
    if inside := [position for position in positions if first <= media.frame(position) <= last]:
        return _at_nearest(moments, inside, media)
    return _at_nearest([moments[len(moments) // 2]], positions, media)


def boxes_at_nearest_frames(moments: Iterable[tuple[float, Box]], media: MediaInfo, num_frames: int) -> dict[int, Box]:
    """
    Boxes of an answer, each at the nearest sampled frame. Where several have the same nearest frame, the nearest of them is kept.

    Args:
        moments: `(position, box)`; positions as fractions of the clip, boxes in pixels.
        media: the clip.
        num_frames: frames that are sampled of it.

    Returns:
        `{frame: box}` with frames of the file.
    """
    return _at_nearest(moments, sampled_positions(num_frames), media)


def sampled_positions(num_frames: int) -> list[float]:
    """Positions of the sampled frames of a clip, as fractions of it."""
    return [0.0] if num_frames == 1 else [bin_to_position(number, num_frames) for number in range(num_frames)]


def _at_nearest(moments: Iterable[tuple[float, Box]], positions: list[float], media: MediaInfo) -> dict[int, Box]:
    nearest: dict[float, tuple[float, Box]] = {}
    for position, box in moments:
        sampled = min(positions, key=lambda candidate: abs(candidate - position))
        distance = abs(sampled - position)
        if sampled not in nearest or distance < nearest[sampled][0]:
            nearest[sampled] = distance, box
    return {media.frame(sampled): box for sampled, (_, box) in nearest.items()}
