# SPDX-License-Identifier: Apache-2.0
import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE
from llava_st_hf.model.messages_llava_st import box_text, prepare_conversation, read_box, read_span, span_text, time_text


def user(*content):
    return {"role": "user", "content": list(content)}


def prepared(*items):
    (message,), options = prepare_conversation([user(*items)])
    return message["content"], options


def test_prepare_conversation_span_time_and_box_items_become_inline_text():
    content, options = prepared(
        {"type": "span", "start": 1.8, "end": 2.5}, {"type": "time", "time": 3}, {"type": "box", "box": [1, 2, 30.5, 40]}
    )
    assert [item["text"] for item in content] == ["{<t1.8s><t2.5s>}", "<t3.0s>", "[<w1.0px><h2.0px><w30.5px><h40.0px>]"]
    assert {item["type"] for item in content} == {"text"} and options == {}


def test_box_text_accepts_a_dict_as_in_answers():
    assert box_text({"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}) == box_text([1, 2, 3, 4])
    with pytest.raises(ValueError, match="has no 'ymax'"):
        box_text({"xmin": 1, "ymin": 2, "xmax": 3})


@given(st.floats(0, 1e6))
def test_time_text_writes_seconds_without_rounding(seconds):
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
        ({"video_start": 1.5}, {"start": 1.5}),
        ({"start": 1, "video_end": 2}, {"start": 1, "end": 2}),
    ],
)
def test_prepare_conversation_clip_keys_of_a_video_become_the_clips_argument(item, clip):
    content, options = prepared({"type": "video", "path": "a.mp4", **item})
    assert content == [{"type": "video", "path": "a.mp4"}] and options == ({} if clip is None else {"clips": [clip]})


def test_prepare_conversation_batch_has_one_clip_per_video_in_order():
    chats = [[user({"type": "video", "video": "a", "end": 1}, {"type": "video", "video": "b"})], [user({"type": "text", "text": "c"})]]
    _, options = prepare_conversation([*chats, [user({"type": "video", "video": "d", "clip": [0, 1]})]])
    assert options == {"clips": [{"end": 1}, None, {"frames": [0, 1]}]}


FRAMES = [np.zeros((4, 4, 3), np.uint8)] * 3


@pytest.mark.parametrize(
    "item, options",
    [
        ({"video": "a.mp4", "nframes": 5}, {"sampling": [{"num_frames": 5}]}),
        ({"video": "a.mp4", "fps": 2}, {"sampling": [{"fps": 2}]}),
        ({"video": b"no image", "fps": 2.5, "video_start": 1}, {"sampling": [{"fps": 2.5}], "clips": [{"start": 1}]}),
        ({"video": FRAMES, "fps": 2}, {"video_metadata": [{"fps": 2}]}),
        ({"video": FRAMES, "sample_fps": 2, "nframes": 2}, {"video_metadata": [{"fps": 2}], "sampling": [{"num_frames": 2}]}),
        ({"video": ["a.png", "b.jpg"], "timestamps": [0, 2.5]}, {"video_metadata": [{"frame_times": [0, 2.5]}]}),
    ],
)
def test_prepare_conversation_video_keys_become_video_processor_arguments(item, options):
    content, found = prepared({"type": "video", **item})
    assert found == options and content == [{"type": "video", "video": item["video"]}]


def test_prepare_conversation_each_video_has_its_own_sampling_and_metadata():
    items = [{"type": "video", "video": "a", "nframes": 3}, {"type": "video", "video": FRAMES, "fps": 1}, {"type": "video", "video": "c"}]
    assert prepared(*items)[1] == {"sampling": [{"num_frames": 3}, None, None], "video_metadata": [None, {"fps": 1}, None]}


@pytest.mark.parametrize(
    "item, expected",
    [
        ({"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "image", "url": "a.png"}),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}}, {"type": "image", "url": "a.png"}),
        ({"type": "image_url", "image_url": "a.png"}, {"type": "image", "url": "a.png"}),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "video", "url": "a.mp4"}),
        ({"type": "video_url", "video_url": "a.mp4", "end": 3}, {"type": "video", "url": "a.mp4"}),
        ({"type": "image", "base64": "iVBO"}, {"type": "image", "image": b"\x89PN"}),
        ({"type": "image", "base64": "data:image/png;base64,iVBO"}, {"type": "image", "image": "data:image/png;base64,iVBO"}),
    ],
)
def test_prepare_conversation_openai_and_base64_items_are_converted(item, expected):
    content, options = prepared(item)
    assert content == [expected] and options == ({"clips": [{"end": 3}]} if "end" in item else {})


@pytest.mark.parametrize(
    "item",
    [
        {"type": "text", "text": "a"},
        {"type": "image", "path": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "video", "path": "a.mp4", "clip": [0, 3]},
        {"type": "span", "start": 1.0, "end": 2.0},
        {"type": "time", "time": 1.0},
        {"type": "box", "box": [1, 2, 3, 4]},
    ],
)
def test_prepare_conversation_keys_with_value_none_are_ignored(item):
    keys = ("text", "path", "url", "image", "clip", "start", "end", "nframes", "time", "box", "max_pixels", "anything")
    nulls = {key: None for key in keys if key not in item}
    assert prepared({**nulls, **item}) == prepared(item)


