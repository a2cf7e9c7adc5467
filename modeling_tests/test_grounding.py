# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf import MediaInfo, parse_answer
from llava_st_hf.model.coordinates_llava_st import bin_to_position
from modeling_tests.reference import REFERENCE


# One bin is one frame, a tenth of a second, 10 pixels across and 5 down.
VIDEO = MediaInfo("video", width=990, height=495, fps=10.0, first_frame=0, last_frame=99)
IMAGE = MediaInfo("image", width=990, height=495)
BOX = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"
PIXELS = {"xmin": 100.0, "ymin": 100.0, "xmax": 300.0, "ymax": 200.0}
NOWHERE = "The answer names no time or place that could be read."


def span(k, m):
    return f"{{<TEMP-{k:03d}><TEMP-{m:03d}>}}"


def moment(k, box=BOX):
    return f"<TEMP-{k:03d}>:{box}"


def at(k):
    return {"time": k / 10, "frame": k, "box": PIXELS}


def event(start, end, caption=None, moments=()):
    return {"start": start, "end": end, "caption": caption, "boxes": [at(k) for k in moments]}


def read(text, media=VIDEO, **question):
    answer = parse_answer(text, media, 100, 100, **question)
    assert set(answer) == {"text", "events", "notes"} and answer["text"] == text
    json.dumps(answer, allow_nan=False)
    return answer


# What the model was trained to write


@pytest.mark.parametrize(
    "text, events",
    [
        ("During {<TEMP-025><TEMP-086>}.", [event(2.5, 8.6)]),
        ("{<TEMP-025><TEMP-086>}", [event(2.5, 8.6)]),
        ("{<TEMP-025>, <TEMP-086>}", [event(2.5, 8.6)]),
        ("From <TEMP-025> to <TEMP-086>", [event(2.5, 8.6)]),
        ("<TEMP-025> - <TEMP-086>: a man jumps", [event(2.5, 8.6, "a man jumps")]),
        (f"During {span(25, 86)}, the person opens a door.", [event(2.5, 8.6, "the person opens a door")]),
        (f"{span(0, 10)}, A man walks. {span(10, 20)}, he sits.", [event(0.0, 1.0, "A man walks"), event(1.0, 2.0, "he sits")]),
        (f"A man walks {span(0, 10)}. He sits {span(10, 20)}.", [event(0.0, 1.0, "A man walks"), event(1.0, 2.0, "He sits")]),
        (
            f"From <TEMP-002> to <TEMP-010>, a dog runs, and then in the time range {span(11, 20)} it sleeps.",
            [event(0.2, 1.0, "a dog runs"), event(1.1, 2.0, "it sleeps")],
        ),
        ("At <TEMP-010>, a man walks. At <TEMP-020>, he sits.", [event(1.0, 1.0, "a man walks"), event(2.0, 2.0, "he sits")]),
        (
            f"Ends in <TEMP-033>, a child pushes a toy. Object bounding box: {moment(30)}{moment(31)}.",
            [event(None, 3.3, "a child pushes a toy", [30, 31])],
        ),
        ("Starts in <TEMP-010>, ends in <TEMP-033>, a child pushes a toy.", [event(1.0, 3.3, "a child pushes a toy")]),
        (f"{span(30, 33)}, a child pushes. {moment(30)}{moment(33)}", [event(3.0, 3.3, "a child pushes", [30, 33])]),
        (f"During {span(30, 33)}. {moment(30)}, {moment(31)}.", [event(3.0, 3.3, None, [30, 31])]),
        (f"{moment(30)}{moment(31)}", [event(3.0, 3.1, None, [30, 31])]),
        (f"<TEMP-030> : {BOX} <TEMP-031> {BOX}", [event(3.0, 3.1, None, [30, 31])]),
        ("<TEMP-030>", [event(3.0, 3.0)]),
        (BOX, [{"start": None, "end": None, "caption": None, "boxes": [{"time": None, "frame": None, "box": PIXELS}]}]),
    ],
)
def test_answers_about_videos_read_in_seconds_and_pixels(text, events):
    assert read(text) == {"text": text, "events": events, "notes": []}


