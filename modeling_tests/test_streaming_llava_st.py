# SPDX-License-Identifier: Apache-2.0
"""Parts of an answer during generation: each is final, they arrive as soon as they are complete, and no thread is left."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from llava_st_hf import Event, Grounding
from llava_st_hf.model import grounding_llava_st
from llava_st_hf.model.grounding_llava_st import AnswerReader, event_in_units
from llava_st_hf.model.media_info_llava_st import MediaInfo
from llava_st_hf.model.streaming_llava_st import PartReader, TextDecoder
from modeling_tests.media import moving_frames, write_video
from modeling_tests.processors import tiny_processor


VIDEO = MediaInfo("video", width=1000, height=1000, fps=1.0, last_frame=990)
IMAGE = MediaInfo("image", width=1000, height=1000)
ANSWER = (
    "During {<TEMP-010><TEMP-020>}, a man säße. Object bounding box: <TEMP-012>:[<WIDTH-000><HEIGHT-000><WIDTH-050><HEIGHT-099>]"
    "<TEMP-014>:[<WIDTH-010><HEIGHT-000><WIDTH-060><HEIGHT-099>]. During {<TEMP-040><TEMP-050>}, a dog runs."
)


class Script(LogitsProcessor):
    """Forces `generate` to produce an answer. `on_step` is called with the number of generated tokens."""

    def __init__(self, grounder, text: str, on_step=lambda step: None):
        self.ids = grounder.processor.tokenizer(text + "<|im_end|>")["input_ids"]
        self.step, self.on_step = 0, on_step

    def __call__(self, input_ids, scores):
        self.on_step(self.step)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[self.step]] = 0
        self.step += 1
        return forced


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Writes 100 frames of 64×48 at 10 frames per second: bin k is frame k at k/10 s."""
    return str(write_video(tmp_path_factory.mktemp("media") / "video.mp4", moving_frames(100, 48, 64), fps=10))


def stream(grounder, media, text: str, on_step=lambda step: None, **kwargs):
    script = Script(grounder, text, on_step)
    return grounder.stream(media, text="When?", logits_processor=[script], max_new_tokens=500, **kwargs)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "llava-st-stream"]


def without_type(parts: list[dict], kind: str) -> list[dict]:
    return [{name: value for name, value in part.items() if name != "type"} for part in parts if part["type"] == kind]


# The whole stream


def test_stream_parts_are_those_of_the_answer_and_the_last_item_is_the_result_of_a_call(grounder, video):
    parts = list(stream(grounder, video, ANSWER))
    result = grounder(video, text="When?", logits_processor=[Script(grounder, ANSWER)], max_new_tokens=500)
    assert parts[-1] == {"type": "answer", "answer": result} and result["text"] == ANSWER
    assert "".join(part["text"] for part in without_type(parts, "text")).strip() == ANSWER
    first, second = result["events"]
    assert without_type(parts, "event") == [{"event": first}, {"event": second}]
    assert tuple(Event.from_dict(part["event"]) for part in without_type(parts, "event")) == Grounding.from_dict(result).events
    assert without_type(parts, "span") == [{"start": event["start"], "end": event["end"]} for event in (first, second)]
    assert without_type(parts, "box") == first["boxes"] and len(first["boxes"]) == 2
    order = [part["type"] for part in parts if part["type"] != "text"]
    assert order == ["span", "box", "box", "event", "span", "event", "answer"] and not threads()


def test_stream_part_arrives_with_the_token_that_completes_it(grounder, video):
    """The streamer delivers step by step: a box comes with its fourth corner, before the next token is generated."""
    release, waits = threading.Event(), []
    ids = grounder.processor.tokenizer(ANSWER)["input_ids"]
    corner = next(place for place, token in enumerate(ids) if grounder.processor.tokenizer.decode([token]) == "<HEIGHT-099>")

    def on_step(step):
        if step == corner + 1:
            waits.append(release.wait(20))

    found = []
    for part in stream(grounder, video, ANSWER, on_step):
        found.append(part["type"])
        if part["type"] == "box":
            release.set()
    assert waits == [True] and found.count("box") == 2


def test_stream_elc_span_begins_at_the_start_in_the_prompt(grounder, video):
    text = "Ends in <TEMP-020>, a man falls. Object bounding box: <TEMP-015>:[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]."
    script = Script(grounder, text)
    parts = list(grounder.stream(video, task="elc", time=1.0, box=[1, 2, 30, 40], logits_processor=[script], max_new_tokens=200))
    assert without_type(parts, "span") == [{"start": 1.0, "end": 2.0}]
    assert without_type(parts, "event") == [{"event": parts[-1]["answer"]["events"][0]}]


def test_stream_image_yields_a_box_and_an_event_for_each_phrase(grounder):
    corners = "[<WIDTH-000><HEIGHT-000><WIDTH-050><HEIGHT-099>]"
    parts = list(stream(grounder, {"image": np.zeros((50, 100, 3), np.uint8)}, f"a cat {corners} and a dog {corners}."))
    events = parts[-1]["answer"]["events"]
    assert [event["caption"] for event in events] == ["a cat", "a dog"]
    assert [part["type"] for part in parts if part["type"] != "text"] == ["box", "event", "box", "event", "answer"]
    assert without_type(parts, "event") == [{"event": event} for event in events]


