# SPDX-License-Identifier: Apache-2.0
"""Answers as objects: conversion from and to dictionaries and JSON, interpolation of boxes, frames of events."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf import Box, Event, Grounding, MediaInfo, Span, Tubelet, parse_answer
from llava_st_hf.model.coordinates_llava_st import AXES, COORDINATE_TOKEN
from llava_st_hf.model.scores_llava_st import score_coordinates


VIDEO = MediaInfo("video", 640, 360, fps=25.0, last_frame=249, total_num_frames=250, duration=10.0)
CLIP = MediaInfo("video", 97, 33, fps=23.976, first_frame=11, last_frame=405, start_time=0.2, total_num_frames=900)
VARYING = MediaInfo(
    "video", 8, 8, fps=2.8, first_frame=18, last_frame=22, frame_times=(1.8, 1.9, 2.0, 3.0, 4.0), end_time=5.0, total_num_frames=30
)
UNEVEN = MediaInfo("video", 8, 8, fps=10.0, last_frame=90, frame_times=(0.0, 1.0, 2.0, 9.0), frames=(0, 10, 20, 90), notes=("Late.",))
NO_RATE = MediaInfo("video", 64, 48, first_frame=5, last_frame=24)
ONE_FRAME = MediaInfo("video", 64, 48, fps=25.0, first_frame=3, last_frame=3)
IMAGE = MediaInfo("image", 97, 33)
MEDIA = {
    "video": VIDEO, "clip": CLIP, "varying rate": VARYING, "uneven frames": UNEVEN, "unknown rate": NO_RATE, "one frame": ONE_FRAME,
    "image": IMAGE,
}  # fmt: skip
TIMED = [medium for name, medium in MEDIA.items() if name not in ("image", "unknown rate")]


def box(left, **known):
    """A box of 10×20 pixels whose left edge is at `left`."""
    return Box(left, 5.0, left + 10, 25.0, **known)


# Dictionaries and JSON

pieces = st.one_of(
    st.builds("<{}-{:03d}>".format, st.sampled_from(["TEMP", "TEMP", "HEIGHT", "WIDTH"]), st.integers(0, 99)),
    st.builds("{{<TEMP-{:03d}><TEMP-{:03d}>}}".format, st.integers(0, 99), st.integers(0, 99)),
    st.builds("<TEMP-{:03d}>:[<WIDTH-{:03d}><HEIGHT-{:03d}><WIDTH-{:03d}><HEIGHT-{:03d}>]".format, *[st.integers(0, 99) for _ in range(5)]),
    st.builds(" a dog [<WIDTH-{:03d}><HEIGHT-{:03d}><WIDTH-{:03d}><HEIGHT-{:03d}>]".format, *[st.integers(0, 99) for _ in range(4)]),
    st.sampled_from([", ", ". ", "Ends in ", "Starts in ", " a dog", " ein Mädchen läuft", "During "]),
)
answers = st.lists(pieces, max_size=12).map("".join)
# The values that a prompt of each task contains.
prompts = st.sampled_from([{}, {"span": (0.25, 0.5)}, {"start": 0.5, "box": (0.1, 0.2, 0.3, 0.4)}, {"box": (0.0, 0.0, 1.0, 1.0)}])


def positions_of(text: str, seed: int) -> list:
    """Positions with probabilities of the coordinate tokens of a text: log probabilities from random logits."""
    tokens = list(COORDINATE_TOKEN.finditer(text))
    ids = [100 * ["TEMP", "HEIGHT", "WIDTH"].index(token["name"]) + int(token["bin"]) for token in tokens]
    logits = 4 * torch.randn(len(ids), 300, generator=torch.Generator().manual_seed(seed))
    return score_coordinates(ids, logits.log_softmax(-1), [100, 100, 100], start_token_id=0)


@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA.keys())
@settings(max_examples=40, deadline=None)
@given(text=answers, prompt=prompts, seed=st.one_of(st.none(), st.integers(0, 99)))
def test_grounding_of_any_answer_gives_the_same_dictionary_and_json(medium, text, prompt, seed):
    coordinates = None if seed is None else positions_of(text, seed)
    answer = parse_answer(text, medium, 100, 100, **prompt, words_suffice=True, coordinates=coordinates)
    answer |= {"task": "stvg", "query": "läuft"}
    grounding = Grounding.from_dict(answer)
    assert grounding.to_dict() == answer
    assert Grounding.from_json(json.dumps(answer)) == Grounding.from_json(grounding.to_json(indent=2)) == grounding
    assert json.loads(grounding.to_json()) == answer
    assert hash(Grounding.from_json(grounding.to_json())) == hash(grounding)
    for event in grounding.events:  # every other method works with every answer
        assert set(grounding.boxes_per_frame(event)) == (set(grounding.frames(event)) if event.tubelet else set())
        assert event.span is None or event.span.duration >= 0


def test_grounding_of_a_question_without_media_keeps_the_text():
    answer = parse_answer("<TEMP-001> Hello", None, 100, 100)
    assert Grounding.from_dict(answer) == Grounding("<TEMP-001> Hello", notes=tuple(answer["notes"]))
    assert Grounding.from_dict(answer).to_dict() == answer


def test_grounding_of_an_image_with_a_scored_caption_alone_keeps_the_absent_score():
    answer = parse_answer("a dog", IMAGE, 100, 100, span=(0.1, 0.2), coordinates=[])
    assert answer["events"] == [{"caption": "a dog", "boxes": [], "score": None}]
    assert Grounding.from_dict(answer).to_dict() == answer


def test_grounding_keeps_fields_that_no_answer_of_the_model_has():
    masked = box(1, time=1.0, frame=25, score=0.5, mask="abc", interpolated=True)
    event = Event("a dog", 1.0, 2.0, (masked, box(2, time=1.5)), score=0.25, span_score=0.5, bins=(1, None))
    grounding = Grounding("…", (event,), VIDEO, ("A note.",), "stvg", "dog", "a.mp4")
    assert Grounding.from_json(grounding.to_json()) == grounding
    assert Grounding.from_dict(grounding.to_dict(), query="cat", source="b.mp4").label(Event()) == "cat"
    assert grounding.label(event) == "a dog" and grounding.is_video


def test_grounding_without_media_keeps_times_of_events():
    event = Event(None, 1.0, 2.0, (box(1, time=1.0, frame=30), box(5, time=1.2, frame=34)))
    grounding = Grounding("…", (event,))
    assert Grounding.from_json(grounding.to_json()) == grounding
    assert [found.xmin for found in grounding.boxes_per_frame(event).values()] == [1, 2.0, 3.0, 4.0, 5]


def test_grounding_of_numpy_values_is_json_serializable():
    found = Box(*np.float32([1, 2, 3, 4]), time=np.float64(1.5), frame=np.int64(3), score=np.float32(0.5), bins=tuple(np.arange(5)))
    media = MediaInfo("video", np.int64(8), np.int64(8), np.float32(2.0), np.int64(0), np.int64(9), notes=["A note."])
    event = Event("a", np.float32(1), np.float64(2), [found], np.float32(0.5), bins=list(np.arange(2)))
    grounding = Grounding("", [event], media, ["A note."])
    assert Grounding.from_json(grounding.to_json()) == grounding
    assert type(found.xmin) is float and type(found.frame) is int and type(media.width) is int


# Dictionaries of other programs that are not valid

HUGE = 10**400
ENTRY = {"time": 1.0, "frame": 25, "box": {"xmin": 1.0, "ymin": 2.0, "xmax": 3.0, "ymax": 4.0}}
SCORED = {**ENTRY, "bins": {"time": 1, "xmin": 2, "ymin": 3, "xmax": 4, "ymax": 5}, "score": 0.5}
FOUND = {"start": 1.0, "end": 2.0, "caption": "a dog", "boxes": [SCORED], "bins": {"start": 1, "end": 2}, "span_score": 0.5, "score": 0.5}
ANSWER = {"text": "…", "events": [FOUND], "notes": ["A note."], "media": VARYING.to_dict() | {"total_num_frames": 100}, "task": "stvg"}
NESTED: list = []
for _ in range(500):
    NESTED = [NESTED]
NOT_TEXT = (1, None, ["a"], b"a", True, {}, "\ud800")
NOT_NUMBERS = ("1", "abc", float("nan"), float("inf"), HUGE, True, [1.0], {}, NESTED, 1j)
NOT_INTEGERS = ("1", 1.5, -1, float("nan"), HUGE, True, [1], {}, NESTED)
NOT_LISTS = ("abc", 5, {"0": "a"}, None, True)
WRONG = {  # path of a key in ANSWER → values that it cannot have
    ("text",): NOT_TEXT,
    ("events",): (*NOT_LISTS, [1], [None], ["a"], [[]], [{}]),
    ("notes",): (*NOT_LISTS, [1], [None], [["a"]], ["\ud800"]),
    ("media",): ("a.mp4", 5, [], {}, {"kind": "video"}, {"kind": "video", "width": 8}),
    ("task",): (1, ["stvg"], True),
    ("query",): (1, ["dog"], b"dog"),
    ("source",): (1, ["a.mp4"], b"a.mp4", "\udcff"),
    ("taks",): ("stvg", None),
    ("media", "kind"): ("audio", 1, None, ["video"], NESTED),
    ("media", "width"): ("abc", 0, None, *NOT_INTEGERS),
    ("media", "height"): (0, "360", None, *NOT_INTEGERS),
    ("media", "fps"): (0, 0.0, *NOT_NUMBERS, -1),
    ("media", "first_frame"): (23, *NOT_INTEGERS),
    ("media", "last_frame"): (17, 100, *NOT_INTEGERS),
    ("media", "total_num_frames"): (22, 0, *NOT_INTEGERS),
    ("media", "duration"): NOT_NUMBERS,
    ("media", "start_time"): NOT_NUMBERS,
    ("media", "end_time"): NOT_NUMBERS,
    ("media", "frame_times"): ([], [1.8], [1.8, 1.9, 2.0, 3.0, "4"], [1.8, 1.9, 2.0, 3.0, 2.5], [1, 2, 3, 4, HUGE], "abcde", 5, [[1]] * 5),
    ("media", "frames"): ([], [1, 2], [18, 19, 21, 20, 22], [18, 19, 20, 21.5, 22], "abcde", [18, 22]),
    ("media", "notes"): ("abc", [1], 5),
    ("media", "colour"): ("blue",),
    ("events", 0, "start"): (*NOT_NUMBERS, 2.5),
    ("events", 0, "end"): (*NOT_NUMBERS, 0.5),
    ("events", 0, "caption"): (1, ["a"], b"a", "\ud800"),
    ("events", 0, "boxes"): (*NOT_LISTS, [1], [None], [[]], [{}], [{"time": 1.0}]),
    ("events", 0, "score"): (*NOT_NUMBERS, -0.1, 1.1),
    ("events", 0, "span_score"): (*NOT_NUMBERS, -0.1, 1.1),
    ("events", 0, "bins"): ([1, 2], {"start": 1}, {}, 5, {"start": 1, "end": 2, "middle": 3}),
    ("events", 0, "bins", "start"): NOT_INTEGERS,
    ("events", 0, "bins", "end"): NOT_INTEGERS,
    ("events", 0, "begin"): (1.0,),
    ("events", 0, "boxes", 0, "time"): NOT_NUMBERS,
    ("events", 0, "boxes", 0, "frame"): (100, *NOT_INTEGERS),
    ("events", 0, "boxes", 0, "score"): (*NOT_NUMBERS, 2),
    ("events", 0, "boxes", 0, "box"): ([1, 2, 3, 4], {}, None, {"x1": 1}, ENTRY["box"] | {"width": 3}, "1 2 3 4"),
    ("events", 0, "boxes", 0, "box", "xmin"): (None, 3.5, *NOT_NUMBERS),
    ("events", 0, "boxes", 0, "box", "ymax"): (None, 1.5, *NOT_NUMBERS),
    ("events", 0, "boxes", 0, "interpolated"): ("no", 1, None, []),
    ("events", 0, "boxes", 0, "mask"): (1, b"abc", [1]),
    ("events", 0, "boxes", 0, "bins"): ([1, 2, 3, 4, 5], {}, {"xmin": 1}, 5),
    ("events", 0, "boxes", 0, "bins", "time"): NOT_INTEGERS,
    ("events", 0, "boxes", 0, "bins", "xmax"): NOT_INTEGERS,
}
REQUIRED = [("text",), ("events",), ("media", "kind"), ("media", "width"), ("events", 0, "boxes")] + [
    ("events", 0, "boxes", 0, *path) for path in (("box",), ("box", "xmin"), ("box", "ymax"), ("bins", "ymin"), ("bins", "time"))
]


def changed(path: tuple, change) -> dict:
    """A copy of ANSWER in which `change` got the dictionary or list that contains the value at `path`, and its key."""
    answer = json.loads(json.dumps(ANSWER))
    holder = answer
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return answer


@pytest.mark.parametrize("path", WRONG, ids=lambda path: ".".join(map(str, path)))
def test_grounding_from_dict_value_that_is_not_valid_raises_and_names_its_key(path):
    assert Grounding.from_dict(ANSWER).to_dict() == ANSWER
    name = next(key for key in reversed(path) if isinstance(key, str))
    for value in WRONG[path]:
        answer = changed(path, lambda holder, key, value=value: holder.update({key: value}))
        with pytest.raises(ValueError) as caught:
            Grounding.from_dict(answer)
        assert name in str(caught.value) and len(str(caught.value)) < 600, (value, str(caught.value))
        for place in [key for key in path[:-1] if isinstance(key, str)]:
            assert place in str(caught.value)


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_grounding_from_dict_missing_key_raises_and_names_it(path):
    with pytest.raises(ValueError, match=path[-1]):
        Grounding.from_dict(changed(path, lambda holder, key: holder.pop(key)))


@pytest.mark.parametrize("answer", [None, [], "abc", 5, [ANSWER], NESTED])
def test_grounding_from_dict_of_another_type_raises(answer):
    with pytest.raises(ValueError, match="A dictionary with text, events is expected"):
        Grounding.from_dict(answer)


TEXTS = ["", "{", "[]", "5", "null", "[" * 100_000, '{"text": NaN}', '{"text": "", "events": ' + "[" * 100_000, b"\xff", None, 5, NESTED]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_grounding_from_json_that_is_not_valid_raises(text):
    with pytest.raises(ValueError):
        Grounding.from_json(text)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"events": [FOUND]}, r"events\[0\].*start.*must be absent in an image"),
        ({"events": [{"boxes": [ENTRY]}]}, r"events\[0\].*frame of boxes must be absent in an image"),
        ({"events": [{"boxes": [SCORED | {"time": None, "frame": None}]}]}, r"boxes\[0\]: bins must be of xmin, ymin, xmax, ymax"),
    ],
)
def test_grounding_of_an_image_with_times_raises(change, message):
    with pytest.raises(ValueError, match=message):
        Grounding.from_dict(ANSWER | {"media": IMAGE.to_dict()} | change)


def test_grounding_without_order_of_boxes_raises():
    with pytest.raises(ValueError, match="boxes must all have a time"):
        Event(boxes=(box(1, time=1.0), box(2, frame=40)))
    with pytest.raises(ValueError, match=r"events\[1\]: boxes must all have a time"):
        Grounding.from_dict(ANSWER | {"events": [FOUND, {"boxes": [ENTRY, ENTRY | {"time": None}]}]})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Span(2.0, 1.0), "starts at 2 s, after its end"),
        (lambda: Span("1", 2), "start must be"),
        (lambda: Box(2, 0, 1, 0), r"\[2, 0, 1, 0\] must have xmin <= xmax"),
        (lambda: Event(boxes=(1,)), "boxes must contain objects of the type Box"),
        (lambda: Event(has_scores=1), "has_scores must be True or False"),
        (lambda: Tubelet("ab"), "boxes must be a list"),
        (lambda: Grounding(media="a.mp4"), "media must be a MediaInfo"),
        (lambda: Grounding(events=(1,)), "events must contain objects of the type Event"),
        (lambda: Event(start=1.0, end=2.0, boxes=(box(1, time=1.0),)).box_at(float("nan")), "seconds must be"),
        (lambda: VIDEO.bin("depth", 1.0, 100), "axis must be one of temporal, height, width"),
        (lambda: VIDEO.bin("width", "abc", 100), "value must be a coordinate in pixels"),
        (lambda: VIDEO.value("time", 0.5), "axis must be one of"),
        (lambda: VIDEO.value_of_bin("width", 100, 100), "index must be a bin from 0 to 99, got 100"),
    ],
)
def test_results_value_that_is_not_valid_raises(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Boxes over time


def test_box_at_gives_the_box_of_the_answer_or_interpolates_with_a_flag():
    first, second = box(10, time=2.0, frame=50, score=0.5, bins=(1, 2, 3, 4, 5)), box(20, time=4.0, frame=100, mask="abc")
    event = Event(start=1.0, end=5.0, boxes=(second, first))
    assert event.box_at(2.0) is first and event.box_at(2.0004) is first and event.box_at(4) is second
    assert event.box_at(2.5) == box(12.5, time=2.5, interpolated=True)
    assert event.box_at(1.0) == box(10, time=1.0, interpolated=True)
    assert event.box_at(5.0) == box(20, time=5.0, interpolated=True)
    assert event.box_at(0.99) is None and event.box_at(5.01) is None


def test_box_at_without_a_span_ends_at_the_boxes():
    boxes = (box(10, time=2.0), box(20, time=4.0))
    assert [Event(boxes=boxes).box_at(seconds) is None for seconds in (1.9, 2.0, 3.0, 4.0, 4.1)] == [True, False, False, False, True]
    assert Event(start=1.0, boxes=boxes).box_at(1.5) is not None and Event(start=1.0, boxes=boxes).box_at(4.5) is None


def test_box_at_single_moment_without_boxes_and_without_times():
    assert Event(start=2.0, end=2.0, boxes=(box(10, time=2.0),)).box_at(2.0) == box(10, time=2.0)
    assert Event(start=2.0, end=2.0, boxes=(box(10, time=2.0),)).box_at(2.1) is None
    assert Event(start=1.0, end=2.0).box_at(1.5) is None
    assert Event(start=1.0, end=2.0, boxes=(box(10), box(20, frame=3))).box_at(1.5) is None


@settings(max_examples=100, deadline=None)
@given(
    boxes=st.lists(st.tuples(st.integers(0, 60), st.floats(-500, 1500), st.floats(-500, 1500)), min_size=1, max_size=8),
    where=st.floats(-0.2, 1.2),
)
def test_box_at_lies_between_its_neighbours_at_any_time(boxes, where):
    made = [Box(min(a, b), 0.0, max(a, b), 1.0, time=tick / 10, frame=tick) for tick, a, b in boxes]
    event = Event(boxes=tuple(made))
    kept = event.tubelet.boxes
    assert [found.time for found in kept] == sorted({found.time for found in made})
    assert all(next(b for b in made if b.time == found.time) is found for found in kept)  # the first of several at one time
    seconds = kept[0].time + where * (kept[-1].time - kept[0].time)
    found = event.box_at(seconds)
    if not kept[0].time - 1e-3 <= seconds <= kept[-1].time + 1e-3:
        assert found is None
        return
    neighbours = [max((b for b in kept if b.time <= seconds + 1e-3), key=lambda b: b.time)]
    neighbours.append(min((b for b in kept if b.time >= seconds - 1e-3), key=lambda b: b.time))
    assert found.interpolated == (found not in kept) and (found in kept) == any(abs(b.time - seconds) <= 1e-3 for b in kept)
    for side in ("xmin", "xmax"):
        low, high = sorted(getattr(b, side) for b in neighbours)
        assert low - 0.01 <= getattr(found, side) <= high + 0.01


def test_box_outside_the_frame_is_kept_and_clipped_on_request():
    outside = Box(-10.0, 20.0, 30.0, 400.0, time=1.0)
    assert outside.xywh == (-10.0, 20.0, 40.0, 380.0) and outside.area == 40 * 380
    assert outside.clipped(640, 360) == Box(0.0, 20.0, 30.0, 360, time=1.0)
    assert Box(700, 10, 800, 20).clipped(640, 360).area == 0
    event = Event(start=0.0, end=1.0, boxes=(outside,))
    assert Grounding.from_dict(Grounding("", (event,), VIDEO).to_dict()).events == (event,)


# Frames


def test_boxes_per_frame_has_every_frame_of_the_span():
    event = Event(start=1.0, end=1.2, boxes=(box(10, time=1.04, frame=26), box(30, time=1.12, frame=28)))
    grounding = Grounding("", (event,), VIDEO)
    assert grounding.frames(event) == range(25, 31)
    found = grounding.boxes_per_frame(event)
    assert {frame: (b.xmin, b.interpolated, b.frame, b.time) for frame, b in found.items()} == {
        25: (10, True, 25, 1.0), 26: (10, False, 26, 1.04), 27: (20.0, True, 27, 1.08), 28: (30, False, 28, 1.12),
        29: (30, True, 29, 1.16), 30: (30, True, 30, 1.2),
    }  # fmt: skip
    assert all(grounding.box_at_frame(event, frame) == b for frame, b in found.items())
    assert grounding.box_at_frame(event, 24) is None and grounding.box_at_frame(event, 31) is None


def test_frames_of_events_without_times_boxes_or_length():
    grounding = Grounding("", media=VIDEO)
    assert grounding.frames(Event(start=1.0, end=1.0)) == range(25, 26)
    assert grounding.frames(Event()) == range(0) and grounding.boxes_per_frame(Event(start=1.0, end=2.0)) == {}
    assert grounding.frames(Event(start=1.0, boxes=(box(1, time=2.0, frame=50), box(2, time=3.0, frame=75)))) == range(50, 76)
    assert grounding.frames(Event(start=0.0, end=1e300)) == range(250)
    assert Grounding("", media=IMAGE).boxes_per_frame(Event(boxes=(box(1),))) == {}


def test_boxes_per_frame_at_varying_rate_interpolates_by_time():
    event = Event(start=1.8, end=4.0, boxes=(box(10, time=2.0, frame=20), box(30, time=4.0, frame=22)))
    found = Grounding("", (event,), VARYING).boxes_per_frame(event)
    assert {frame: (b.xmin, b.time) for frame, b in found.items()} == {
        18: (10, 1.8), 19: (10, 1.9), 20: (10, 2.0), 21: (20.0, 3.0), 22: (30, 4.0)
    }  # fmt: skip


def test_boxes_per_frame_of_two_times_in_one_frame_has_the_first():
    event = Event(start=1.0, end=1.04, boxes=(box(10, time=1.0, frame=25), box(20, time=1.01, frame=25)))
    assert Grounding("", (event,), VIDEO).boxes_per_frame(event)[25].xmin == 10


def test_boxes_per_frame_at_unknown_rate_interpolates_by_frame():
    event = Event(boxes=(box(40, frame=14), box(10, frame=11), box(70, frame=14)))
    found = Grounding("", (event,), NO_RATE).boxes_per_frame(event)
    assert {frame: (b.xmin, b.time) for frame, b in found.items()} == {11: (10, None), 12: (20.0, None), 13: (30.0, None), 14: (40, None)}


@pytest.mark.parametrize("medium", TIMED)
@settings(max_examples=50, deadline=None)
@given(bins=st.lists(st.integers(0, 99), min_size=1, max_size=6))
def test_boxes_per_frame_contains_every_box_of_the_answer_within_the_span(medium, bins):
    text = f"{{<TEMP-{min(bins):03d}><TEMP-{max(bins):03d}>}} "
    text += " ".join(f"<TEMP-{k:03d}>:[<WIDTH-{k:03d}><HEIGHT-000><WIDTH-{k:03d}><HEIGHT-099>]" for k in bins)
    grounding = Grounding.from_dict(parse_answer(text, medium, 100, 100))
    [event] = grounding.events
    found = grounding.boxes_per_frame(event)
    assert list(found) == list(grounding.frames(event))
    assert {b.frame for b in event.boxes} == {frame for frame, b in found.items() if not b.interpolated}


def test_frames_contain_a_box_at_the_start_whose_time_is_rounded_to_the_next_frame():
    medium = MediaInfo("video", 100, 100, fps=25.0, last_frame=20)
    text = "{<TEMP-047><TEMP-099>} <TEMP-047>:[<WIDTH-000><HEIGHT-000><WIDTH-050><HEIGHT-050>]"
    grounding = Grounding.from_dict(parse_answer(text, medium, 100, 100))
    [event] = grounding.events
    assert (event.boxes[0].frame, event.start, medium.frame_of_seconds(event.start)) == (9, 0.38, 10)  # 9.49 and 9.5 frames
    assert grounding.frames(event) == range(9, 21) and grounding.box_at_frame(event, 9) is event.boxes[0]


# Conversions of MediaInfo


@pytest.mark.parametrize("medium", TIMED)
@settings(max_examples=50, deadline=None)
@given(position=st.floats(0, 1))
def test_media_info_position_gives_the_frame_that_is_displayed_at_its_time(medium, position):
    seconds = medium.time(position)
    exact = medium.first_frame + position * (medium.last_frame - medium.first_frame)  # for evenly sampled frames
    if medium.frames is not None or abs(exact % 1 - 0.5) > 0.03:  # halfway between two frames, milliseconds decide
        assert medium.frame_of_seconds(seconds) == medium.frame(position) or medium.frames is not None
    assert medium.first_frame <= medium.frame_of_seconds(seconds) <= medium.last_frame
    if medium.last_frame > medium.first_frame:
        assert abs(medium.time(medium.time_position(seconds, "t")) - seconds) <= 1e-3


@pytest.mark.parametrize("medium", TIMED)
def test_media_info_frame_of_seconds_inverts_seconds_of_frame(medium):
    last = medium.last_frame_of_file
    times = [medium.seconds_of_frame(frame) for frame in range(last + 1)]
    assert times == sorted(times)
    assert [medium.frame_of_seconds(seconds) for seconds in times] == list(range(last + 1))
    assert medium.frame_of_seconds(-1e9) == 0 and medium.frame_of_seconds(1e300) == last
    for index, position in enumerate(np.linspace(0, 1, len(medium.frames or range(medium.first_frame, medium.last_frame + 1)))):
        frame = medium.frame(position)
        assert abs(medium.seconds_of_frame(frame) - medium.time(position)) <= 1e-3, index


@pytest.mark.parametrize("medium", [*TIMED, NO_RATE])
def test_media_info_frame_position_is_the_inverse_of_frame(medium):
    frames = range(medium.first_frame, medium.last_frame + 1)
    assert [medium.frame(medium.frame_position(frame)) for frame in frames] == list(frames)
    for frame in (medium.first_frame - 1, medium.last_frame + 1):
        with pytest.raises(ValueError, match="frame must be a frame of the clip"):
            medium.frame_position(frame)


def test_media_info_frames_and_seconds_at_varying_rate_and_in_other_frames():
    assert [VARYING.seconds_of_frame(frame) for frame in (18, 20, 21, 22)] == [1.8, 2.0, 3.0, 4.0]
    assert VARYING.seconds_of_frame(16) == round(1.8 - 2 / 2.8, 4) and VARYING.seconds_of_frame(29) == round(4 + 7 / 2.8, 4)
    assert [VARYING.frame_of_seconds(seconds) for seconds in (1.84, 1.86, 2.4, 2.6, 4.1, 9.0)] == [18, 19, 20, 21, 22, 29]
    assert UNEVEN.seconds_of_frame(55) == 5.5 and UNEVEN.frame_of_seconds(5.5) == 55
    assert NO_RATE.seconds_of_frame(7) is None and NO_RATE.frame_of_seconds(1.0) is None
    assert CLIP.seconds_of_frame(0) == 0.2 and CLIP.frame_of_seconds(0.0) == 0
    twice = MediaInfo("video", 8, 8, 10.0, 7, 8, frame_times=(0.7, 0.7, 0.8, 0.8), frames=(7, 7, 8, 8))
    assert [twice.frame_of_seconds(twice.seconds_of_frame(frame)) for frame in (7, 8)] == [7, 8]


@pytest.mark.parametrize("medium", [*TIMED, IMAGE])
@pytest.mark.parametrize("axis", AXES)
def test_media_info_bins_are_the_inverse_of_their_values(medium, axis):
    if (axis == "temporal" and medium.last_frame == medium.first_frame) or (
        medium.height < 100 and axis != "temporal" and medium.width < 50
    ):
        return
    values = [medium.value_of_bin(axis, index, 20) for index in range(20)]
    assert [medium.bin(axis, value, 20) for value in values] == list(range(20))
    for index, value in enumerate(values):
        assert medium.value(axis, index / 19) == value and abs(medium.position(axis, value, "v") - index / 19) < 0.01
    if axis != "temporal":
        side = {"width": "xmin", "height": "ymin"}[axis]
        assert [medium.box((index / 19,) * 4)[side] for index in range(20)] == values


def test_media_info_bin_outside_the_clip_or_without_rate_raises():
    with pytest.raises(ValueError, match="12 is outside the clip"):
        VIDEO.bin("temporal", 12, 100)
    with pytest.raises(ValueError, match="frame rate of the video is unknown"):
        NO_RATE.bin("temporal", 1.0, 100)


@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA.keys())
def test_media_info_dictionary_with_absent_keys_as_none_gives_the_same(medium):
    values = dict.fromkeys(MediaInfo.__dataclass_fields__) | medium.to_dict()
    assert MediaInfo.from_dict(json.loads(json.dumps(values))) == medium
    assert MediaInfo(**medium.to_dict()) == medium  # in files of earlier versions, lists and tuples


def test_boxes_per_frame_of_many_boxes_keeps_those_of_the_answer():
    boxes = tuple(box(frame % 100, time=frame / 25, frame=frame) for frame in range(0, 5000, 2))
    event = Event(start=0.0, end=200.0, boxes=boxes)
    media = MediaInfo("video", 640, 360, fps=25.0, last_frame=4999)
    found = Grounding("", (event,), media).boxes_per_frame(event)
    assert len(found) == 5000 and sum(b.interpolated for b in found.values()) == 2500
    assert all(b is next_box for b, next_box in zip(itertools.islice(found.values(), 0, None, 2), boxes, strict=True))