@pytest.mark.parametrize(
    "text, events",
    [
        (BOX, [(None, 1)]),
        ("[<WIDTH-010>, <HEIGHT-020>, <WIDTH-030>, <HEIGHT-040>]", [(None, 1)]),
        (f"It is at {BOX}.", [("It is at", 1)]),
        (f"a dog {BOX} and a cat {BOX}.", [("a dog", 1), ("a cat", 1)]),
        (f"A man {BOX} rides horses {BOX}{BOX} in a field.", [("A man", 1), ("rides horses", 2)]),
    ],
)
def test_answers_about_images_have_boxes_without_times(text, events):
    events = [{"caption": caption, "boxes": [{"box": PIXELS}] * count} for caption, count in events]
    assert read(text, IMAGE) == {"text": text, "events": events, "notes": []}


# Malformed and cut-off answers


@pytest.mark.parametrize(
    "text, events, notes",
    [
        (span(86, 25), [event(2.5, 8.6)], ["The span {<TEMP-086><TEMP-025>} is reversed; its ends were put in order."]),
        (
            moment(30, "[<WIDTH-030><HEIGHT-040><WIDTH-010><HEIGHT-020>]"),
            [event(3.0, 3.0, None, [30])],
            ["The box <TEMP-030>:[<WIDTH-030><HEIGHT-040><WIDTH-010><HEIGHT-020>] is reversed; its corners were put in order."],
        ),
        (
            moment(30) + "<TEMP-031>:[<WIDTH-010><HEIGHT-020>",
            [event(3.0, 3.0, None, [30])],
            ["The answer ends within a box, '<TEMP-031>:[<WIDTH-010><HEIGHT-020>'."],
        ),
        (
            moment(30) + "<TEMP-031>:[<WIDTH-010><HEIGHT-020>]" + moment(32),
            [event(3.0, 3.2, None, [30, 32])],
            ["'<TEMP-031>:[<WIDTH-010><HEIGHT-020>]' is no box: it takes <WIDTH><HEIGHT><WIDTH><HEIGHT>."],
        ),
        (
            moment(30) + "<TEMP-031>",
            [event(3.0, 3.0, None, [30])],
            ["The answer ends within a moment, '<TEMP-031>' without its box."],
        ),
        (moment(30) + "<TEMP-03", [event(3.0, 3.0, None, [30])], ["The answer ends within a token, '<TEMP-03'."]),
        ("{<TEMP-030>", [], ["The answer ends within a span, '{<TEMP-030>'.", NOWHERE]),
        ("{<TEMP-030>,", [], ["The answer ends within a span, '{<TEMP-030>'.", NOWHERE]),
        (
            "{<TEMP-030><TEMP-033><TEMP-040>}",
            [event(3.0, 3.3)],
            ["The time '<TEMP-040>' belongs to no span or box and was left out."],
        ),
        (
            "{<TEMP-010><TEMP-999>}",
            [event(1.0, 9.9)],
            ["<TEMP-999> is no token of this model; it was read as the last one, 99."],
        ),
        ("<TEMP-030>: nothing", [], ["The moment '<TEMP-030>:' has no box.", NOWHERE]),
        ("<HEIGHT-020>", [], ["The answer ends within a box, '<HEIGHT-020>'.", NOWHERE]),
        ("A person opens the door.", [], [NOWHERE]),
        ("[0.1, 0.2, 0.3, 0.4]", [], [NOWHERE]),
        ("", [], [NOWHERE]),
        ("{}[]:<>", [], [NOWHERE]),
    ],
)
def test_malformed_answers_give_what_can_be_read_and_a_plain_note(text, events, notes):
    assert read(text) == {"text": text, "events": events, "notes": notes}


def test_times_in_an_answer_about_an_image_are_left_out_with_a_note():
    answer = read(f"{span(1, 2)} a dog {BOX}", IMAGE)
    assert answer["events"] == [{"caption": "a dog", "boxes": [{"box": PIXELS}]}]
    assert answer["notes"] == ["The answer gives times, but the question was about an image; they are left out."]


def test_coordinates_without_media_are_noted():
    assert read("{<TEMP-001><TEMP-002>}", None)["notes"] == [
        "The answer has coordinates, but the question had no image or video to place them in."
    ]
    assert read("Hello.", None) == {"text": "Hello.", "events": [], "notes": []}


def test_without_a_frame_rate_times_are_left_out_and_frames_are_named():
    answer = read(span(10, 20) + moment(10), MediaInfo("video", 990, 495, None, 100, 199))
    assert answer["events"] == [{"start": None, "end": None, "caption": None, "boxes": [{"time": None, "frame": 110, "box": PIXELS}]}]
    assert answer["notes"] == [
        "The frame rate of the video is unknown, so times are left out.",
        "Event 1 goes from frame 110 to frame 120.",
    ]