def test_stream_error_during_generation_is_raised_by_the_iterator(grounder, video):
    def on_step(step):
        if step == 3:
            raise RuntimeError("failed at step 3")

    found = []
    with pytest.raises(RuntimeError, match="failed at step 3"):
        found.extend(part["type"] for part in stream(grounder, video, ANSWER, on_step))
    assert not threads()


def test_stream_closed_early_stops_the_generation(grounder, video):
    steps = []
    parts = stream(grounder, video, ANSWER, steps.append)
    for part in parts:
        if part["type"] == "span":
            break
    parts.close()
    assert not threads()
    assert len(steps) < len(grounder.processor.tokenizer(ANSWER)["input_ids"]) - 10


def test_stream_bad_input_is_an_error_before_the_first_item(grounder, video):
    with pytest.raises(ValueError, match=r"stream answers one question; got a list"):
        grounder.stream([video, video], text="When?")
    with pytest.raises(ValueError, match="task='nothing' is not a valid task"):
        grounder.stream(video, text="When?", task="nothing")
    with pytest.raises(ValueError, match="beam search"):
        list(grounder.stream(video, text="When?", num_beams=2))
    assert not threads()


# Parts of a text

_PIECES = ["<TEMP-010>", "<TEMP-020>", "<TEMP-015>", "<WIDTH-010>", "<HEIGHT-030>", "<WIDTH-070>", "<HEIGHT-080>"]
_PIECES += [":", ":[", "[", "]", "{", "}", ",", "  to ", "and", " -", "a cat", ". ", "Ends in", "12:", "<", "<TEMP-0", "41>", "\n"]
_BOX = ["[", "<WIDTH-010>", "<HEIGHT-030>", "<WIDTH-070>", "<HEIGHT-080>", "]"]
_FORMS = [
    _BOX,
    ["<TEMP-015>", ":", *_BOX],
    ["{", "<TEMP-010>", "<TEMP-020>", "}"],
    ["from ", "<TEMP-010>", " to ", "<TEMP-020>"],
    [" a cat. "],
]


@settings(max_examples=150)
@given(st.lists(st.one_of(st.sampled_from(_FORMS), st.sampled_from(_PIECES).map(lambda piece: [piece])), max_size=12), st.booleans())
def test_part_reader_yields_the_boxes_and_events_of_the_whole_text(forms, is_video):
    pieces, media = [piece for form in forms for piece in form], VIDEO if is_video else IMAGE
    with pytest.MonkeyPatch.context() as patch:  # events that repeat a span are merged when the answer is complete
        patch.setattr(grounding_llava_st, "_merge_repeated_spans", lambda events: events)
        events = AnswerReader("".join(pieces), 100, 100, is_video, [], {}).read()
    reader = PartReader(media, 100, 100)
    parts = [part for piece in pieces for part in reader.read(piece)]
    assert without_type(parts, "box") == [box for event in events for box in event_in_units(event, media, is_video)["boxes"]]
    found = [part["event"] for part in without_type(parts, "event")]
    converted = [Event.from_dict(event) for event in found]  # also with ends in reverse order
    assert [event.caption for event in converted] == [event.caption() for event in events[: len(found)]]


@pytest.mark.parametrize("piece", ["<WIDTH-001>", "<WIDTH-001>, ", "<TEMP-001>", "<TEMP-001>:[", "<TEMP-001> to ", "abc "])
def test_part_reader_time_is_linear_in_the_length_of_the_answer(piece, monkeypatch):
    """Counts the characters that are searched: the whole text for each token would be a thousand times the text."""
    searched = 0
    pattern = grounding_llava_st.ANSWER_ITEM

    class Counting:
        def search(self, text):
            nonlocal searched
            searched += len(text)
            return pattern.search(text)

    monkeypatch.setattr("llava_st_hf.model.streaming_llava_st.ANSWER_ITEM", Counting())
    reader, pieces = PartReader(VIDEO, 100, 100), ([piece[:11], piece[11:]] if piece[11:] else [piece]) * 2000
    start = time.perf_counter()
    for part in pieces:
        reader.read(part)
    assert searched < 20 * len(piece) * 2000, f"{searched} characters in {time.perf_counter() - start:.1f} s"


def test_text_decoder_joins_characters_of_several_tokens_and_leaves_out_control_tokens():
    tokenizer = tiny_processor().tokenizer  # one token per byte
    text = "größer <TEMP-041>€<WIDTH-003>"
    decoder = TextDecoder(tokenizer)
    ids = [*tokenizer("<|im_start|>")["input_ids"], *tokenizer(text)["input_ids"], *tokenizer("<|im_end|>é")["input_ids"]]
    found = [part for token in ids[:-1] for part in decoder.decode(token)]
    assert "".join(found) == text and {"ö", "ß", "€", "<TEMP-041>"} <= set(found)
    assert decoder.finish() == ["\ufffd"] and decoder.finish() == []
