# SPDX-License-Identifier: Apache-2.0
"""Reward functions for GRPO: IoU of completions with the right answer, and format."""

import math

import pytest

from llava_st_hf.model.grounding_llava_st import MediaInfo
from llava_st_hf.training.rewards import format_reward, siou_reward, tiou_reward, tiou_siou_reward, viou_reward


FILM = MediaInfo("video", 200, 100, fps=10.0, last_frame=100)  # 0 to 10 seconds; 11 frames are sampled, one per second
PHOTO = MediaInfo("image", 200, 100)
STVG = "During {<t2s><t4s>}. Object bounding box: <t2s>:[<w0px><h0px><w100px><h100px>]<t3s>:[<w0px><h0px><w100px><h100px>]."


def token_answer(start: int, end: int, *moments: tuple[int, int]) -> str:
    """Answer in tokens of 101 bins: a span in tenths of a second, and boxes of the left `width` hundredths of the frame."""
    boxes = "".join(f"<TEMP-{time:03d}>:[<WIDTH-000><HEIGHT-000><WIDTH-{width:03d}><HEIGHT-100>]" for time, width in moments)
    return f"During {{<TEMP-{start:03d}><TEMP-{end:03d}>}}. Object bounding box: {boxes}."


def columns(solution: str, media=FILM, task="stvg", count=1) -> dict:
    frames = 11 if getattr(media, "kind", "video") == "video" else None
    return {
        "solution": [solution] * count,
        "task": [task] * count,
        "media_info": [media] * count,
        "num_frames": [frames] * count,
        "num_bins": [(101, 101)] * count,
        "prompts": [None] * count,  # TRL passes further columns and objects
        "trainer_state": None,
    }


def test_rewards_of_a_tubelet_are_the_ious_of_its_span_and_boxes():
    # Span 3 to 4 of 2 to 4: tIoU 1/2. Boxes at 3 s (half as wide: IoU 1/2) and 4 s (not in the answer): shared 1 of 3 frames.
    given = {"completions": [token_answer(30, 40, (30, 25), (40, 50))], **columns(STVG)}
    near = pytest.approx
    assert tiou_reward(**given) == near([0.5], abs=5e-3)
    assert siou_reward(**given) == near([0.5], abs=5e-3)
    assert viou_reward(**given) == near([0.5 / 3], abs=5e-3)
    assert tiou_siou_reward(**given) == near([0.5 + 0.25 * 0.5], abs=5e-3)
    assert format_reward(**given) == [1.0]


def test_rewards_of_the_right_answer_are_the_largest():
    given = {"completions": [token_answer(20, 40, (20, 50), (30, 50))], **columns(STVG)}
    assert tiou_siou_reward(**given) == pytest.approx([2.0], abs=2e-2)
    assert viou_reward(**given) == pytest.approx([1.0], abs=5e-3)


@pytest.mark.parametrize(
    "text", ["", "no coordinates", "{<TEMP-0", "<TEMP-020><WIDTH-000>", token_answer(99, 20) + "[<WIDTH-001>", "\ud800 {{{[[[<TEMP-020>"]
)
def test_rewards_of_malformed_completions_are_finite_and_their_format_is_0(text):
    given = {"completions": [text], **columns(STVG)}
    for reward in (tiou_reward, siou_reward, viou_reward, tiou_siou_reward):
        [value] = reward(**given)
        assert math.isfinite(value) and value < 0.3
    assert format_reward(**given) == [0.0]


def test_rewards_accept_messages_and_content_items():
    text = token_answer(20, 40, (20, 50), (30, 50))
    forms = [text, [{"role": "assistant", "content": text}], [{"role": "assistant", "content": [{"type": "text", "text": text}]}]]
    assert tiou_reward(completions=forms, **columns(STVG, count=3)) == pytest.approx([1.0] * 3, abs=5e-3)


