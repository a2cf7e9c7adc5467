# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf import MediaInfo, parse_answer
from llava_st_hf.model.coordinates_llava_st import bin_to_position
from modeling_tests.reference import REFERENCE


# One bin is one frame, 0.1 s, 10 pixels in x and 5 pixels in y.
VIDEO = MediaInfo("video", width=990, height=495, fps=10.0, first_frame=0, last_frame=99)
IMAGE = MediaInfo("image", width=990, height=495)
BOX = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"
PIXELS = {"xmin": 100.0, "ymin": 100.0, "xmax": 300.0, "ymax": 200.0}
NOWHERE = "The answer has no valid time or box."


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
    assert set(answer) == {"text", "events", "notes", "media"} and answer["text"] == text
    assert answer.pop("media") == (None if media is None else media.to_dict())
    json.dumps(answer, allow_nan=False, ensure_ascii=False).encode("utf-8")
    return answer


# Answers in the trained formats


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
def test_parse_answer_video_answers_give_seconds_and_pixels(text, events):
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
def test_parse_answer_image_answers_give_boxes_without_times(text, events):
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
            ["'<TEMP-031>:[<WIDTH-010><HEIGHT-020>]' is not a valid box, which is [<WIDTH><HEIGHT><WIDTH><HEIGHT>]; it was ignored."],
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
            ["The time '<TEMP-040>' does not belong to a span or box and was ignored."],
        ),
        (
            "{<TEMP-010><TEMP-999>}",
            [event(1.0, 9.9)],
            ["<TEMP-999> is not a token of this model; it was read as the last one, 99."],
        ),
        ("<TEMP-030>: nothing", [], ["The moment '<TEMP-030>:' has no box.", NOWHERE]),
        ("<TEMP-030>:[0.1, 0.2, 0.3, 0.4]", [], ["The moment '<TEMP-030>:' has no box.", NOWHERE]),
        (
            f"<TEMP-020>:<TEMP-030>:{BOX}",
            [event(3.0, 3.0, None, [30])],
            ["The moment '<TEMP-020>:' has no box."],
        ),
        ("(<TEMP-025>, <TEMP-086>)", [event(2.5, 8.6)], []),
        ("{{<TEMP-025><TEMP-086>}}", [event(2.5, 8.6)], []),
        (
            "{<TEMP-025>}{<TEMP-086>}",
            [event(2.5, 2.5)],
            ["The time '<TEMP-086>' does not belong to a span or box and was ignored."],
        ),
        (moment(31, BOX[1:-1]) + moment(32, BOX[:-1]) + moment(33, f"{BOX}]"), [event(3.1, 3.3, None, [31, 32, 33])], []),
        (moment(30, BOX.replace("><", ">\n<")), [event(3.0, 3.0, None, [30])], []),
        (
            moment(30, BOX[:-1] + "<WIDTH-050>]"),
            [event(3.0, 3.0, None, [30])],
            ["The answer ends within a box, '<WIDTH-050>]'."],
        ),
        (
            "[<HEIGHT-020><WIDTH-010><HEIGHT-040><WIDTH-030>] x",
            [],
            [
                "'[<HEIGHT-020><WIDTH-010><HEIGHT-040><WIDTH-030>]' is not a valid box, which is [<WIDTH><HEIGHT><WIDTH><HEIGHT>]; "
                "it was ignored.",
                NOWHERE,
            ],
        ),
        (f"{moment(33)}{moment(30)}", [event(3.0, 3.3, None, [33, 30])], []),  # frames are not in order
        (
            f"{moment(30)}{moment(31)}{moment(30)}",
            [event(3.0, 3.1, None, [30, 31, 30])],
            ["Event 1 has several boxes at one time; only the first of them is part of its tubelet."],
        ),
        ("{<temp-025><temp-086>}", [], [NOWHERE]),
        ("{<TEMP-25><TEMP-86>}", [], [NOWHERE]),
        ('{"start": "<TEMP-025>", "end": "<TEMP-086>"}', [event(2.5, 8.6, '"start": " ", "end": " "')], []),
        ("I cannot see a video.", [], [NOWHERE]),
        ("\ufffd\x00" + span(25, 86), [event(2.5, 8.6)], []),
        ("<HEIGHT-020>", [], ["The answer ends within a box, '<HEIGHT-020>'.", NOWHERE]),
        ("A person opens the door.", [], [NOWHERE]),
        ("[0.1, 0.2, 0.3, 0.4]", [], [NOWHERE]),
        ("", [], [NOWHERE]),
        ("{}[]:<>", [], [NOWHERE]),
    ],
)
def test_parse_answer_malformed_answers_give_valid_coordinates_and_notes(text, events, notes):
    assert read(text) == {"text": text, "events": events, "notes": notes}


