# SPDX-License-Identifier: Apache-2.0
"""Clips of the Shapes dataset in which one event lasts as long as a model has frames, for answers with many boxes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..model.video_sampling_llava_st import sample_frame_indices
from .questions import happening, sentence
from .scenes import Event, Painter, Scene, make_scene, scene_seed


#: Tasks whose answers have a box for each sampled frame of the event.
TUBELET_TASKS = ("stvg", "svg", "elc")


@dataclass(frozen=True)
class EventClip:
    """
    A clip of a scene around one of its events.

    Args:
        scene: the scene, slowed down.
        event: one of its events.
        first, last: frames of the scene, both included.
        seed: of the choice of words.
    """

    scene: Scene
    event: Event
    first: int
    last: int
    seed: int

    def frames(self) -> Iterator[np.ndarray]:
        """Yields the frames of the clip, (height, width, 3) uint8."""
        painter = Painter(self.scene)
        return (painter.frame(number) for number in range(self.first, self.last + 1))

    @property
    def span(self) -> tuple[float, float]:
        """Start and end of the event in seconds from the start of the clip."""
        start, end = (round(time - self.first / self.scene.fps, 4) for time in (self.event.start, self.event.end))
        return start, end

    def text(self, task: str) -> str:
        """Returns the text of a question of "stvg" or "svg", or of the answer of "elc"."""
        words = sentence(self.scene, self.event, np.random.default_rng([self.seed, TUBELET_TASKS.index(task)]))
        return happening(self.scene, self.event) if task == "elc" else f"{words[0].upper()}{words[1:]}."

    def box(self, time: float) -> tuple[float, float, float, float] | None:
        """`(x1, y1, x2, y2)` of the object in pixels, `time` seconds after the start of the clip; None where it is not visible."""
        return self.scene.box(self.event.thing, time + self.first / self.scene.fps)

    def boxes(self, num_frames: int) -> list[dict]:
        """Returns `[{"time", "box"}]` in seconds and pixels, at those of `num_frames` sampled frames of the clip that are in the event."""
        found, (start, end) = [], self.span
        for frame in dict.fromkeys(sample_frame_indices(0, self.last - self.first, num_frames)):
            time = frame / self.scene.fps
            box = self.box(time)
            if start <= time <= end and box is not None:
                found.append({"time": round(time, 4), "box": [round(float(value), 2) for value in box]})
        return found


def event_clip(split: str, number: int, num_frames: int, fraction: tuple[float, float] = (1.0, 1.0), world: int = 0) -> EventClip | None:
    """
    Returns a clip of a scene of the Shapes dataset, slowed down by a whole number so that one event lasts at least `num_frames` frames.

    Args:
        split: "train", "validation" or "test".
        number: of the scene.
        num_frames: frames that a model samples of the clip.
        fraction: range of the fraction of the clip that the event fills.
        world: seed of the dataset: another number makes other scenes.

    Returns:
        The clip; None if the scene has no event whose object is visible.
    """
    seed = scene_seed(split, number, world)
    scene, rng = make_scene(seed, is_video=True), np.random.default_rng([seed, 4])
    events = [place for place, event in enumerate(scene.events) if event.kind != "disappears"]
    if not events:
        return None
    place = events[int(rng.integers(len(events)))]
    event = scene.events[place]
    factor = int(np.ceil((num_frames + 1) / ((event.end - event.start) * scene.fps)))
    slow = [replace(one, start=one.start * factor, end=one.end * factor, shake=one.shake * factor) for one in scene.events]
    scene, event = replace(scene, num_frames=(scene.num_frames - 1) * factor + 1, events=tuple(slow)), slow[place]
    first, last = int(np.floor(event.start * scene.fps)), int(np.ceil(event.end * scene.fps))
    margin = (last - first + 1) * (1 / rng.uniform(*fraction) - 1)  # frames before and after the event
    before = margin * rng.uniform()
    first, last = max(0, first - int(before)), min(scene.num_frames - 1, last + int(margin - before))
    return EventClip(scene, event, first, last, seed % 2**31)


__all__ = ["TUBELET_TASKS", "EventClip", "event_clip"]