# What the question gave


def test_the_question_fills_in_what_the_answer_leaves_out():
    assert read("a man walks.", span=(10 / 99, 20 / 99))["events"] == [event(1.0, 2.0, "a man walks")]
    elc = f"Ends in <TEMP-033>, a child falls. Object bounding box: {moment(30)}."
    assert read(elc, start=30 / 99, box=(0, 0, 1, 1))["events"] == [event(3.0, 3.3, "a child falls", [30])]
    assert read("a hat", IMAGE, box=(10 / 99, 20 / 99, 30 / 99, 40 / 99))["events"] == [{"caption": "a hat", "boxes": [{"box": PIXELS}]}]
    assert read(moment(12), span=(10 / 99, 20 / 99))["events"] == [event(1.0, 2.0, None, [12])]


def test_the_answers_own_span_wins_over_the_questions():
    assert read(f"{span(1, 2)} a man walks", span=(10 / 99, 20 / 99))["events"] == [event(0.1, 0.2, "a man walks")]


def test_an_empty_answer_to_a_question_with_a_span_says_so():
    assert read("", span=(0.1, 0.2)) == {"text": "", "events": [], "notes": ["The answer says nothing."]}


# Units


@pytest.mark.parametrize("first, last", [(0, 99), (50, 249), (7, 7), (0, 0)])
def test_seconds_and_frames_count_from_the_start_of_the_file(first, last):
    media = MediaInfo("video", 64, 48, fps=25.0, first_frame=first, last_frame=last)
    assert media.frame(0.0) == first and media.frame(1.0) == last
    assert media.time(0.0) == round(first / 25, 3) and media.time(1.0) == round(last / 25, 3)
    assert media.time_position(first / 25, "t") == 0.0
    assert media.time_position(last / 25, "t") == (1.0 if last > first else 0.0)
    # the last frame is on screen until the next one would be
    assert media.time_position((last + 1) / 25, "t") == (1.0 if last > first else 0.0)


@given(position=st.floats(0, 1), fps=st.floats(1, 120), first=st.integers(0, 10000), length=st.integers(1, 10000))
def test_seconds_come_back_as_the_position_they_came_from(position, fps, first, length):
    media = MediaInfo("video", 64, 48, fps, first, first + length)
    seconds = (first + position * length) / fps
    assert abs(media.time_position(seconds, "t") - position) < 1e-6


@pytest.mark.parametrize(
    "media, seconds, message",
    [
        (IMAGE, 1.0, "'t' is a time, but the media before it is an image"),
        (MediaInfo("video", 8, 8, None, 0, 9), 1.0, "frame rate of the video is unknown"),
        (VIDEO, 10.3, "lies outside the clip, which goes from 0 to 10 seconds"),
        (MediaInfo("video", 8, 8, 10.0, 20, 40), 1.0, "lies outside the clip, which goes from 2 to 4.1 seconds"),
    ],
)
def test_a_time_outside_the_clip_is_refused(media, seconds, message):
    with pytest.raises(ValueError, match=message):
        media.time_position(seconds, "'t'")


VARYING = MediaInfo("video", 8, 8, fps=2.8, first_frame=18, last_frame=22, frame_times=(1.8, 1.9, 2.0, 3.0, 4.0), end_time=5.0)
UNEVEN = MediaInfo("video", 8, 8, fps=10.0, first_frame=0, last_frame=90, frame_times=(0.0, 1.0, 2.0, 9.0), frames=(0, 10, 20, 90))


def test_at_a_varying_rate_times_are_those_of_the_frames():
    assert [VARYING.time(i / 4) for i in range(5)] == [1.8, 1.9, 2.0, 3.0, 4.0]
    assert VARYING.time(0.625) == 2.5 and VARYING.frame(0.5) == 20
    assert [VARYING.time_position(seconds, "t") for seconds in (1.8, 1.9, 2.0, 2.5, 4.0, 4.9)] == [0.0, 0.25, 0.5, 0.625, 1.0, 1.0]
    for seconds in (1.6, 5.2):
        with pytest.raises(ValueError, match=r"t lies outside the clip, which goes from 1\.8 to 5 seconds"):
            VARYING.time_position(seconds, "t")
    before_a_pause = MediaInfo("video", 8, 8, fps=2.8, first_frame=19, last_frame=20, frame_times=(1.9, 2.0), end_time=3.0)
    assert before_a_pause.time_position(2.8, "t") == 1.0
    single = MediaInfo("video", 8, 8, fps=2.0, first_frame=5, last_frame=5, frame_times=(2.5,))
    assert single.time(1.0) == 2.5 and single.time_position(2.9, "t") == 0.0


