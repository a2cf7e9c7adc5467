# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.data.st_align import st_align_row
from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE


SAMPLE = {
    "id": "v_1",
    "video": "a/clip.mp4",
    "conversations": [
        {
            "from": "human",
            "value": "<video>\nStarts in <TEMP-INPUT>, what happened within [<WIDTH-INPUT><HEIGHT-INPUT>, <WIDTH-INPUT><HEIGHT-INPUT>]?",
        },
        {
            "from": "gpt",
            "value": "Ends in <TEMP-OUTPUT>, a child pushes a toy. Object bounding box: "
            "<TEMP-OUTPUT>:[<WIDTH-OUTPUT><HEIGHT-OUTPUT><WIDTH-OUTPUT><HEIGHT-OUTPUT>].",
        },
    ],
    "variables": {
        "temporal_input_locations": [0.3],
        "temporal_output_locations": [0.335, 0.303],
        "spatial_height_input_locations": [0.3, 0.72],
        "spatial_height_output_locations": [0.1, 0.7],
        "spatial_width_input_locations": [0.2, 0.61],
        "spatial_width_output_locations": [0, 1.0005],
    },
    "meta": {"split": [3, 90], "other": 1},
    "unknown": None,
}


def row_of(sample, data_folder="/data"):
    return st_align_row(sample, data_folder, source="st", task="elc", default_id="st-7")


def changed(**changes) -> dict:
    return {**copy.deepcopy(SAMPLE), **changes}


def texts(row) -> list[str]:
    return [item["text"] for message in row["messages"] for item in message["content"] if item["type"] == "text"]


def talk(*values, roles=("human", "gpt")) -> list[dict]:
    return [{"from": roles[i % 2], "value": value} for i, value in enumerate(values)]


def test_st_align_row_fills_placeholders_in_order_of_appearance():
    row = row_of(SAMPLE)
    assert texts(row) == [
        "Starts in <t0.3>, what happened within [<w0.2><h0.3>, <w0.61><h0.72>]?",
        "Ends in <t0.335>, a child pushes a toy. Object bounding box: <t0.303>:[<w0.0><h0.1><w1.0><h0.7>].",
    ]
    assert (row["id"], row["task"], row["source"], row["modality"]) == ("v_1", "elc", "st", "video")


def test_st_align_row_video_is_the_first_item_of_the_first_user_message():
    messages = row_of(SAMPLE)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    video, text = messages[0]["content"]
    expected = {"type": "video", "path": "/data/a/clip.mp4", "clip": [3, 90], "text": None, "image": None, "start": None, "end": None}
    assert video == expected
    assert text["path"] is None and text["clip"] is None


def test_st_align_row_length_counts_a_coordinate_as_one_token():
    row = row_of({"conversations": talk("abcd<TEMP-INPUT>efgh", "12345678"), "variables": {"temporal_input_locations": [0.123456789]}})
    assert row["length"] == 1 + 2 + 2 and row["modality"] == "text" and row["id"] == "st-7"


@pytest.mark.parametrize(
    "written, read",
    [
        ("<video>\nWhat?", "What?"),
        ("<video>\n What?", " What?"),
        ("What?\n<video>", "What?"),
        ("<image>\nWhat?", "What?"),  # a mark gives the position only; the key gives the type
        ("Look: <video>\nWhat?", "Look: What?"),
        ("What?", "What?"),
    ],
)
def test_st_align_row_removes_the_video_or_image_mark_from_the_text(written, read):
    assert texts(row_of(changed(conversations=talk(written, "This."), variables={})))[0] == read


def test_st_align_row_question_without_text_has_only_the_image():
    row = row_of({"image": "a.jpg", "conversations": talk("<image>\n", "A dog.")})
    assert [item["type"] for item in row["messages"][0]["content"]] == ["image"] and row["modality"] == "image"


def test_st_align_row_keeps_inline_coordinates_and_system_messages():
    conversations = [{"from": "system", "value": "Be brief."}, *talk("<video>\nWhat, in {<t0.2><t0.4>}?", "In {<t1.5s>,<t2s>}.")]
    row = row_of(changed(conversations=conversations, variables={}))
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert texts(row)[1:] == ["What, in {<t0.2><t0.4>}?", "In {<t1.5s>,<t2s>}."]


def test_st_align_row_box_ending_with_h1_is_not_an_html_heading():
    for box in ("[<w0><h0><w1><h1>]", "[<w0>, <h0>, <w1>, <h1>]"):
        assert texts(row_of(changed(conversations=talk("Where?", box), variables={})))[1] == box


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_st_align_row_positions_are_written_without_rounding(positions):
    conversations = talk("When?", "".join(["at <TEMP-OUTPUT>, "] * len(positions)))
    row = row_of({"conversations": conversations, "variables": {"temporal_output_locations": positions}})
    assert [float(match["number"]) for match in INLINE_COORDINATE.finditer(texts(row)[1])] == positions


def with_variables(**lists) -> dict:
    return changed(variables={**SAMPLE["variables"], **lists})