# A span that is repeated in the answer


@pytest.mark.parametrize(
    "text, events",
    [
        (f"During {span(25, 86)}, a man walks. The time is {span(25, 86)}.", [event(2.5, 8.6, "a man walks")]),
        (f"{span(25, 86)}, a man walks. Time: {span(25, 86)}", [event(2.5, 8.6, "a man walks")]),
        (f"{span(25, 86)} time {span(25, 86)}", [event(2.5, 8.6)]),
        (f"{span(25, 86)}. During the time {span(25, 86)}, a man walks.", [event(2.5, 8.6, "a man walks")]),
        (f"Within the time frame of {span(25, 86)}, a man walks from <TEMP-025> to <TEMP-086>.", [event(2.5, 8.6, "a man walks")]),
        (f"{span(25, 86)}{moment(25)}{moment(86)}. Thus during {span(25, 86)}, it runs", [event(2.5, 8.6, "it runs", [25, 86])]),
        (f"{span(1, 2)}, A. {span(3, 4)}, B. In short, {span(1, 2)}", [event(0.1, 0.2, "A"), event(0.3, 0.4, "B. In short")]),
        # two events at the same time
        (f"{span(25, 86)}, A. {span(25, 86)}, B.", [event(2.5, 8.6, "A"), event(2.5, 8.6, "B")]),
        # "time" in other texts
        (f"A man walks for the first time {span(25, 86)}.", [event(2.5, 8.6, "A man walks for the first time")]),
    ],
)
def test_parse_answer_repeated_span_is_one_event(text, events):
    assert read(text) == {"text": text, "events": events, "notes": []}


# Boxes with plain numbers instead of time tokens


def box_without_time(count=1):
    return [{"time": None, "frame": None, "box": PIXELS}] * count


@pytest.mark.parametrize(
    "text, caption, numbers",
    [
        (f"12:{BOX}", None, "'12'"),
        (f"12:{BOX} 13:{BOX}, 14 : {BOX}\n15:{BOX}", None, "'12', '13', '14', …"),
        (f"A man walks. 12:{BOX}13:{BOX}", "A man walks", "'12', '13'"),
        (f"frame 12: {BOX}. Frame 13: {BOX}.", None, "'12', '13'"),
        (f"0.5:{BOX} 1.5s:{BOX}", None, "'0.5', '1.5s'"),
    ],
)
def test_parse_answer_plain_numbers_before_boxes_give_boxes_without_times_and_a_note(text, caption, numbers):
    answer = read(text)
    boxes = box_without_time(text.count(BOX))
    assert answer["events"] == [{"start": None, "end": None, "caption": caption, "boxes": boxes}]
    assert answer["notes"] == [f"Plain numbers before boxes ({numbers}) are not time tokens; the times of these boxes are unknown."]


@pytest.mark.parametrize(
    "text, caption", [(f"Person 1: {BOX}", "Person 1"), (f"2 dogs {BOX}", "2 dogs"), (f"Score 3-1: {BOX}", "Score 3-1")]
)
def test_parse_answer_numbers_in_captions_are_kept(text, caption):
    answer = read(text)
    assert answer["events"][0]["caption"] == caption and answer["notes"] == []
    assert read(f"1: {BOX}", IMAGE)["events"][0]["caption"] == "1"  # an image has no times


# Text that UTF-8 cannot encode


def test_parse_answer_lone_surrogates_are_replaced_with_a_note():
    answer = parse_answer(f"a \ud83d\ude00 man \udc80\ud800 {span(25, 86)}", VIDEO, 100, 100)
    assert answer["text"] == f"a 😀 man \ufffd\ufffd {span(25, 86)}"
    assert answer["events"] == [event(2.5, 8.6, "a 😀 man \ufffd\ufffd")]
    assert answer["notes"] == ["Lone surrogates in the answer (2) are not valid Unicode; they were replaced by U+FFFD."]
    assert parse_answer("\ud800", None, 100, 100)["text"] == "\ufffd"


