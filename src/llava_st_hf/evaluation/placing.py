# SPDX-License-Identifier: Apache-2.0
"""Annotations in seconds as what scores are computed of: fractions of the clip and boxes at frames. It takes the medium to tell."""

from dataclasses import replace

from ..data.samples import Box, GroundingSample, within
from ..model.grounding_llava_st import MediaInfo
from .rows import GROUNDING_FIELDS, GroundingResult, Question, Span
from .seen_frames import ground_truth_at_sampled_frames


def to_clip_coordinates(question: Question, media: MediaInfo, num_frames: int) -> Question:
    """
    A question with truth and given times in fractions and frames; unchanged where they are already.

    Args:
        media: what the question is about, as the model sees it.
        num_frames: that the model samples of a clip. True tubelets have boxes at these.

    Raises:
        ValueError: naming a time outside the clip or a box outside the picture.
    """
    sample = question.sample
    if sample is None:
        return question
    boxes = [within(box, media.width, media.height, "The annotated box") for _, box in sample.boxes]
    truth, asked = question.truth, GROUNDING_FIELDS[question.task]
    if "objects" in asked:
        truth = replace(truth, objects=tuple(zip(sample.phrases, boxes, strict=True)))
    if media.kind == "image":
        truth = replace(truth, box=boxes[0] if "box" in asked else None)
        given = GroundingResult(box=boxes[0]) if question.task == "reg" else GroundingResult()
        return replace(question, truth=truth, given=given, sample=None)
    span = _fractions(sample, media)
    truth = replace(truth, span=span if "span" in asked else None)
    if "tubelet" in asked:
        truth = replace(truth, tubelet=_tubelet(sample, boxes, media, num_frames))
    given = GroundingResult() if question.task in ("tvg", "stvg") else GroundingResult(span=span)
    if question.task == "elc":
        given = GroundingResult(span=(span[0], span[0]), box=boxes[0])
    return replace(question, truth=truth, given=given, num_frames=num_frames, sample=None)


def _fractions(sample: GroundingSample, media: MediaInfo) -> Span:
    assert sample.span is not None  # the reader saw to it
    start, end = (media.time_position(seconds, f"The annotated time {seconds:g} s") for seconds in sample.span)
    return start, end


def _tubelet(sample: GroundingSample, boxes: list[Box], media: MediaInfo, num_frames: int) -> dict[int, Box]:
    times = [time for time, _ in sample.boxes if time is not None]
    moments = [media.time_position(time, f"The annotated box at {time:g} s") for time in times]
    return ground_truth_at_sampled_frames(list(zip(moments, boxes, strict=True)), media, num_frames)
