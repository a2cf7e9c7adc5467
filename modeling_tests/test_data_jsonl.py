# SPDX-License-Identifier: Apache-2.0
import json
import re

import pytest

from llava_st_hf.data.jsonl import Chat, read_jsonl
from llava_st_hf.data.questions import question_and_answer, sampled_moments
from llava_st_hf.data.samples import GroundingSample
from llava_st_hf.model.coordinates_llava_st import coordinate_token, position_to_bin
from llava_st_hf.model.grounding_llava_st import MediaInfo, parse_answer
from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE, read_coordinate
from llava_st_hf.model.tasks_llava_st import TASKS


BOXES = [{"time": 1.0, "box": [9.9, 19.8, 29.7, 39.6]}, {"time": 1.5, "box": [19.8, 19.8, 39.6, 39.6]}]
ROWS = {
    "rec": {"image": "a.jpg", "text": "the left dog", "box": [9.9, 19.8, 29.7, 39.6]},
    "reg": {"image": "a.jpg", "text": "a brown dog", "box": [9.9, 19.8, 29.7, 39.6]},
    "dgc": {
        "image": "a.jpg",
        "objects": [{"text": "A man", "box": [9.9, 19.8, 29.7, 39.6]}, {"text": "holds a cup", "box": [19.8, 19.8, 39.6, 39.6]}],
    },
    "tvg": {"video": "a.mp4", "text": "a dog runs", "span": [1.0, 2.5]},
    "tr": {"video": "a.mp4", "text": "a dog runs", "span": [1.0, 2.5]},
    "stvg": {"video": "a.mp4", "text": "A dog runs.", "span": [1.0, 2.5], "boxes": BOXES},
    "svg": {"video": "a.mp4", "text": "a dog runs.", "span": [1.0, 2.5], "boxes": BOXES},
    "elc": {"video": "a.mp4", "text": "a dog runs.", "span": [1.0, 2.5], "boxes": BOXES},
}


def read(tmp_path, *rows) -> list:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return [found for _, found in read_jsonl(str(path))]


def sample_of(tmp_path, task, **changes):
    (sample,) = read(tmp_path, {"task": task, **ROWS[task], **changes})
    return sample


def as_tokens(text: str, media: MediaInfo) -> str:
    """Replaces inline coordinates by the tokens that the processor makes of them."""

    def token(match: re.Match) -> str:
        def to_position(axis, value, written):
            return media.time_position(value, written) if axis == "temporal" else media.pixel_position(axis, value, written)

        axis, position = read_coordinate(match, to_position)
        return coordinate_token(axis, position_to_bin(position, 100))

    return INLINE_COORDINATE.sub(token, text)


VIDEO = MediaInfo("video", width=99, height=99, fps=10.0, first_frame=0, last_frame=99)
IMAGE = MediaInfo("image", width=99, height=99)
FIRST, SECOND = (
    {"xmin": 10.0, "ymin": 20.0, "xmax": 30.0, "ymax": 40.0},
    {"xmin": 20.0, "ymin": 20.0, "xmax": 40.0, "ymax": 40.0},
)
MOMENTS = [{"time": 1.0, "frame": 10, "box": FIRST}, {"time": 1.5, "frame": 15, "box": SECOND}]
# Expected events of `parse_answer` for the answer of each task.
EVENTS = {
    "rec": [{"caption": None, "boxes": [{"box": FIRST}]}],
    "reg": [{"caption": "a brown dog", "boxes": [{"box": FIRST}]}],
    "dgc": [{"caption": "A man", "boxes": [{"box": FIRST}]}, {"caption": "holds a cup", "boxes": [{"box": SECOND}]}],
    "tvg": [{"start": 1.0, "end": 2.5, "caption": None, "boxes": []}],
    "tr": [{"start": 1.0, "end": 2.5, "caption": "a dog runs", "boxes": []}],
    "stvg": [{"start": 1.0, "end": 2.5, "caption": None, "boxes": MOMENTS}],
    "svg": [{"start": 1.0, "end": 2.5, "caption": None, "boxes": MOMENTS}],
    "elc": [{"start": 1.0, "end": 2.5, "caption": "a dog runs", "boxes": MOMENTS}],
}


@pytest.mark.parametrize("task", TASKS)
def test_question_and_answer_parsed_answer_equals_the_annotation(tmp_path, task):
    sample = sample_of(tmp_path, task)
    _, answer = question_and_answer(sample, task)
    media = VIDEO if sample.kind == "video" else IMAGE
    given = {}
    if "span" in TASKS[task].needs:
        given["span"] = tuple(time * 10 / 99 for time in sample.span)
    if "time" in TASKS[task].needs:
        given["start"] = sample.span[0] * 10 / 99
    if "box" in TASKS[task].needs:
        given["box"] = tuple(corner / 99 for corner in sample.boxes[0][1])
    result = parse_answer(as_tokens(answer, media), media, 100, 100, **given)

    def rounded(value):
        """Rounds to bins of 1 pixel and 0.1 s."""
        if isinstance(value, float):
            return round(value, 1) if value < 5 else float(round(value))
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return [rounded(item) for item in value] if isinstance(value, list) else value

    assert rounded(result["events"]) == EVENTS[task] and result["notes"] == []


