# SPDX-License-Identifier: Apache-2.0
"""Refinement of answers: a box in each frame of a span, from a detector or segmenter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..model.downloads_llava_st import DownloadLimits
from ..model.image_files_llava_st import load_image
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Box, Event, Grounding, Tubelet
from ..model.video_frames_llava_st import FramesReader
from ..model.video_reading_llava_st import read_video
from .loading import load
from .targets import Refiner, Target


def refine_answer(
    answer: Mapping[str, Any] | Grounding,
    medium,
    refiner,
    *,
    video_backend: str | None = None,
    allow_truncated: bool = False,
    download_limits: DownloadLimits | None = None,
) -> dict[str, Any] | Grounding:
    """
    Replaces the boxes of an answer by those of a detector or segmenter, one in each frame of the span of each event.

    The frames of the span are decoded, with a few megabytes of them in memory at a time. Spans, captions and the scores of events are not
    changed. A frame in which the refiner does not find the object has the box of the answer, interpolated between the frames that the
    model was shown; if the answer has no boxes, one that is interpolated between those found. `score` of such a box is None, and `notes`
    has their number.

    Args:
        answer: of the pipeline, or a `Grounding`.
        medium: the image or video that the answer is about: a path, URL, bytes, open file, folder of images, array or list of frames.
        refiner: a `Refiner`, `(model, processor)` or a name; see `load`.
        video_backend, allow_truncated, download_limits: as of the pipeline.

    Returns:
        An answer of the same type. `score` of a box is that of the refiner, and `mask` its mask if it makes masks.

    Raises:
        ValueError: if the answer has no `media`, if `medium` has another size or number of frames, or if `refiner` is not valid.
        OSError: naming the medium, if it cannot be read.
    """
    refiner = load(refiner)
    grounding = answer if isinstance(answer, Grounding) else Grounding.from_dict(answer)
    media = grounding.media
    if media is None:
        raise ValueError("The answer must have `media`, the size and frame rate of the image or video, to be refined.")

    def refine_events(reader) -> list[tuple[Event, list[str]]]:
        check_same_number(media, reader.metadata.total_num_frames)
        return [refine_event(grounding, event, media, reader, refiner) for event in grounding.events]

    if not grounding.events:
        return answer if isinstance(answer, Grounding) else dict(answer)
    if media.kind == "image":  # read as a video of one frame
        medium = [load_image(medium) if isinstance(medium, PIL.Image.Image) else medium]  # upright, as files are
    refined = read_video(medium, refine_events, video_backend, allow_truncated, download_limits)
    several = len(grounding.events) > 1
    notes = [f"Event {number}: {note}" if several else note for number, (_, found) in enumerate(refined, start=1) for note in found]
    result = replace(grounding, events=tuple(event for event, _ in refined), notes=(*grounding.notes, *notes))
    return result if isinstance(answer, Grounding) else {**answer, **result.to_dict()}


def check_same_number(media: MediaInfo, num_frames: int) -> None:
    """Raises a `ValueError` unless the number of frames is that of the answer's video."""
    if media.total_num_frames is not None and num_frames != media.total_num_frames:
        raise ValueError(
            f"Refinement needs the video that the answer is about, with all of its {media.total_num_frames} frames; got {num_frames}."
        )


def refine_event(grounding: Grounding, event: Event, media: MediaInfo, reader, refiner: Refiner) -> tuple[Event, list[str]]:
    """Returns an event with refined boxes, and notes about it."""
    text = (grounding.label(event) or "").strip()

    def target(frames: Sequence[int], answer_boxes: dict[int, Box]) -> Target:
        return Target(text, frames, answer_boxes, media.width, media.height, lambda indices: read_frames(reader, media, indices))

    if media.kind == "image":
        return refine_image_object(event, [target([0], {0: box}) for box in event.boxes] or [target([0], {})], refiner)
    frames = grounding.frames(event)
    if not frames:
        return event, ["Its boxes were not refined: it has no span in a video with a known frame rate."]
    looked_for = target(frames, grounding.boxes_per_frame(event))
    found = locate(refiner, looked_for)
    boxes = complete(found, looked_for, media)
    missing = len(frames) - len(found)
    notes = list(looked_for.notes)
    if missing:
        instead = "the boxes of the answer" if looked_for.answer_boxes else "interpolated boxes" if boxes else "no boxes"
        notes.append(f"The object was not located in {missing} of {len(frames)} frames, which have {instead}.")
    return replace(event, boxes=boxes or event.boxes), notes


def refine_image_object(event: Event, targets: Sequence[Target], refiner: Refiner) -> tuple[Event, list[str]]:
    """As `refine_event`, for an object of an image, whose every box is refined by itself."""
    boxes, notes = [], []
    for target in targets:
        found, answer = locate(refiner, target), target.answer_boxes.get(0)
        notes += target.notes
        if found:
            boxes.append(replace(found[0], frame=None))
        else:
            notes.append(
                f"{target.text or 'The object'} was not located in the image{', and' if answer is None else ': it'} has "
                f"{'no box' if answer is None else 'the box of the answer'}."
            )
            boxes += [] if answer is None else [replace(answer, score=None, bins=None)]
    return replace(event, boxes=tuple(boxes)), list(dict.fromkeys(notes))


def locate(refiner: Refiner, target: Target) -> dict[int, Box]:
    """The boxes that a refiner found. Raises a `ValueError` for boxes in frames that are not those of the target."""
    found = refiner.locate(target)
    if outside := sorted(set(found) - set(target.frames)):
        raise ValueError(f"{type(refiner).__name__}.locate must return boxes in frames of the target; got frames {outside[:5]}.")
    return found


def complete(found: Mapping[int, Box], target: Target, media: MediaInfo) -> tuple[Box, ...]:
    """A box for each frame of a target, where there is any: that found, else that of the answer, else one interpolated between those
    found."""
    timed = {frame: replace(box, frame=frame, time=media.seconds_of_frame(frame)) for frame, box in found.items()}
    tubelet = Tubelet(tuple(timed.values()))
    boxes = []
    for frame in target.frames:
        box = timed.get(frame)
        if box is None and frame in target.answer_boxes:
            box = replace(target.answer_boxes[frame], score=None, bins=None)
        elif box is None:
            box = tubelet.box_at_frame(frame, media.seconds_of_frame(frame))
        if box is not None:
            boxes.append(box)
    return tuple(boxes)


def read_frames(reader, media: MediaInfo, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields frames at ascending indices as (height, width, 3) uint8."""
    for chunk in reader.chunks(list(indices)):
        frames = chunk.permute(0, 2, 3, 1) if isinstance(reader, FramesReader) else chunk  # (chunk_frames, height, width, 3)
        if tuple(frames.shape[1:3]) != (media.height, media.width):
            size = f"{frames.shape[2]}x{frames.shape[1]}"
            raise ValueError(
                f"Refinement needs the {media.kind} that the answer is about, of {media.width}x{media.height} pixels; got {size}."
            )
        if frames.dtype != torch.uint8:
            frames = frames.round().clamp(0, 255).to(torch.uint8)
        yield from frames.contiguous().numpy()


__all__ = ["refine_answer"]