def test_prepare_conversation_does_not_modify_its_argument():
    messages = [
        user({"type": "video", "path": "a.mp4", "clip": [3, 9]}, {"type": "span", "start": 1, "end": 2}),
        {"role": "x", "content": "y"},
    ]
    before = copy.deepcopy(messages)
    prepare_conversation(messages)
    assert messages == before


def test_prepare_conversation_accepts_strings_and_single_items_as_content():
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
        ({"type": "box", "box": [1, 9, 5, 2]}, r"\[1, 9, 5, 2\] is reversed"),
        ({"type": "box", "box": [1, 2, math.inf, 4]}, "must be a finite number, got inf"),
        ({"type": "video", "video": "a", "clip": [0, 1], "end": 3}, "not both"),
        ({"type": "video", "path": "a", "start_time": 1}, "type 'video' has no 'start_time'; its keys are type, video, url, path, clip"),
        ({"type": "image", "path": "a", "crop": 1}, "type 'image' has no 'crop'; its keys are type, image, url, path, base64"),
        ({"type": "image_url", "image_url": "a", "crop": 1}, "type 'image' has no 'crop'"),
        ({"type": "text", "text": "a", "cache_control": {}}, "type 'text' has no 'cache_control'; its keys are type, text"),
        ({"type": "image", "path": "a", "max_pixels": 9}, r"cannot have 'max_pixels' \(9\): images and frames are always resized"),
        ({"type": "video", "path": "a", "min_pixels": 9}, r"cannot have 'min_pixels' \(9\): images and frames are always resized"),
        ({"type": "video", "path": "a", "resized_height": 9}, r"cannot have 'resized_height' \(9\): images and frames"),
        ({"type": "video", "path": "a", "max_frames": 9}, r"cannot have 'max_frames' \(9\): .* given by nframes"),
        ({"type": "video", "path": "a", "url": "b"}, "has one source; this one has 'url' and 'path'"),
        ({"type": "image", "path": "a", "image": "b"}, "has one source; this one has 'image' and 'path'"),
        ({"type": "video", "path": "a", "start": 1, "video_start": 1}, "start=1 and video_start=1 mean the same"),
        ({"type": "video", "path": "a", "clip": [0, 1], "video_end": 1}, "not both"),
        ({"type": "video", "path": "a", "nframes": 2.5}, "nframes of a video must be a whole number of at least 1, got 2.5"),
        ({"type": "video", "path": "a.mp4", "fps": 0}, "fps of a video must be a finite number of frames per second above 0, got 0"),
        ({"type": "video", "path": "a.mp4", "fps": "1"}, "fps of a video must be a finite number .* got '1'"),
        ({"type": "video", "path": "a.mp4", "fps": 2, "nframes": 3}, "nframes=3 or at fps=2 frames per second, not both"),
        ({"type": "video", "path": "a.mp4", "sample_fps": 2}, "sample_fps=2 can only be given for a list or folder of frames"),
        ({"type": "video", "path": "a.mp4", "timestamps": [0, 1]}, r"timestamps=\[0, 1\] can only be given for a list or folder of frames"),
        ({"type": "video", "video": FRAMES, "fps": 2, "timestamps": [0, 1, 2]}, "given once, .* got fps, timestamps"),
        ({"type": "video", "video": FRAMES, "sample_fps": -2}, "sample_fps of a video must be a finite number"),
        ({"type": "video", "fps": 2}, "fps of a video item need the video in the item"),
        ({"type": "video", "video": [FRAMES, FRAMES], "fps": 2}, "A video item has one video; got 2"),
        ({"type": "image_url", "image_url": {"url": "a", "detail": "low"}}, "image_url cannot have detail='low': images and frames"),
        ({"type": "image_url", "image_url": {"uri": "a"}}, "'image_url' of a content item has no 'uri'; its keys are url"),
        ({"type": "video_url", "url": "a"}, "type 'video_url' has 'video_url': a URL or"),
        ({"type": "image", "base64": "a"}, "'base64' of an image is not base64: 'a'"),
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
def test_prepare_conversation_invalid_item_raises_with_the_reason(item, message):
    with pytest.raises(ValueError, match=message):
        prepared(item)


@pytest.mark.parametrize("conversation", [[], "hello", None, [["hello"]], [{"content": "no role"}], 5])
def test_prepare_conversation_invalid_conversation_raises(conversation):
    with pytest.raises(ValueError, match=r"A (conversation|message) is a"):
        prepare_conversation(conversation)


def test_span_text_accepts_equal_start_and_end():
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
def test_prepare_conversation_message_with_invalid_role_or_content_raises(message, named):
    with pytest.raises(ValueError, match=named):
        prepare_conversation([message])


def test_read_box_and_read_span_accept_arrays_and_tensors():
    for make in (tuple, np.array, torch.tensor, lambda values: [np.float32(value) for value in values]):
        assert read_box(make([1.0, 2.0, 3.0, 4.0])) == (1.0, 2.0, 3.0, 4.0)
        assert read_span(make([1.0, 2.0])) == (1.0, 2.0)
    assert read_span({"start": 1, "end": 2}) == (1.0, 2.0)
    assert time_text(np.float64(1.5)) == time_text(torch.tensor(1.5)) == "<t1.5s>"