def test_question_and_answer_follow_the_prompt_template_with_exact_coordinates(tmp_path):
    question, answer = question_and_answer(sample_of(tmp_path, "elc"), "elc")
    assert question.startswith("Starts in <t1.0s>, what happened about the subject/object within the specified region [<w9.9px><h19.8px>")
    assert answer == (
        "Ends in <t2.5s>, a dog runs. Object bounding box: <t1.0s>:[<w9.9px><h19.8px><w29.7px><h39.6px>]"
        "<t1.5s>:[<w19.8px><h19.8px><w39.6px><h39.6px>]."
    )
    question, answer = question_and_answer(sample_of(tmp_path, "dgc"), "dgc")
    assert answer == "A man [<w9.9px><h19.8px><w29.7px><h39.6px>] holds a cup [<w19.8px><h19.8px><w39.6px><h39.6px>]."
    answer = question_and_answer(sample_of(tmp_path, "stvg"), "stvg")[1]
    assert answer.startswith("During {<t1.0s><t2.5s>}. Object bounding box: <t1.0s>:[<w9.9px>")


def test_question_and_answer_fractions_are_written_with_all_digits():
    sample = GroundingSample("a", "video", "a.mp4", text="a dog runs", span=(0.1, 1 / 3), unit="fraction")
    assert question_and_answer(sample, "tvg")[1] == "{<t0.1><t0.3333333333333333>}"
    assert "during the period {<t0.1><t0.3333333333333333>} in" in question_and_answer(sample, "tr")[0]


def test_question_and_answer_incompatible_sample_raises_with_the_reason():
    sample = GroundingSample("a", "video", "a.mp4", text="who runs?", span=(0.1, 0.2), unit="fraction", is_question=True)
    with pytest.raises(ValueError, match="'stvg' needs boxes with times"):
        question_and_answer(sample, "stvg")
    with pytest.raises(ValueError, match="'rec' is about images"):
        question_and_answer(sample, "rec")
    with pytest.raises(ValueError, match="is a question"):
        question_and_answer(sample, "tr")


def tube(num_frames: int, first: int, last: int) -> GroundingSample:
    boxes = tuple((frame / (num_frames - 1), (0.0, 0.0, float(frame + 1), 1.0)) for frame in range(first, last + 1))
    return GroundingSample("a", "video", "a.mp4", text="x", span=(0, 1), unit="fraction", boxes=boxes, num_frames=num_frames)


@pytest.mark.parametrize("num_frames", [20, 32, 100])
def test_sampled_moments_dense_annotation_gives_one_box_per_sampled_frame_of_the_event(num_frames):
    sampled = [round(i / (num_frames - 1) * 299) for i in range(num_frames)]
    moments = sampled_moments(tube(300, 50, 120), num_frames)
    assert [box[2] - 1 for _, box in moments] == [frame for frame in sampled if 50 <= frame <= 120]
    assert [time for time, _ in moments] == [frame / 299 for frame in sampled if 50 <= frame <= 120]


def test_sampled_moments_short_clip_gives_each_frame_once():
    assert [box[2] - 1 for _, box in sampled_moments(tube(40, 5, 9), 100)] == [5, 6, 7, 8, 9]


def test_sampled_moments_event_between_sampled_frames_gives_its_middle_box_at_the_nearest_frame():
    # Sampled: 0, 300, 600 and 900. The middle of the frames 320 to 322 is 321.
    ((time, box),) = sampled_moments(tube(901, 320, 322), 4)
    assert (box[2] - 1, time) == (321, 300 / 900)
    ((time, box),) = sampled_moments(tube(901, 440, 462), 4)
    assert (box[2] - 1, time) == (451, 600 / 900)


def test_sampled_moments_sparse_annotation_gives_all_boxes(tmp_path):
    sample = sample_of(tmp_path, "stvg")
    assert sampled_moments(sample, None) == sampled_moments(sample, 2) == [(item["time"], tuple(item["box"])) for item in BOXES]


def test_sampled_moments_dense_annotation_without_num_frames_raises():
    with pytest.raises(ValueError, match=r"num_frames is missing.*processor\.video_processor\.num_frames"):
        sampled_moments(tube(300, 50, 120), None)
    with pytest.raises(ValueError, match="num_frames must be"):
        sampled_moments(tube(300, 50, 120), 0)


def test_read_jsonl_clip_is_read_in_frames_or_seconds(tmp_path):
    assert sample_of(tmp_path, "tvg", clip=[0, 90]).clip == (0, 90)
    sample = sample_of(tmp_path, "tvg", start=0.5, end=4)
    assert (sample.start, sample.end, sample.clip) == (0.5, 4.0, None)