def test_unevenly_sampled_frames_keep_their_times():
    assert [UNEVEN.time(i / 3) for i in range(4)] == [0.0, 1.0, 2.0, 9.0]
    assert [UNEVEN.frame(i / 3) for i in range(4)] == [0, 10, 20, 90]
    assert UNEVEN.time_position(2.0, "t") == pytest.approx(2 / 3) and UNEVEN.time_position(9.1, "t") == 1.0
    with pytest.raises(ValueError, match=r"from 0 to 9\.1 seconds"):
        UNEVEN.time_position(9.5, "t")
    unknown = MediaInfo("video", 8, 8, None, 0, 90, frames=(0, 10, 20, 90))
    assert unknown.time(0.5) is None and unknown.frame(2 / 3) == 20
    twice = MediaInfo("video", 8, 8, 10.0, 7, 8, frame_times=(0.7, 0.7, 0.8, 0.8), frames=(7, 7, 8, 8))
    assert [twice.time_position(seconds, "t") for seconds in (0.7, 0.75, 0.8, 0.9)] == pytest.approx([0.0, 0.5, 2 / 3, 1.0])


@pytest.mark.parametrize("media", [VARYING, UNEVEN])
def test_media_with_times_survive_json(media):
    again = MediaInfo(**json.loads(json.dumps(media.to_dict())))
    assert again == media and hash(again) == hash(media)


def test_frame_times_are_one_for_each_frame():
    with pytest.raises(ValueError, match="one entry for each of 5 frames, got 4"):
        MediaInfo("video", 8, 8, fps=2.8, first_frame=18, last_frame=22, frame_times=(1.8, 1.9, 2.0, 3.0))


@given(position=st.floats(0, 1), gaps=st.lists(st.floats(0.02, 5), min_size=1, max_size=40))
def test_seconds_come_back_as_their_position_at_any_rate(position, gaps):
    times = tuple(itertools.accumulate(gaps, initial=0.5))
    media = MediaInfo("video", 64, 48, 1.0, 3, 3 + len(gaps), frame_times=times)
    place = int(position * len(gaps))
    seconds = media.time(position)
    assert times[place] - 1e-3 <= seconds <= times[min(place + 1, len(gaps))] + 1e-3
    assert abs(media.time_position(seconds, "t") - position) <= 1e-3 / 0.02 / len(gaps)


def test_pixels_outside_the_picture_are_refused():
    assert IMAGE.pixel_position("width", 990.5, "x") == 1.0 and IMAGE.pixel_position("height", -0.5, "y") == 0.0
    with pytest.raises(ValueError, match="x lies outside the image, whose width is 990 pixels"):
        IMAGE.pixel_position("width", 1000, "x")


def test_media_is_json_ready():
    assert json.loads(json.dumps(VIDEO.to_dict())) == {
        "kind": "video", "width": 990, "height": 495, "fps": 10.0, "first_frame": 0, "last_frame": 99,
    }  # fmt: skip


# Anything at all


tokens = st.builds("<{}-{:03d}>".format, st.sampled_from(["TEMP", "HEIGHT", "WIDTH"]), st.integers(0, 120))
pieces = st.one_of(
    tokens, tokens, st.sampled_from([*"{}[]:;,. -–", "Ends in ", "Starts in ", " to ", "and ", "a dog", "During ", "<TEMP-"])
)


def check(text, media, question):
    answer = read(text, media, **question)
    assert all(isinstance(note, str) and note for note in answer["notes"])
    for found in answer["events"]:
        if media.kind == "image":
            assert set(found) == {"caption", "boxes"} and all(set(box) == {"box"} for box in found["boxes"])
        else:
            assert set(found) == {"start", "end", "caption", "boxes"}
            if found["start"] is not None and found["end"] is not None:
                assert media.time(0.0) <= found["start"] <= found["end"] <= media.time(1.0)
            for box in found["boxes"]:
                assert box["frame"] is None or media.first_frame <= box["frame"] <= media.last_frame
        for box in (b["box"] for b in found["boxes"]):
            assert 0 <= box["xmin"] <= box["xmax"] <= media.width and 0 <= box["ymin"] <= box["ymax"] <= media.height


