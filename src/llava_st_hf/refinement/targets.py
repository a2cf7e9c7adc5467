# SPDX-License-Identifier: Apache-2.0
"""What a refiner looks for, and what it returns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from ..model.results_llava_st import Box


@dataclass(frozen=True)
class Target:
    """
    An object to locate in every frame of a span.

    Args:
        text: description: caption of the event, else the question; empty if there is neither.
        frames: indices of the frames in the file, ascending and without gaps; `[0]` for an image.
        answer_boxes: `{frame: box}` of the answer: its own boxes, and between them interpolated ones (`interpolated`). Empty if the answer
            has no box.
        width, height: of the image or video, in pixels.
        read: function of ascending indices of frames, which yields each as (height, width, 3) uint8 in RGB, in order. A few megabytes of
            frames are in memory at a time.
        notes: what the refiner could not do, to be added to the notes of the answer.
    """

    text: str
    frames: Sequence[int]
    answer_boxes: dict[int, Box]
    width: int
    height: int
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]
    notes: list[str] = field(default_factory=list)


@runtime_checkable
class Refiner(Protocol):
    """Object that locates an event of an answer in each frame of its span."""

    def locate(self, target: Target) -> dict[int, Box]:
        """
        Locates the object of an event.

        Returns:
            `{frame: box}` in pixels, with scores, for the frames in which it was found.
        """
        ...


__all__ = ["Refiner", "Target"]