def test_rewards_of_parts_that_the_right_answer_lacks_are_none():
    span_only = {"completions": ["{<TEMP-020><TEMP-040>}"], **columns("{<t2s><t4s>}", task="tvg")}
    assert siou_reward(**span_only) == viou_reward(**span_only) == [None]
    assert tiou_siou_reward(**span_only) == tiou_reward(**span_only) == pytest.approx([1.0], abs=5e-3)
    assert format_reward(**span_only) == [1.0]
    # "svg" gives the span in the question: the times of the boxes are no answer to it.
    boxes = "Object bounding box: <t2s>:[<w0px><h0px><w100px><h100px>]."
    tubelet_only = {"completions": [token_answer(20, 20, (20, 25))], **columns(boxes, task="svg")}
    assert tiou_reward(**tubelet_only) == [None]
    assert tiou_siou_reward(**tubelet_only) == siou_reward(**tubelet_only) == pytest.approx([0.5], abs=5e-3)
    caption = {"completions": ["A dog."], **columns("A dog.", task="tr")}
    assert tiou_siou_reward(**caption) == format_reward(**caption) == [None]
    # Of a task of one's own, the parser notes that an answer has no boxes; the right answer has none either.
    own = {"completions": ["{<TEMP-020><TEMP-040>}"], **columns("{<t2s><t4s>}", task="my task")}
    assert format_reward(**own) == [1.0] and siou_reward(**own) == [None]


@pytest.mark.parametrize("text", ["<TEMP-020>", "{<TEMP-020>}", "<TEMP-020><TEMP-040>", "{<TEMP-020><TEMP-040>"])
def test_format_reward_of_a_span_without_both_times_in_braces_is_0(text):
    given = {"completions": [text], **columns("{<t2s><t4s>}", task="tvg")}
    assert format_reward(**given) == [0.0]
    given["completions"] = ["{<TEMP-040><TEMP-020>}"]  # read with a note
    assert format_reward(**given) == [0.0]
    given = {"completions": [text], **columns("<t2s>", task="tvg")}  # a right answer of one's own without braces
    assert format_reward(**given) == [1.0]


def test_rewards_of_an_image_are_the_iou_of_its_box():
    completions = ["[<WIDTH-000><HEIGHT-000><WIDTH-050><HEIGHT-050>]"]
    for media in (PHOTO, {**PHOTO.to_dict(), "fps": None, "frame_times": None}):  # rows from Arrow have all keys
        for task in ("rec", "my task"):
            given = {"completions": completions, **columns("[<w0px><h0px><w100px><h100px>]", media, task)}
            given["num_frames"] = [None]
            assert siou_reward(**given) == tiou_siou_reward(**given) == pytest.approx([0.5], abs=5e-3)
            assert tiou_reward(**given) == viou_reward(**given) == [None]


def test_rewards_read_fractions_and_bin_tokens_of_the_right_answer():
    for solution in ("{<t0.2><t0.4>}", "{<TEMP-020><TEMP-040>}"):
        assert tiou_reward(completions=["{<TEMP-020><TEMP-040>}"], **columns(solution, task="tvg")) == pytest.approx([1.0], abs=5e-3)


def test_rewards_without_what_they_compare_with_raise():
    given = {"completions": ["{<TEMP-020><TEMP-040>}"], **columns("{<t2s><t4s>}")}
    for name, message in (("solution", "no column `solution`"), ("media_info", "media_info is missing")):
        with pytest.raises(ValueError, match=message):
            tiou_reward(**{key: value for key, value in given.items() if key != name})
    for solution, message in (
        ("2.0 to 4.0", "The solution '2.0 to 4.0' has no span or tubelet, which is the answer to the task 'stvg'"),
        (None, "must be the text of the right answer, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            format_reward(**{**given, "solution": [solution]})
    with pytest.raises(ValueError, match="has no image or video"):
        tiou_reward(**{**given, "media_info": [None]})
    with pytest.raises(ValueError, match=r"<t40s> is outside the clip"):
        tiou_reward(**{**given, "solution": ["{<t2s><t40s>}"]})
