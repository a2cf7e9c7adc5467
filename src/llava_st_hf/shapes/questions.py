# SPDX-License-Identifier: Apache-2.0
"""Questions of the Shapes dataset, as rows of this package's own format (`jsonl`): the eight tasks with several prompt templates, and for
training also captions and short questions about a single time."""

from itertools import combinations

import numpy as np

from ..model.messages_llava_st import box_text, span_text, time_text
from ..model.video_sampling_llava_st import sample_frame_indices
from .scenes import Event, Scene


_TUBELET_TASKS = ("stvg", "svg", "elc")
_ATTRIBUTES = ("size", "colour", "shape")
_SIDES = ("left", "top", "right", "bottom")  # of a box, in its order
#: Kind of event → synonyms for questions; answers use the first.
VERBS = {
    "moves left": ("moves left", "moves to the left", "goes left"),
    "moves right": ("moves right", "moves to the right", "goes right"),
    "moves up": ("moves up", "moves upwards", "goes up"),
    "moves down": ("moves down", "moves downwards", "goes down"),
    "grows": ("grows", "gets bigger"),
    "shakes": ("shakes", "shakes to and fro"),
    "appears": ("appears", "is in view"),
    "disappears": ("disappears", "vanishes"),
    "turns": ("turns", "becomes"),
    "hits": ("hits", "bumps into"),
}
# Prompt templates for training, in addition to those of `tasks.TASKS`.
_OTHER_PROMPTS = {
    "rec": ("Find {text} in the image.", "Give the bounding box of {text}.", "Locate {text}."),
    "reg": ("What is in {box}?", "Name the object within {box}."),
    "dgc": ("Name every object with its bounding box.", "List all objects in the image and where they are."),
    "tvg": ("When is it that {text}?", "Find the moment: {text}.", "At what time does this happen: {text}?"),
    "tr": ("What happens during {span}?", "Say what happens in {span}."),
    "vqa": ("What {kind} is {text}?", "Tell the {kind} of {text}."),
    "vqa_at": ("What {kind} is the object in {text}?", "Tell the {kind} of the object in {text}."),
    "edge": ("What is the {side} edge of {text}?", "Where does {text} have its {side} edge?"),
    "middle": ("What is the middle of the time that {text}?", "Around when is it that {text}?"),
    "start": ("When does it start that {text}?", "From when on is it that {text}?"),
    "end": ("When does it end that {text}?", "Until when is it that {text}?"),
    "deeds": ("What does {text} do?", "What happens to {text}?"),
    "doer": ("What {text}?", "Which object {text}?"),
    "caption": ("Describe the {medium}.", "What is in the {medium}?", "What can be seen?"),
    "box_at": ("Where is {text} at {time}?", "Give the bounding box of {text} at {time}."),
    "event_at": ("What does {text} do at {time}?", "What happens to {text} at {time}?"),
    "elc_at": ("What happens at {time} in {box}?", "What does the object in {box} at {time} do?"),
}


def name_of(scene: Scene, number: int) -> str:
    """Size, colour and shape of an object: "large red circle"."""
    thing = scene.things[number]
    return f"{thing.size} {thing.colour} {thing.shape}"


def references(scene: Scene, number: int) -> list[str]:
    """All expressions that are unambiguous for an object of the scene: first its full name, then shorter ones: "the red circle"."""
    thing, others = scene.things[number], [other for place, other in enumerate(scene.things) if place != number]
    ways = [f"the {name_of(scene, number)}"]
    for words, same in (
        (f"the {thing.shape}", lambda other: other.shape == thing.shape),
        (f"the {thing.colour} {thing.shape}", lambda other: (other.colour, other.shape) == (thing.colour, thing.shape)),
        (f"the {thing.size} {thing.shape}", lambda other: (other.size, other.shape) == (thing.size, thing.shape)),
        (f"the {thing.colour} object", lambda other: other.colour == thing.colour),
    ):
        if not any(map(same, others)):
            ways.append(words)
    return ways