@given(text=st.text(st.characters(categories=["Cs", "L", "P"])))
def test_parse_answer_result_is_encodable_as_utf8(text):
    json.dumps(parse_answer(text, VIDEO, 100, 100), ensure_ascii=False).encode("utf-8")


def test_parse_answer_times_about_an_image_are_skipped_with_a_note():
    answer = read(f"{span(1, 2)} a dog {BOX}", IMAGE)
    assert answer["events"] == [{"caption": "a dog", "boxes": [{"box": PIXELS}]}]
    assert answer["notes"] == ["The answer gives times, but the question was about an image; they were ignored."]


def test_parse_answer_coordinates_without_media_give_a_note():
    assert read("{<TEMP-001><TEMP-002>}", None)["notes"] == [
        "The answer has coordinates, but the question had no image or video to place them in."
    ]
    assert read("Hello.", None) == {"text": "Hello.", "events": [], "notes": []}


def test_parse_answer_several_boxes_in_one_frame_without_rate_have_a_note():
    answer = read(moment(10) + moment(10), MediaInfo("video", 990, 495, None, 100, 199))
    assert answer["notes"][-1] == "Event 1 has several boxes at one time; only the first of them is part of its tubelet."
    assert not any("several boxes" in note for note in read(f"{BOX} {BOX} {span(1, 2)}")["notes"])  # without times


def test_parse_answer_without_frame_rate_gives_frames_instead_of_times():
    answer = read(span(10, 20) + moment(10), MediaInfo("video", 990, 495, None, 100, 199))
    assert answer["events"] == [{"start": None, "end": None, "caption": None, "boxes": [{"time": None, "frame": 110, "box": PIXELS}]}]
    assert answer["notes"] == [
        "The frame rate of the video is unknown, so the result has no times.",
        "Event 1 lasts from frame 110 to frame 120.",
    ]


# Values of the prompt


def test_parse_answer_values_of_the_prompt_complete_the_event():
    assert read("a man walks.", span=(10 / 99, 20 / 99))["events"] == [event(1.0, 2.0, "a man walks")]
    elc = f"Ends in <TEMP-033>, a child falls. Object bounding box: {moment(30)}."
    assert read(elc, start=30 / 99, box=(0, 0, 1, 1))["events"] == [event(3.0, 3.3, "a child falls", [30])]
    assert read("a hat", IMAGE, box=(10 / 99, 20 / 99, 30 / 99, 40 / 99))["events"] == [{"caption": "a hat", "boxes": [{"box": PIXELS}]}]
    assert read(moment(12), span=(10 / 99, 20 / 99))["events"] == [event(1.0, 2.0, None, [12])]


def test_parse_answer_span_of_the_answer_overrides_that_of_the_prompt():
    assert read(f"{span(1, 2)} a man walks", span=(10 / 99, 20 / 99))["events"] == [event(0.1, 0.2, "a man walks")]


def test_parse_answer_empty_answer_has_no_events_and_a_note():
    assert read("", span=(0.1, 0.2)) == {"text": "", "events": [], "notes": ["The answer is empty."]}


# Units


@pytest.mark.parametrize("first, last", [(0, 99), (50, 249), (7, 7), (0, 0)])
def test_media_info_seconds_and_frames_count_from_the_start_of_the_file(first, last):
    media = MediaInfo("video", 64, 48, fps=25.0, first_frame=first, last_frame=last)
    assert media.frame(0.0) == first and media.frame(1.0) == last
    assert media.time(0.0) == round(first / 25, 3) and media.time(1.0) == round(last / 25, 3)
    assert media.time_position(first / 25, "t") == 0.0
    assert media.time_position(last / 25, "t") == (1.0 if last > first else 0.0)
    # the last frame is displayed until the next one would be
    assert media.time_position((last + 1) / 25, "t") == (1.0 if last > first else 0.0)


@pytest.mark.parametrize("seconds, position", [(1.96, 0.0), (4.0, 1.0), (4.1, 1.0), (4.14, 1.0)])
def test_time_position_half_a_frame_outside_the_clip_is_its_border(seconds, position):
    assert MediaInfo("video", 8, 8, 10.0, 20, 40).time_position(seconds, "t") == position


@given(position=st.floats(0, 1), fps=st.floats(1, 120), first=st.integers(0, 10000), length=st.integers(1, 10000))
def test_time_position_inverts_seconds_of_a_position(position, fps, first, length):
    media = MediaInfo("video", 64, 48, fps, first, first + length)
    seconds = (first + position * length) / fps
    assert abs(media.time_position(seconds, "t") - position) < 1e-6