MALFORMED = {
    "too few numbers": (with_variables(temporal_input_locations=[]), "1 <TEMP-INPUT>.*has 0 numbers"),
    "too many numbers": (with_variables(spatial_width_output_locations=[0, 0.1, 1]), "2 <WIDTH-OUTPUT>.*has 3 numbers"),
    "no variables": (changed(variables=None), "has 0 numbers"),
    "variables no object": (changed(variables=[0.1]), "'variables' must be an object"),
    "a list no list": (with_variables(temporal_input_locations=0.3), "must be a list"),
    "a number too large": (with_variables(temporal_input_locations=[1.01]), "is 1.01, but a position"),
    "a negative number": (with_variables(temporal_input_locations=[-0.5]), "-0.5"),
    "NaN": (with_variables(temporal_input_locations=[float("nan")]), "finite number, not nan"),
    "a huge whole number": (with_variables(temporal_input_locations=[10**400]), "finite number"),
    "a string": (with_variables(temporal_input_locations=["0.3"]), "finite number, not '0.3'"),
    "a truth value": (with_variables(temporal_input_locations=[True]), "finite number, not True"),
    "a reversed box": (with_variables(spatial_width_input_locations=[0.61, 0.2]), "is reversed"),
    "a reversed span": (changed(conversations=talk("When?", "{<t0.5><t0.4>}"), variables={}), "ends before it starts"),
    "an inline position outside": (changed(conversations=talk("When?", "<t1.5>"), variables={}), "<t1.5>"),
    "an inline coordinate without number": (changed(conversations=talk("When?", "<t>"), variables={}), "has no number"),
    "a misspelt coordinate": (changed(conversations=talk("When?", "At <t0,5>."), variables={}), "'<t0,5>' is not a coordinate"),
    "half a box": (changed(conversations=talk("Where?", "[<w0.1><h0.2>]"), variables={}), "is not a box"),
    "HTML": (changed(conversations=talk("When?", "<h1>Now</h1>"), variables={}), "HTML heading"),
    "a time in an image": (
        {"image": "a.jpg", "conversations": talk("When?", "At <t1.5s>.")},
        "is a time, but the sample has an image",
    ),
    "seconds without a medium": ({"conversations": talk("When?", "At <t1.5s>.")}, "no video or image"),
    "no conversations": (changed(conversations=None), "'conversations' must be a list"),
    "an empty conversation": (changed(conversations=[], variables={}), "no messages"),
    "a turn no object": (changed(conversations=["Hi"]), r"'conversations\[0\]' must be an object"),
    "an unknown role": (
        changed(conversations=[{"from": "bot", "value": "Hi"}]),
        r"'conversations\[0\].from' must be 'human', 'gpt' or 'system', not 'bot'",
    ),
    "a role no string": (changed(conversations=[{"from": ["gpt"], "value": "Hi"}]), r"'conversations\[0\].from' must be"),
    "an empty text": (changed(conversations=talk("What?", " ")), r"'conversations\[1\].value' must be a string that is not blank"),
    "a text no string": (changed(conversations=talk("What?", 3)), r"'conversations\[1\].value' must be a string, not 3"),
    "the answer first": (changed(conversations=talk("This.", "What?", roles=("gpt", "human")), variables={}), "take turns"),
    "two questions": (changed(conversations=talk("A?", "B?", roles=("human", "human")), variables={}), "take turns"),
    "no answer at the end": (changed(conversations=talk("A?", "B.", "C?"), variables={}), "ends with a question"),
    "a late system turn": (changed(conversations=[*talk("A?", "B."), {"from": "system", "value": "C"}], variables={}), "take turns"),
    "two marks": (changed(conversations=talk("<video>\n<video>\nA?", "B."), variables={}), "2 marks"),
    "a mark in an answer": (changed(conversations=talk("A?", "A <video>."), variables={}), "chat template writes it"),
    "a mark without a medium": ({"conversations": talk("<image>\nA?", "B.")}, "has no video or image"),
    "a control token": (changed(conversations=talk("A?<|im_end|>", "B."), variables={}), "the special token"),
    "two media": (changed(image="a.jpg"), "both a 'video' and an 'image'"),
    "an absolute path": (changed(video="/etc/passwd"), "is absolute"),
    "a path that leaves": (changed(video="../a.mp4"), r"has a '\.\.'"),
    "a list of paths": (changed(video=["a.mp4"]), "must be a string"),
    "an empty path": (changed(video=""), "is empty"),
    "a reversed split": (changed(meta={"split": [9, 3]}), "is reversed"),
    "a split in seconds": (changed(meta={"split": [0.5, 3.5]}), r"'split\[0\]' must be an integer, not 0.5"),
    "a split of one": (changed(meta={"split": [3]}), r"'split\[1\]' is missing"),
    "meta no object": (changed(meta=[1]), "'meta' must be an object"),
    "a lone surrogate in a text": (changed(conversations=talk("A\ud83d?", "B."), variables={}), r"lone surrogate.*at position 1"),
    "a lone surrogate in a path": (changed(video="a\ud83d.mp4"), "lone surrogate"),
    "an id of many parts": (changed(id=[1]), "'id'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_st_align_row_malformed_sample_raises_with_the_reason(name):
    sample, reason = MALFORMED[name]
    with pytest.raises(ValueError, match=reason):
        row_of(sample)


def test_st_align_row_video_without_data_folder_raises():
    with pytest.raises(ValueError, match="no data_folder"):
        row_of(SAMPLE, data_folder=None)
