# SPDX-License-Identifier: Apache-2.0
import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.coordinates import INLINE_COORDINATE
from llava_st_hf.messages_llava_st import box_text, prepare_conversation, read_box, read_span, span_text, time_text


def user(*content):
    return {"role": "user", "content": list(content)}


def prepared(*items):
    (message,), clips = prepare_conversation([user(*items)])
    return message["content"], clips


def test_spans_times_and_boxes_become_inline_text():
    content, clips = prepared(
        {"type": "span", "start": 1.8, "end": 2.5}, {"type": "time", "time": 3}, {"type": "box", "box": [1, 2, 30.5, 40]}
    )
    assert [item["text"] for item in content] == ["{<t1.8s><t2.5s>}", "<t3.0s>", "[<w1.0px><h2.0px><w30.5px><h40.0px>]"]
    assert {item["type"] for item in content} == {"text"} and clips == []


def test_a_box_may_be_what_an_answer_gave():
    assert box_text({"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}) == box_text([1, 2, 3, 4])
    with pytest.raises(ValueError, match="has no 'ymax'"):
        box_text({"xmin": 1, "ymin": 2, "xmax": 3})


@given(st.floats(0, 1e6))
def test_seconds_are_written_exactly(seconds):
    match = INLINE_COORDINATE.fullmatch(time_text(seconds))
    assert float(match["number"]) == seconds and match["unit"] == "s"


@pytest.mark.parametrize(
    "item, clip",
    [
        ({}, None),
        ({"clip": [3, 9]}, {"frames": [3, 9]}),
        ({"start": 1.5}, {"start": 1.5}),
        ({"end": 2}, {"end": 2}),
        ({"start": 0, "end": 2}, {"start": 0, "end": 2}),
    ],
)
def test_clips_are_taken_out_of_video_items(item, clip):
    content, clips = prepared({"type": "video", "path": "a.mp4", **item})
    assert content == [{"type": "video", "path": "a.mp4"}] and clips == [clip]


def test_a_batch_has_one_clip_per_video_in_order():
    chats = [[user({"type": "video", "video": "a", "end": 1}, {"type": "video", "video": "b"})], [user({"type": "text", "text": "c"})]]
    _, clips = prepare_conversation([*chats, [user({"type": "video", "video": "d", "clip": [0, 1]})]])
    assert clips == [{"end": 1}, None, {"frames": [0, 1]}]


def test_the_callers_messages_stay_as_they_are():
    messages = [
        user({"type": "video", "path": "a.mp4", "clip": [3, 9]}, {"type": "span", "start": 1, "end": 2}),
        {"role": "x", "content": "y"},
    ]
    before = copy.deepcopy(messages)
    prepare_conversation(messages)
    assert messages == before


def test_bare_strings_and_single_items_are_content():
    (message,), _ = prepare_conversation([{"role": "user", "content": {"type": "text", "text": "a"}}])
    assert message["content"] == [{"type": "text", "text": "a"}]
    assert prepared("b")[0] == [{"type": "text", "text": "b"}]
    assert prepare_conversation([{"role": "user", "content": "c"}])[0][0]["content"] == "c"


@pytest.mark.parametrize(
    "item, message",
    [
        ({"type": "span", "start": 2.5, "end": 1.8}, "from 2.5 to 1.8 seconds ends before it starts"),
        ({"type": "span", "start": -1, "end": 1.8}, "from -1 to 1.8 seconds is negative"),
        ({"type": "span", "start": math.nan, "end": 1}, "start of a span must be a finite number, got nan"),
        ({"type": "span", "start": 1}, "end of a span must be a finite number, got None"),
        ({"type": "span", "start": "1", "end": 2}, "start of a span must be a finite number, got '1'"),
        ({"type": "time"}, "A time must be a finite number, got None"),
        ({"type": "time", "time": -0.5}, "-0.5 seconds is before it"),
        ({"type": "time", "time": True}, "got True"),
        ({"type": "box"}, r"A box has four numbers"),
        ({"type": "box", "box": 5}, r"A box has four numbers, .*got 5"),
        ({"type": "box", "box": [1, 2, 3]}, r"got \[1, 2, 3\]"),
        ({"type": "box", "box": [30, 2, 3, 4]}, r"\[30, 2, 3, 4\] is reversed"),
        ({"type": "box", "box": [1, 2, math.inf, 4]}, "must be a finite number, got inf"),
        ({"type": "video", "video": "a", "clip": [0, 1], "end": 3}, "not both"),
        ({"type": "video", "path": "a", "start_time": 1}, "type 'video' has no 'start_time'; its keys are type, video, url, path, clip"),
        ({"type": "span", "start": 1, "stop": 2}, "type 'span' has no 'stop'"),
        ({"type": "time", "seconds": 2}, "type 'time' has no 'seconds'"),
        ({"type": "box", "box": [1, 2, 3, 4], "unit": "px"}, "type 'box' has no 'unit'"),
        ({"type": "box", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4, "label": "a"}}, "A box has no 'label'"),
        ({"type": "time", "time": 10**400}, "A time must be a finite number"),
        ({"text": "no type"}, "a dictionary with a type of text, image.*no type"),
        ({"type": "vid", "video": "a"}, "with a type of text, .*'vid'"),
        ({"type": "audio", "audio": "a"}, "with a type of text, .*'audio'"),
        ({"type": ["text"], "text": "a"}, "with a type of text"),
        ({"type": "text"}, "text of a content item must be a string"),
        ({"type": "text", "text": None}, "text of a content item must be a string"),
        (5, "A content item is a string, or a dictionary.*got 5"),
    ],
)
def test_impossible_items_are_refused_by_name(item, message):
    with pytest.raises(ValueError, match=message):
        prepared(item)


@pytest.mark.parametrize("conversation", [[], "hello", None, [["hello"]], [{"content": "no role"}], 5])
def test_what_is_no_conversation_is_refused(conversation):
    with pytest.raises(ValueError, match=r"A (conversation|message) is a"):
        prepare_conversation(conversation)


def test_equal_ends_are_allowed():
    assert span_text(1, 1) == "{<t1.0s><t1.0s>}"


@pytest.mark.parametrize(
    "message, named",
    [
        ({"role": 5, "content": "a"}, "role of a message must be a string"),
        ({"role": None, "content": "a"}, "role of a message must be a string"),
        ({"role": "user"}, "content of a message must be a string or a list"),
        ({"role": "user", "content": None}, "content of a message must be a string or a list"),
        ({"role": "user", "content": 5}, "content of a message must be a string or a list"),
    ],
)
def test_a_message_without_role_or_content_is_refused(message, named):
    with pytest.raises(ValueError, match=named):
        prepare_conversation([message])


def test_arrays_and_tensors_are_read_like_lists():
    for make in (tuple, np.array, torch.tensor, lambda values: [np.float32(value) for value in values]):
        assert read_box(make([1.0, 2.0, 3.0, 4.0])) == (1.0, 2.0, 3.0, 4.0)
        assert read_span(make([1.0, 2.0])) == (1.0, 2.0)
    assert read_span({"start": 1, "end": 2}) == (1.0, 2.0)
    assert time_text(np.float64(1.5)) == time_text(torch.tensor(1.5)) == "<t1.5s>"