@pytest.mark.parametrize(
    "media, seconds, message",
    [
        (IMAGE, 1.0, "'t' is a time, but the media before it is an image"),
        (MediaInfo("video", 8, 8, None, 0, 9), 1.0, "frame rate of the video is unknown"),
        (VIDEO, 10.06, "is outside the clip, which lasts from 0 to 10 seconds"),  # frame 100.6, more than half a frame after the last
        (MediaInfo("video", 8, 8, 10.0, 20, 40), 4.16, "is outside the clip, which lasts from 2 to 4.1 seconds"),
        (MediaInfo("video", 8, 8, 10.0, 20, 40), 1.94, "is outside the clip, which lasts from 2 to 4.1 seconds"),
        (VIDEO, 10.3, "is outside the clip, which lasts from 0 to 10 seconds"),
        (MediaInfo("video", 8, 8, 10.0, 20, 40), 1.0, "is outside the clip, which lasts from 2 to 4.1 seconds"),
    ],
)
def test_time_position_outside_the_clip_raises(media, seconds, message):
    with pytest.raises(ValueError, match=message):
        media.time_position(seconds, "'t'")


VARYING = MediaInfo("video", 8, 8, fps=2.8, first_frame=18, last_frame=22, frame_times=(1.8, 1.9, 2.0, 3.0, 4.0), end_time=5.0)
UNEVEN = MediaInfo("video", 8, 8, fps=10.0, first_frame=0, last_frame=90, frame_times=(0.0, 1.0, 2.0, 9.0), frames=(0, 10, 20, 90))


def test_media_info_variable_frame_rate_uses_frame_times():
    assert [VARYING.time(i / 4) for i in range(5)] == [1.8, 1.9, 2.0, 3.0, 4.0]
    assert VARYING.time(0.625) == 2.5 and VARYING.frame(0.5) == 20
    assert [VARYING.time_position(seconds, "t") for seconds in (1.8, 1.9, 2.0, 2.5, 4.0, 4.9)] == [0.0, 0.25, 0.5, 0.625, 1.0, 1.0]
    for seconds in (1.6, 5.2):
        with pytest.raises(ValueError, match=r"t is outside the clip, which lasts from 1\.8 to 5 seconds"):
            VARYING.time_position(seconds, "t")
    before_a_pause = MediaInfo("video", 8, 8, fps=2.8, first_frame=19, last_frame=20, frame_times=(1.9, 2.0), end_time=3.0)
    assert before_a_pause.time_position(2.8, "t") == 1.0
    single = MediaInfo("video", 8, 8, fps=2.0, first_frame=5, last_frame=5, frame_times=(2.5,))
    assert single.time(1.0) == 2.5 and single.time_position(2.9, "t") == 0.0


def test_media_info_unevenly_sampled_frames_keep_their_times():
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
def test_media_info_json_round_trip_is_equal(media):
    again = MediaInfo.from_dict(json.loads(json.dumps(media.to_dict())))
    assert again == media and hash(again) == hash(media)


def test_media_info_wrong_number_of_frame_times_raises():
    with pytest.raises(ValueError, match="one entry for each of 5 frames, got 4"):
        MediaInfo("video", 8, 8, fps=2.8, first_frame=18, last_frame=22, frame_times=(1.8, 1.9, 2.0, 3.0))


@given(position=st.floats(0, 1), gaps=st.lists(st.floats(0.02, 5), min_size=1, max_size=40))
def test_time_position_inverts_time_at_variable_frame_rate(position, gaps):
    times = tuple(itertools.accumulate(gaps, initial=0.5))
    media = MediaInfo("video", 64, 48, 1.0, 3, 3 + len(gaps), frame_times=times)
    place = int(position * len(gaps))
    seconds = media.time(position)
    assert times[place] - 1e-3 <= seconds <= times[min(place + 1, len(gaps))] + 1e-3
    assert abs(media.time_position(seconds, "t") - position) <= 1e-3 / 0.02 / len(gaps)


def test_pixel_position_outside_the_image_raises():
    assert IMAGE.pixel_position("width", 990.5, "x") == 1.0 and IMAGE.pixel_position("height", -0.5, "y") == 0.0
    with pytest.raises(ValueError, match="x is outside the image, whose width is 990 pixels"):
        IMAGE.pixel_position("width", 1000, "x")