@pytest.mark.parametrize(
    "media", [IMAGE, MediaInfo("video", 97, 33, 23.976, 11, 405), MediaInfo("video", 97, 33, 25.0, 3, 3), VARYING, UNEVEN]
)
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.lists(pieces, max_size=30).map("".join), st.text(max_size=60)), asked=st.integers(0, 3))
def test_no_answer_whatever_raises_or_leaves_the_picture(media, text, asked):
    check(text, media, [{}, {"span": (0.25, 0.5)}, {"start": 0.5, "box": (0.1, 0.2, 0.3, 0.4)}, {"box": (0.0, 0.0, 1.0, 1.0)}][asked])


@settings(max_examples=100, deadline=None)
@given(bins=st.lists(st.integers(0, 99), min_size=2, max_size=2), temporal=st.integers(2, 100))
def test_a_span_reads_as_the_positions_of_its_bins(bins, temporal):
    bins = sorted(min(b, temporal - 1) for b in bins)
    media = MediaInfo("video", 10, 10, fps=1.0, first_frame=0, last_frame=1000)
    (found,) = parse_answer("{{<TEMP-{:03d}><TEMP-{:03d}>}}".format(*bins), media, temporal, 100)["events"]
    assert [found["start"], found["end"]] == [round(1000 * bin_to_position(b, temporal), 3) for b in bins]


@pytest.mark.parametrize(
    "unit",
    ["<TEMP-001>", "<WIDTH-001>", BOX, moment(1), span(1, 2), "and ", "ends in ", " ", "{ ", "[,", ", ", "At <TEMP-001>, a "],
)  # fmt: skip
def test_time_grows_linearly_with_length(unit):
    def seconds(count):
        start = time.process_time()
        parse_answer("<TEMP-001>" + unit * count, VIDEO, 100, 100)
        return time.process_time() - start

    # Twenty times as long: 20 where linear, 400 where quadratic.
    short, long = (min(seconds(count) for _ in range(3)) for count in (500, 10_000))
    assert long < 100 * short + 0.05


# The released program


def test_positions_equal_what_the_released_program_reads():
    cases = json.loads((REFERENCE / "metrics" / "text_and_sampling.json").read_text())["parsing"]
    # one pixel and one second are the whole, in steps finer than the rounding
    media = MediaInfo("video", 1_000_000, 1_000_000, fps=1.0, first_frame=0, last_frame=1_000_000)
    assert len(cases) == 6
    for case in cases:
        events = parse_answer(case["text"], media, 100, 100)["events"]
        boxes = [box for found in events for box in found["boxes"]]
        if case["box"] is None:
            assert not boxes
        else:
            assert [v / 1e6 for v in boxes[0]["box"].values()] == pytest.approx(case["box"], abs=1e-5)
        if case["span"] != [0, 0]:
            assert [events[0]["start"] / 1e6, events[0]["end"] / 1e6] == pytest.approx(case["span"], abs=1e-5)
        tubelet = {round(b["time"] / 1e6 * 99): [round(v / 1e6 * 99) for v in b["box"].values()] for b in boxes if b["time"] is not None}
        assert tubelet == {float(k): v for k, v in case["tubelet_bins"].items()}


@pytest.mark.parametrize("answer", ["<TEMP-050> a dog runs", "Ends in <TEMP-050>, a dog runs."])
def test_the_start_that_the_question_gave_stands_and_a_lone_time_is_the_end(answer):
    [event] = parse_answer(answer, MediaInfo("video", 64, 48, 10.0, 0, 99), 100, 100, start=0.25, box=(0, 0, 1, 1))["events"]
    assert (event["start"], event["end"], event["caption"]) == (2.475, 5.0, "a dog runs")


def test_an_end_before_the_start_that_the_question_gave_is_left_out_with_a_note():
    answer = parse_answer("Ends in <TEMP-010>, x.", MediaInfo("video", 64, 48, 10.0, 0, 99), 100, 100, start=0.5, box=(0, 0, 1, 1))
    assert (answer["events"][0]["start"], answer["events"][0]["end"]) == (4.95, None)
    assert any("before the start" in note for note in answer["notes"])


def test_a_time_alone_is_no_event_of_a_picture():
    answer = parse_answer("<TEMP-010>", MediaInfo("image", 64, 48), 100, 100)
    assert answer["events"] == [] and any("times" in note for note in answer["notes"])