def attributes(scene: Scene, number: int) -> list[tuple[str, str, str]]:
    """`(expression, kind, value)`: unambiguous expressions of an object with one or two of its attributes, each with another attribute
    that the expression does not contain: ("the circle", "colour", "red")."""
    thing, others = scene.things[number], [other for place, other in enumerate(scene.things) if place != number]
    found = []
    for count in (1, 2):
        for known in combinations(_ATTRIBUTES, count):
            if any(all(getattr(other, kind) == getattr(thing, kind) for kind in known) for other in others):
                continue
            words = " ".join(["the", *(getattr(thing, kind) for kind in known), *(["object"] if "shape" not in known else [])])
            found += [(words, kind, getattr(thing, kind)) for kind in _ATTRIBUTES if kind not in known]
    return found


def reference(scene: Scene, number: int, rng: np.random.Generator) -> str:
    """One of `references`, most often the first."""
    ways = references(scene, number)
    return str(rng.choice([ways[0], *ways]))


def happening(scene: Scene, event: Event) -> str:
    """Description of an event in answers: "the large red circle moves left"."""
    return f"the {name_of(scene, event.thing)} {event.kind}{_goal(scene, event)}"


def _goal(scene: Scene, event: Event) -> str:
    """Text after the verb of an event: the colour, or the other object."""
    goal = {"turns": f" {event.colour}", "hits": f" the {name_of(scene, event.other)}" if event.other is not None else ""}
    return goal.get(event.kind, "")


def sentence(scene: Scene, event: Event, rng: np.random.Generator, verb: str | None = None) -> str:
    """Description of an event in questions, with random synonyms; `verb` replaces the random verb."""
    goal = {"turns": f" {event.colour}", "hits": f" {reference(scene, event.other, rng)}" if event.other is not None else ""}
    return f"{reference(scene, event.thing, rng)} {verb or rng.choice(VERBS[event.kind])}{goal.get(event.kind, '')}"


