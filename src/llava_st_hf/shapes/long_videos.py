# SPDX-License-Identifier: Apache-2.0
"""Long videos of the Shapes dataset: scenes one after the other, in which an event occurs in none, one or several of them."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .files import encode_video
from .questions import happening, name_of
from .scenes import COLOURS, KINDS, SHAPES, SIZES, Event, Painter, Scene, make_scene, scene_seed


FPS = 10  # only scenes of this frame rate are used
SIDE = 112  # width and height in pixels: frames of all scenes are resized to this square
_FIRST_SCENE = 100_000  # number of the first scene of a split; those of `write_questions` are below
_SCENES_PER_VIDEO = 2_000  # numbers that a video chooses its scenes from


@dataclass(frozen=True)
class Instance:
    """
    An event of a long video.

    Args:
        text: description, as `happening` returns it.
        start, end: seconds from the start of the video.
        scene: index of its scene.
        event: the event of the scene.
    """

    text: str
    start: float
    end: float
    scene: int
    event: Event


@dataclass(frozen=True)
class LongVideo:
    """
    Scenes one after the other.

    Args:
        scenes: all with `FPS` frames per second.
    """

    scenes: tuple[Scene, ...]

    @property
    def num_frames(self) -> int:
        return sum(scene.num_frames for scene in self.scenes)

    @property
    def starts(self) -> list[float]:
        """Second at which each scene begins."""
        frames = np.cumsum([0, *(scene.num_frames for scene in self.scenes[:-1])])
        return [int(frame) / FPS for frame in frames]

    @property
    def instances(self) -> list[Instance]:
        """All events, scene by scene."""
        return [
            Instance(happening(scene, event), round(begin + event.start, 3), round(begin + event.end, 3), number, event)
            for number, (scene, begin) in enumerate(zip(self.scenes, self.starts, strict=True))
            for event in scene.events
        ]

    def box(self, instance: Instance, seconds: float) -> tuple[float, float, float, float] | None:
        """`(x1, y1, x2, y2)` in pixels of the object of an event at a time of the video; None where it is not visible."""
        scene = self.scenes[instance.scene]
        box = scene.box(instance.event.thing, seconds - self.starts[instance.scene])
        if box is None:
            return None
        x, y = SIDE / scene.width, SIDE / scene.height
        return box[0] * x, box[1] * y, box[2] * x, box[3] * y

    def frames(self) -> Iterator[np.ndarray]:
        """Yields the frames, uint8 `(SIDE, SIDE, 3)`."""
        for scene in self.scenes:
            painter = Painter(scene)
            for number in range(scene.num_frames):
                yield np.asarray(Image.fromarray(painter.frame(number)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    def write(self, path: str | os.PathLike) -> None:
        """Encodes the video as H.264 in mp4."""
        encode_video(self.frames(), FPS, path)


def _scenes(split: str, number: int) -> Iterator[Scene]:
    """Scenes of `FPS` frames per second with at least one event, for video `number` of a split."""
    first = _FIRST_SCENE + number * _SCENES_PER_VIDEO
    for place in range(first, first + _SCENES_PER_VIDEO):
        scene = make_scene(scene_seed(split, place), is_video=True)
        if scene.fps == FPS and scene.events:
            yield scene


def long_video(split: str, number: int, seconds: float) -> LongVideo:
    """
    Makes a video of at least `seconds`; the last scene is complete.

    Args:
        split: "validation" or "test".
        number: of the video in the split.
        seconds: up to about 2,000.
    """
    scenes: list[Scene] = []
    for scene in _scenes(split, number):
        scenes.append(scene)
        if sum(scene.num_frames for scene in scenes) >= seconds * FPS:
            return LongVideo(tuple(scenes))
    raise ValueError(f"seconds={seconds!r} is more than the {sum(scene.num_frames for scene in scenes) / FPS:.0f} s of a video's scenes.")


def unique_instances(video: LongVideo) -> list[Instance]:
    """The events whose description is true of no other event of the video."""
    instances = video.instances
    counts = Counter(instance.text for instance in instances)
    return [instance for instance in instances if counts[instance.text] == 1]


def absent_text(video: LongVideo, rng: np.random.Generator) -> str:
    """
    Description of an event that does not occur in a video: with probability 1/2 of one of its objects that does something else, otherwise
    of any object.
    """
    names = sorted({name_of(scene, number) for scene in video.scenes for number in range(len(scene.things))})
    occurring = {instance.text for instance in video.instances}
    kinds = [kind for kind in KINDS if kind != "hits"]
    while True:
        name, kind = " ".join(str(rng.choice(list(words))) for words in (SIZES, COLOURS, SHAPES)), str(rng.choice(kinds))
        if rng.random() < 0.5:
            name = str(rng.choice(names))
        colour = str(rng.choice([colour for colour in COLOURS if colour != name.split()[1]]))
        text = f"the {name} {kind}{f' {colour}' if kind == 'turns' else ''}"
        if text not in occurring:
            return text


def repeated_event_video(split: str, number: int, count: int, num_scenes: int = 4) -> tuple[LongVideo, str]:
    """
    Makes a video in which one event occurs in `count` of `num_scenes` scenes: the same object does the same.

    Args:
        split, number: as of `long_video`.
        count: from 0 to `num_scenes`.
        num_scenes: number of scenes, of about 3.6 s each.

    Returns:
        The video, and the description of the event.
    """
    rng = np.random.default_rng([scene_seed(split, _FIRST_SCENE + number), 4])
    size, colour, shape = (str(rng.choice(list(words))) for words in (SIZES, COLOURS, SHAPES))
    kind = str(rng.choice([kind for kind in KINDS if kind not in ("hits", "turns") and (kind, size) != ("grows", "large")]))
    text = f"the {size} {colour} {shape} {kind}"
    places = set(rng.permutation(num_scenes)[:count].tolist())
    scenes: list[Scene] = []
    for scene in _scenes(split, number):
        if len(scenes) in places:
            scene = _with_object(scene, kind, size, colour, shape)
        if scene is not None and sum(happening(scene, event) == text for event in scene.events) == (len(scenes) in places):
            scenes.append(scene)
        if len(scenes) == num_scenes:
            return LongVideo(tuple(scenes)), text
    raise ValueError(f"There is no video {number} of {split} with {count} of {num_scenes} scenes in which {text}.")


def _with_object(scene: Scene, kind: str, size: str, colour: str, shape: str) -> Scene | None:
    """The scene with another colour and shape of the object of its event `kind`; None if it has no such object of this size."""
    for event in scene.events:
        thing = scene.things[event.thing]
        turned = {other.colour for other in scene.events if other.thing == event.thing}
        if event.kind == kind and thing.size == size and colour not in turned:
            if any((other.size, other.colour, other.shape) == (size, colour, shape) for other in scene.things):
                return None
            things = list(scene.things)
            things[event.thing] = replace(thing, colour=colour, shape=shape)
            return replace(scene, things=tuple(things))
    return None


__all__ = ["FPS", "Instance", "LongVideo", "absent_text", "long_video", "repeated_event_video", "unique_instances"]
