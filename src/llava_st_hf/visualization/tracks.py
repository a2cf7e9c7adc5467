# SPDX-License-Identifier: Apache-2.0
"""Events of one or several answers as they are drawn: colour, label, and the box of each frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Box, Event, Grounding, Span, Tubelet
from .boxes import DrawnBox
from .colours import Colour, check_colour, palette_colour
from .fonts import printable


Answer = Grounding | Mapping[str, Any]


@dataclass(frozen=True)
class Track:
    """
    An event of an answer, as it is drawn.

    Args:
        grounding: the answer.
        event: of it.
        colour: of its boxes and its span.
        number: of the event in the answer from 1; None if it is the only one.
        name: of the answer; None for a single answer without a name.
        text: printable caption, or the question; None if there is neither.
        frames: of the event, as indices in the file; empty in images.
    """

    grounding: Grounding
    event: Event
    colour: Colour
    number: int | None
    name: str | None
    text: str | None
    frames: range
    tubelet: Tubelet = field(repr=False)

    @property
    def span(self) -> Span | None:
        return self.event.span

    @property
    def title(self) -> str:
        """Name, number, text and score on one line."""
        head = " ".join(filter(None, [self.name, None if self.number is None else f"#{self.number}"]))
        return " ".join(filter(None, [f"{head}:" if head and self.text else head, self.text, self.score_text]))

    @property
    def score_text(self) -> str | None:
        """The score of the event, else of its span, with two decimals; None without scores."""
        score = self.event.span_score if self.event.score is None else self.event.score
        return None if score is None else f"{score:.2f}"

    def label(self, with_text: bool) -> str | None:
        """Text at a box before the score: the name, and the caption or, without `with_text`, the number. None if there is none of them."""
        text = self.text if with_text and self.text else None if self.number is None else f"#{self.number}"
        return " ".join(filter(None, [f"{self.name}:" if self.name and text else self.name, text])) or None

    def box_at(self, frame: int) -> Box | None:
        """The box in a frame of the event, interpolated where the answer has none; None outside the event, and without boxes."""
        media = self.grounding.media
        if media is None or frame not in self.frames:
            return None
        return self.tubelet.box_at_frame(frame, media.seconds_of_frame(frame))


def read_answers(answer: Answer | Sequence[Answer]) -> list[Grounding]:
    """
    Converts an answer or several to objects.

    Raises:
        ValueError: if it is neither an answer nor a list of answers, or if an answer does not contain its media.
    """
    answers = [answer] if isinstance(answer, (Grounding, Mapping)) else answer
    if isinstance(answers, (str, bytes)) or not isinstance(answers, Sequence) or not answers:
        raise ValueError(f"answer must be an answer of the pipeline, a Grounding, or a list of them; got {answer!r:.200}.")
    groundings = [item if isinstance(item, Grounding) else Grounding.from_dict(item) for item in answers]
    for grounding in groundings:
        if grounding.media is None:
            raise ValueError(
                "The answer has no media, the size and frame rate of its image or video, so its boxes have no place. Answers of the "
                f"pipeline have it; got text={grounding.text!r:.100}."
            )
    return groundings


def make_tracks(groundings: Sequence[Grounding], names: Sequence[str] | None, colours: Sequence[Colour] | None) -> list[Track]:
    """
    The events of answers in order.

    Args:
        names: of the answers; None for "answer 1" and so on if there are several.
        colours: of the answers, or of the events if there is one answer; None for those of `PALETTE`.

    Raises:
        ValueError: if the number of names is not that of the answers, or a colour is not valid.
    """
    several = len(groundings) > 1
    if names is None:
        shown: list[str | None] = [f"answer {number}" if several else None for number in range(1, len(groundings) + 1)]
    elif isinstance(names, str) or len(names) != len(groundings):
        raise ValueError(f"names must have one entry for each of {len(groundings)} answers; got {names!r:.200}.")
    else:
        shown = [printable(str(name))[0] for name in names]
    given = None if colours is None else [check_colour(colour, "colours") for colour in colours]
    if several and given is not None and len(given) != len(groundings):
        raise ValueError(f"colours must have one entry for each of {len(groundings)} answers; got {len(given)}.")
    tracks = []
    for index, (grounding, name) in enumerate(zip(groundings, shown, strict=True)):
        for place, event in enumerate(grounding.events):
            key = index if several else place
            text = grounding.label(event)
            tracks.append(
                Track(
                    grounding=grounding,
                    event=event,
                    colour=given[key % len(given)] if given else palette_colour(key),
                    number=place + 1 if len(grounding.events) > 1 else None,
                    name=name,
                    text=(printable(text)[0].strip() or None) if text else None,
                    frames=grounding.frames(event) if grounding.is_video else range(0),
                    tubelet=event.tubelet,
                )
            )
    return tracks


def check_size(media: MediaInfo, kind: str, width: int, height: int, num_frames: int | None = None) -> None:
    """
    Checks that an answer is about an image or video of this kind and size.

    Raises:
        ValueError: naming both values, if it is about another one.
    """
    found = {"kind": kind, "width": width, "height": height}
    if num_frames is not None and media.total_num_frames is not None:
        found["total_num_frames"] = num_frames
    for name, value in found.items():
        if getattr(media, name) != value:
            raise ValueError(
                f"The answer is about another medium: its {name} is {getattr(media, name)}, that of the {kind} to draw on is {value}."
            )
    if num_frames is not None and media.last_frame >= num_frames:
        raise ValueError(f"The answer is about another video: its clip ends at frame {media.last_frame} of {num_frames} frames.")


def scaled(box: Box, track: Track, scale: float, size: tuple[int, int], has_label: bool, with_text: bool) -> DrawnBox:
    """
    A box of an event on an image that is `scale` times as large as the medium.

    Args:
        size: width and height of the medium in pixels, that of the mask.
        has_label: whether it is drawn with a label.
        with_text: see `Track.label`.
    """
    corners = [side * scale for side in box.xyxy]
    mask = None if box.mask is None else scaled_mask(decode_mask(box.mask, *size), scale)
    label, score = (track.label(with_text), track.score_text) if has_label else (None, None)
    return DrawnBox((corners[0], corners[1], corners[2], corners[3]), track.colour, label, score, box.interpolated, mask)


def scaled_mask(mask: np.ndarray, scale: float) -> np.ndarray:
    """A boolean mask (height, width) at another size, each pixel that of the nearest one."""
    if scale == 1:
        return mask
    height, width = (max(1, round(length * scale)) for length in mask.shape)
    rows = np.minimum((np.arange(height) / scale).astype(int), mask.shape[0] - 1)
    return mask[rows][:, np.minimum((np.arange(width) / scale).astype(int), mask.shape[1] - 1)]


def decode_mask(counts: str, width: int, height: int) -> np.ndarray:
    """
    Decodes the compressed counts of a COCO run-length encoding to a boolean mask (height, width).

    Raises:
        ImportError: with the installation command, if pycocotools is not installed.
        ValueError: if the counts are not those of a mask of this size.
    """
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ImportError("Drawing masks needs pycocotools: pip install 'llava-st-hf[draw]'") from error
    runs = _run_lengths(counts)
    if runs is None or sum(runs) != width * height:
        total = "not a run-length encoding" if runs is None else f"a mask of {sum(runs)} pixels"
        raise ValueError(f"The mask {counts!r:.60} is {total}; expected {width}x{height} = {width * height}.")
    return coco.decode({"size": [height, width], "counts": counts.encode("ascii")}).astype(bool)


def _run_lengths(counts: str) -> list[int] | None:
    """Lengths of the runs of a compressed encoding, as cocoapi defines it; None if it is not valid. pycocotools does not check them."""
    runs: list[int] = []
    position = 0
    while position < len(counts):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(counts) or not 48 <= ord(counts[position]) < 112:
                return None
            bits = ord(counts[position]) - 48
            value |= (bits & 31) << shift
            more, position, shift = bool(bits & 32), position + 1, shift + 5
            if not more and bits & 16:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return None
    return runs