def _sentence_case(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def tubelet(scene: Scene, event: Event, num_frames: int) -> list[dict]:
    """`[{"time", "box"}]`, in seconds and pixels, at those of the `num_frames` sampled frames that are within the event."""
    boxes = []
    for frame in _sampled_frames(scene, num_frames):
        time = frame / scene.fps
        box = scene.box(event.thing, time)
        if event.start <= time <= event.end and box is not None:
            boxes.append({"time": round(time, 4), "box": _rounded(box)})
    return boxes


def _sampled_frames(scene: Scene, num_frames: int) -> list[int]:
    """Indices of the frames that a model samples, each once."""
    return list(dict.fromkeys(sample_frame_indices(0, scene.num_frames - 1, num_frames)))


def _rounded(box) -> list[float]:
    return [round(float(value), 2) for value in box]


def image_rows(scene: Scene, path: str, rng: np.random.Generator, others: float | None = None) -> list[dict]:
    """
    Rows about an image: "rec" and "reg" for each object, and "dgc".

    Args:
        path: of the image, in the data folder.
        rng: of the choice of words.
        others: for training, the fraction of questions with other prompt templates than those of the tasks; there are then questions
            with all unambiguous expressions of each object, captions, and questions without coordinates. None for a split to evaluate on.
    """
    boxes = [_rounded(thing_box) for number in range(len(scene.things)) if (thing_box := scene.box(number, 0.0)) is not None]
    order = sorted(range(len(scene.things)), key=lambda number: boxes[number][0])
    rows = []
    for number, box in enumerate(boxes):
        for text in [reference(scene, number, rng)] if others is None else references(scene, number):
            rows.append(_row("rec", "image", path, rng, others, {"text": text}, box_text(box), {"text": text, "box": box}))
        text = f"a {name_of(scene, number)}"
        rows.append(_row("reg", "image", path, rng, others, {"box": box_text(box)}, text, {"text": text, "box": box}))
    phrases = _listed([f"a {name_of(scene, number)}" for number in order])
    objects = [{"text": phrase, "box": boxes[number]} for phrase, number in zip(phrases, order, strict=True)]
    answer = " ".join(f"{item['text']} {box_text(item['box'])}" for item in objects).replace(" ,", ",") + "."
    rows.append(_row("dgc", "image", path, rng, others, {}, answer, {"objects": objects}))
    if others is not None:
        rows.append(_chat("caption", "image", path, rng, {"medium": "image"}, " ".join(phrases).replace(" ,", ",") + "."))
        for number, box in enumerate(boxes):
            for text, kind, value in attributes(scene, number):
                rows.append(_attribute_row("vqa", path, rng, text, kind, value))
            for kind in _ATTRIBUTES:
                rows.append(_attribute_row("vqa_at", path, rng, box_text(box), kind, getattr(scene.things[number], kind)))
            for text in references(scene, number):
                for side, axis, value in zip(_SIDES, "whwh", box, strict=True):
                    rows.append(_chat("edge", "image", path, rng, {"text": text, "side": side}, f"It is <{axis}{value!r}px>."))
    return rows


def _attribute_row(task: str, path: str, rng: np.random.Generator, text: str, kind: str, value: str) -> dict:
    return _chat(task, "image", path, rng, {"text": text, "kind": kind}, f"It is {'a ' if kind == 'shape' else ''}{value}.")


def _listed(phrases: list[str]) -> list[str]:
    """Phrases as consecutive pieces of one sentence: "A red circle", ", a blue square", "and a white cross"."""
    middle = [f", {phrase}" for phrase in phrases[1:-1]]
    last = [f"and {phrase}" for phrase in phrases[1:][-1:]]
    return [phrases[0][0].upper() + phrases[0][1:], *middle, *last]


def video_rows(scene: Scene, path: str, rng: np.random.Generator, num_frames: int, others: float | None = None) -> list[dict]:
    """
    Rows about a video: one of each task for each event, but only the two without boxes for an event that hides its object.

    Args:
        path: of the video, in the data folder.
        rng: of the choice of words.
        num_frames: frames that the model samples of the clip.
        others: as of `image_rows`; there are then also captions, questions without coordinates, and questions about boxes and events at
            single times.
    """
    rows, followed = [], []  # events with their tubelets, if they have one
    for place, event in enumerate(scene.events):
        span = [event.start, event.end]
        asked, told = sentence(scene, event, rng), happening(scene, event)
        rows.append(_row("tvg", "video", path, rng, others, {"text": asked}, span_text(*span), {"text": asked, "span": span}))
        rows.append(
            _row(
                "tr",
                "video",
                path,
                rng,
                others,
                {"span": span_text(*span)},
                _sentence_case(told),
                {"text": _sentence_case(told), "span": span},
            )
        )
        if others is not None:
            for verb in VERBS[event.kind]:
                for task, moment in zip(("start", "middle", "end"), (span[0], sum(span) / 2, span[1]), strict=True):
                    words = sentence(scene, event, rng, verb)
                    rows.append(_chat(task, "video", path, rng, {"text": words}, f"It is {time_text(moment)}."))
        boxes = tubelet(scene, event, num_frames)
        if event.kind == "disappears" or not boxes:
            continue
        followed.append((event, boxes))
        # In training one of the three for each event: their answers are ten times as long as others, and every token has the same weight.
        tasks = _TUBELET_TASKS if others is None else [_TUBELET_TASKS[(scene.seed + place) % 3]]
        for task in tasks:
            text = _sentence_case(sentence(scene, event, rng)) if task != "elc" else told
            rows.append({"video": path, "task": task, "text": text, "span": span, "boxes": boxes})
    if others is not None:
        frames = _sampled_frames(scene, num_frames)
        rows += _places(scene, path, rng, frames)
        story = ", then ".join(happening(scene, event) for event in scene.events) or "nothing happens"
        rows.append(_chat("caption", "video", path, rng, {"medium": "video"}, _sentence_case(story)))
        rows += _deeds(scene, path, rng, frames)
        rows += _doings(scene, path, rng)
        rows += _happenings(scene, path, rng, followed)
    return rows


def _places(scene: Scene, path: str, rng: np.random.Generator, frames: list[int], count: int = 4) -> list[dict]:
    """Questions about the box of an object at one time, a single step of a tubelet."""
    rows = []
    for frame in rng.choice(frames, min(count, len(frames)), replace=False):
        time, number = int(frame) / scene.fps, int(rng.integers(len(scene.things)))
        box = scene.box(number, time)
        if box is not None:
            words = {"text": reference(scene, number, rng), "time": time_text(time)}
            rows.append(_chat("box_at", "video", path, rng, words, box_text(_rounded(box))))
    return rows


def _doings(scene: Scene, path: str, rng: np.random.Generator) -> list[dict]:
    """Questions about the events of an object, and about the object of an event, without times."""
    rows = []
    for number in range(len(scene.things)):
        done = [f"{event.kind}{_goal(scene, event)}" for event in scene.events if event.thing == number]
        for text in references(scene, number):
            rows.append(_chat("deeds", "video", path, rng, {"text": text}, f"It {', then '.join(done) or 'does nothing'}."))
    for event in scene.events:
        if sum(other.kind == event.kind for other in scene.events) == 1:
            for verb in VERBS[event.kind]:
                text = f"{verb}{_goal(scene, event)}"
                rows.append(_chat("doer", "video", path, rng, {"text": text}, f"The {name_of(scene, event.thing)}."))
    return rows


def _deeds(scene: Scene, path: str, rng: np.random.Generator, frames: list[int], count: int = 4) -> list[dict]:
    """Questions about the event of an object at one time."""
    rows = []
    for _ in range(count):
        time, number, deed = _deed(scene, rng, frames)
        words = {"text": reference(scene, number, rng), "time": time_text(time)}
        rows.append(_chat("event_at", "video", path, rng, words, _sentence_case(deed)))
    return rows


def _happenings(scene: Scene, path: str, rng: np.random.Generator, followed: list[tuple[Event, list[dict]]], count: int = 2) -> list[dict]:
    """Questions about the event in a box at one time, the caption of "elc" alone. `followed`: events with their tubelets."""
    rows = []
    for event, boxes in followed:
        for place in rng.permutation(len(boxes))[:count]:
            words = {"box": box_text(boxes[place]["box"]), "time": time_text(boxes[place]["time"])}
            rows.append(_chat("elc_at", "video", path, rng, words, _sentence_case(happening(scene, event))))
    return rows


def _deed(scene: Scene, rng: np.random.Generator, frames: list[int]) -> tuple[float, int, str]:
    """`(seconds, index of an object, description of its event)` at one of `frames`; with probability 2/3 during an event."""
    time, number = int(rng.choice(frames)) / scene.fps, int(rng.integers(len(scene.things)))
    if scene.events and rng.random() < 2 / 3:
        event = scene.events[rng.integers(len(scene.events))]
        inside = [frame / scene.fps for frame in frames if event.start <= frame / scene.fps <= event.end]
        time, number = float(rng.choice(inside)) if inside else time, event.thing
    does = [event for event in scene.events if event.thing == number and event.start <= time <= event.end]
    return time, number, " and ".join(f"{event.kind}{_goal(scene, event)}" for event in does) or "nothing"


def _row(task: str, kind: str, path: str, rng: np.random.Generator, others: float | None, words: dict, answer: str, seen: dict) -> dict:
    """A task row with the annotation `seen`; in training sometimes a chat with another prompt template and `answer`."""
    if others is not None and rng.random() < others:
        return _chat(task, kind, path, rng, words, answer)
    return {kind: path, "task": task, **seen}


def _chat(task: str, kind: str, path: str, rng: np.random.Generator, words: dict, answer: str) -> dict:
    question = str(rng.choice(_OTHER_PROMPTS[task])).format(**words)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {kind: path, "task": task, "messages": messages}


__all__ = ["attributes", "happening", "image_rows", "name_of", "reference", "references", "sentence", "tubelet", "video_rows"]