def test_read_jsonl_chat_keeps_texts_and_sets_default_id_and_task(tmp_path):
    messages = [{"role": "user", "content": "Where in <t0.5>?"}, {"role": "assistant", "content": "There."}]
    first, second = read(tmp_path, {"video": "a.mp4", "end": 3, "messages": messages}, {"messages": messages, "task": "talk", "id": 4})
    assert isinstance(first, Chat) and first.medium.end == 3.0 and first.turns[0] == ("user", "Where in <t0.5>?")
    assert (second.id, second.task, second.medium) == ("4", "talk", None) and (first.id, first.task) == ("1", "conversation")


MALFORMED = [
    ({**ROWS["rec"]}, "'task' must be one of rec, reg, dgc, tvg, tr, stvg, svg, elc, not None."),
    ({"task": "dvc", **ROWS["rec"]}, "elc, not 'dvc'"),
    ({"task": ["rec"], **ROWS["rec"]}, "elc, not ['rec']"),
    ({"task": "rec", "text": "a", "box": [1, 2, 3, 4]}, "'image' is missing."),
    ({"task": "tvg", **ROWS["tvg"], "image": "a.jpg"}, "'image' is not a valid key; the keys are"),
    ({"task": "rec", **ROWS["rec"], "clip": [1, 2]}, "'clip' is not a valid key"),
    ({"task": "rec", **ROWS["rec"], "answer": "x"}, "'answer' is not a valid key"),
    ({"task": "rec", **ROWS["rec"], "box": None}, "'box' must be a list, not None."),
    ({"task": "rec", **ROWS["rec"], "box": [3, 2, 1, 4]}, "reversed"),
    ({"task": "rec", **ROWS["rec"], "box": [1, 9, 5, 2]}, "reversed"),
    ({"task": "rec", **ROWS["rec"], "box": [1, 2, 1, 4]}, "no area"),
    ({"task": "rec", **ROWS["rec"], "box": [1, 2, 3]}, "'box[3]' is missing"),
    ({"task": "rec", **ROWS["rec"], "box": [1, 2, 3, "4"]}, "finite number"),
    ({"task": "rec", **ROWS["rec"], "text": " "}, "'text' must be"),
    ({"task": "rec", **ROWS["rec"], "image": 3}, "'image' must be"),
    ({"task": "tvg", **ROWS["tvg"], "span": [2, 1]}, "ends before it starts"),
    ({"task": "tvg", **ROWS["tvg"], "span": [-1, 1]}, "negative"),
    ({"task": "tvg", **ROWS["tvg"], "span": [1]}, "'span[1]' is missing"),
    ({"task": "tvg", **ROWS["tvg"], "span": {"start": 1, "end": 2}}, "'span' must be a list"),
    ({"task": "tvg", **ROWS["tvg"], "clip": [5, 2]}, "'clip' is reversed"),
    ({"task": "tvg", **ROWS["tvg"], "clip": [0, 5], "end": 2}, "both in frames ('clip') and in seconds"),
    ({"task": "tvg", **ROWS["tvg"], "start": 3, "end": 2}, "not after the start"),
    ({"task": "svg", **ROWS["svg"], "boxes": []}, "'boxes' must not be empty"),
    ({"task": "svg", **ROWS["svg"], "boxes": [BOXES[1], BOXES[0]]}, "must be strictly ascending"),
    ({"task": "svg", **ROWS["svg"], "boxes": [{"time": 3, "box": [1, 2, 3, 4]}]}, "beyond the 'span'"),
    ({"task": "svg", **ROWS["svg"], "boxes": [{"box": [1, 2, 3, 4]}]}, "'boxes[0].time' is missing"),
    ({"task": "svg", **ROWS["svg"], "boxes": [[1, 2, 3, 4]]}, "must be an object"),
    ({"task": "dgc", "image": "a.jpg", "objects": [{"text": "", "box": [1, 2, 3, 4]}]}, "not blank"),
    (
        {"task": "rec", **ROWS["rec"], "text": "a dog \ud83d"},
        "'text' must not have a lone surrogate, which UTF-8 cannot encode: replace '\\ud83d' at position 6",
    ),
    ({"task": "rec", **ROWS["rec"], "id": "\ud83d"}, "'id' must not have a lone surrogate"),
    ({"task": "rec", **ROWS["rec"], "image": "\ud83d.jpg"}, "'image' must not have a lone surrogate"),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, "'messages[0].content' must not have a lone surrogate"),
    ({"messages": "hi"}, "'messages' must be a list"),
    ({"messages": [{"role": "human", "content": "hi"}]}, "'messages[0].role' must be 'system', 'user' or 'assistant', not 'human'."),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'messages[0].content' must be a string"),
    ({"messages": [], "video": "a.mp4", "image": "b.jpg"}, "both an 'image' and a 'video'"),
    ({"messages": [], "image": "b.jpg", "clip": [1, 2]}, "need a 'video'"),
    ({"messages": [], "end": 3}, "need a 'video'"),
    ({"messages": [], "text": "x"}, "'text' is not a valid key"),
]


@pytest.mark.parametrize("row, reason", MALFORMED, ids=[reason for _, reason in MALFORMED])
def test_read_jsonl_malformed_row_gives_a_problem_with_the_reason(tmp_path, row, reason):
    (problem,) = read(tmp_path, row)
    assert isinstance(problem, str) and reason in problem