def test_media_info_to_dict_is_json_serializable_without_none():
    assert json.loads(json.dumps(VIDEO.to_dict())) == {
        "kind": "video", "width": 990, "height": 495, "fps": 10.0, "first_frame": 0, "last_frame": 99,
    }  # fmt: skip


# Arbitrary text


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
def test_parse_answer_any_text_never_raises_and_stays_within_the_image(media, text, asked):
    check(text, media, [{}, {"span": (0.25, 0.5)}, {"start": 0.5, "box": (0.1, 0.2, 0.3, 0.4)}, {"box": (0.0, 0.0, 1.0, 1.0)}][asked])


@settings(max_examples=100, deadline=None)
@given(bins=st.lists(st.integers(0, 99), min_size=2, max_size=2), temporal=st.integers(2, 100))
def test_parse_answer_span_equals_the_positions_of_its_bins(bins, temporal):
    bins = sorted(min(b, temporal - 1) for b in bins)
    media = MediaInfo("video", 10, 10, fps=1.0, first_frame=0, last_frame=1000)
    (found,) = parse_answer("{{<TEMP-{:03d}><TEMP-{:03d}>}}".format(*bins), media, temporal, 100)["events"]
    assert [found["start"], found["end"]] == [round(1000 * bin_to_position(b, temporal), 3) for b in bins]


# Prefixes at which patterns of the parser start, and text that the patterns repeat.
STARTS = ["from", "and then", "the time is", "object bounding box", "ends", "{", "[", "<TEMP-001>", "<WIDTH-001>,", "12:"]
UNITS = [
    " ", ",", ":", "{", "[", "<", "a", "0", ", ", "and ", "from ", "ends in ", "the time ", "<TEMP-001>", "<WIDTH-001>", BOX, moment(1),
    span(1, 2), "At <TEMP-001>, a ", f"12:{BOX} ",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_parse_answer_time_is_linear_in_repeated_text(unit):
    for start in STARTS:
        text = start + unit * (20_000 // len(unit)) + "x<TEMP-002>x"
        took = math.inf
        for _ in range(3):  # a loaded machine measures up to ten times the time of a quiet one
            began = time.process_time()
            parse_answer(text, VIDEO, 100, 100)
            took = min(took, time.process_time() - began)
            if took < 0.4:
                break
        assert took < 0.4, f"{start!r} and {unit!r} repeated took {took:.2f} s"  # 0.05 s if linear, 1 s if quadratic


@pytest.mark.parametrize("unit", [" ", ",. ", span(1, 2), "<TEMP-001> , ", "At <TEMP-001>, a "])
def test_parse_answer_of_100000_characters_takes_less_than_five_seconds(unit):
    began = time.process_time()
    parse_answer("from" + unit * (100_000 // len(unit)) + "x" + span(1, 2), VIDEO, 100, 100)
    assert time.process_time() - began < 5  # 0.3 s if linear, 25 s if quadratic


# Original LLaVA-ST code


def test_parse_answer_positions_equal_those_of_the_original_code():
    cases = json.loads((REFERENCE / "metrics" / "text_and_sampling.json").read_text())["parsing"]
    # the image is 1,000,000 pixels and the video 1,000,000 s long, so that rounding is negligible
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
def test_parse_answer_lone_time_is_the_end_after_the_start_of_the_prompt(answer):
    [event] = parse_answer(answer, MediaInfo("video", 64, 48, 10.0, 0, 99), 100, 100, start=0.25, box=(0, 0, 1, 1))["events"]
    assert (event["start"], event["end"], event["caption"]) == (2.475, 5.0, "a dog runs")


def test_parse_answer_end_before_the_start_of_the_prompt_is_skipped_with_a_note():
    answer = parse_answer("Ends in <TEMP-010>, x.", MediaInfo("video", 64, 48, 10.0, 0, 99), 100, 100, start=0.5, box=(0, 0, 1, 1))
    assert (answer["events"][0]["start"], answer["events"][0]["end"]) == (4.95, None)
    assert any("before the start in the prompt" in note for note in answer["notes"])


def test_parse_answer_time_only_about_an_image_gives_no_event():
    answer = parse_answer("<TEMP-010>", MediaInfo("image", 64, 48), 100, 100)
    assert answer["events"] == [] and any("times" in note for note in answer["notes"])
