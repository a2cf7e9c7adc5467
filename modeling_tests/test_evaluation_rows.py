# SPDX-License-Identifier: Apache-2.0
"""Predictions as objects in seconds and pixels."""

import json

import pytest

from llava_st_hf import Box, Event, Grounding, MediaInfo
from llava_st_hf.evaluation.answers import ParseContext, read_llava_st
from llava_st_hf.evaluation.rows import GroundingResult, Prediction


VIDEO = MediaInfo("video", width=990, height=495, fps=10.0, first_frame=100, last_frame=199, total_num_frames=300)
PHOTO = MediaInfo("image", width=990, height=495)
BOX = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"
PIXELS = (100.0, 100.0, 300.0, 200.0)
GIVEN_BOX = (1.0, 2.0, 3.0, 4.0)
AT_15_S = Box(*PIXELS, time=15.0, frame=150)
CASES = {  # of each task: values of the prompt, answer, the event of the answer
    "rec": (GroundingResult(), BOX, [Event(boxes=(Box(*PIXELS),))]),
    "reg": (GroundingResult(box=GIVEN_BOX), "a cat", [Event("a cat", boxes=(Box(*GIVEN_BOX),))]),
    "dgc": (
        GroundingResult(),
        f"a cat {BOX} {BOX} and a dog {BOX}",
        [Event("a cat", boxes=(Box(*PIXELS),))] * 2 + [Event("a dog", boxes=(Box(*PIXELS),))],
    ),
    "tvg": (GroundingResult(), "{<TEMP-010><TEMP-060>}", [Event(None, 11.0, 16.0)]),
    "tr": (GroundingResult(span=(10 / 99, 60 / 99)), "a cat jumps", [Event("a cat jumps", 11.0, 16.0)]),
    "stvg": (GroundingResult(), f"{{<TEMP-010><TEMP-060>}} <TEMP-050>:{BOX}", [Event(None, 11.0, 16.0, (AT_15_S,))]),
    "svg": (GroundingResult(span=(10 / 99, 60 / 99)), f"<TEMP-050>:{BOX}", [Event(None, 11.0, 16.0, (AT_15_S,))]),
    "elc": (
        GroundingResult(span=(10 / 99, 10 / 99), box=GIVEN_BOX),
        f"Ends in <TEMP-060>, a cat jumps. <TEMP-050>:{BOX}",
        [Event("a cat jumps", 11.0, 16.0, (AT_15_S,))],
    ),
}


def prediction(task: str, given: GroundingResult, answer: str, **known) -> Prediction:
    """A prediction after it was written to a file and read."""
    media = PHOTO if task in ("rec", "reg", "dgc") else VIDEO
    found, notes = read_llava_st(answer, ParseContext(task, media, given, num_frames=100))
    made = Prediction(
        "1", "b", task, "Where?", GroundingResult(), given, "a.mp4", media.to_dict(), answer, prediction=found, notes=notes, **known
    )
    return Prediction.from_dict(json.loads(json.dumps(made.to_dict())))


@pytest.mark.parametrize("task", CASES)
def test_prediction_grounding_is_in_seconds_and_pixels_with_values_of_the_prompt(task):
    given, answer, events = CASES[task]
    grounding = prediction(task, given, answer).grounding()
    assert grounding.events == tuple(events)
    assert (grounding.text, grounding.task, grounding.query, grounding.source) == (answer, task, "Where?", "a.mp4")
    assert Grounding.from_json(grounding.to_json()) == grounding


def test_prediction_grounding_of_elc_without_end_has_the_start_and_box_of_the_prompt():
    grounding = prediction("elc", CASES["elc"][0], "Ends in <TEMP-005>, a cat jumps.").grounding()
    assert grounding.events == (Event("a cat jumps", 11.0, None, (Box(*GIVEN_BOX, time=11.0, frame=110),)),)
    assert any("no span and no tubelet" in note for note in grounding.notes)


def test_prediction_grounding_without_answer_has_no_events_and_the_reason():
    skipped = Prediction("1", "b", "tvg", "?", GroundingResult(span=(0.1, 0.2)), skipped="The file is missing.")
    assert skipped.grounding() == Grounding(notes=("The file is missing.",), task="tvg", query="?")
    assert prediction("tvg", GroundingResult(), "I do not know.").grounding().events == ()


def test_prediction_grounding_of_a_file_of_version_0_1():
    line = {
        "id": "1", "benchmark": "charades_sta", "task": "tvg", "prompt": "When?", "truth": {"span": [0.1, 0.5]}, "given": {},
        "media": {"kind": "video", "width": 640, "height": 360, "fps": 25.0, "first_frame": 0, "last_frame": 100},
        "answer": "{<TEMP-000><TEMP-099>}", "finished": True, "prediction": {"span": [0.0, 1.0], "box": None}, "notes": [],
    }  # fmt: skip
    assert Prediction.from_dict(line).grounding().events == (Event(None, 0.0, 4.0),)


def test_prediction_grounding_without_units_raises():
    row = Prediction("row 7", "b", "tvg", "?", GroundingResult(), answer="…", prediction=GroundingResult(span=(0.1, 0.2)))
    with pytest.raises(ValueError, match="media of the prediction 'row 7' is missing"):
        row.grounding()
    row.media = {"kind": "video", "width": "abc", "height": 5}
    with pytest.raises(ValueError, match="width must be a whole number"):
        row.grounding()
