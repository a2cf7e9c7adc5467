# SPDX-License-Identifier: Apache-2.0
"""Sessions: questions about an image or video that has been encoded once."""

import shutil

import pytest
import torch

from llava_st_hf import Grounding
from llava_st_hf.model.tasks_llava_st import task_content
from modeling_tests.media import moving_frames, write_video
from modeling_tests.processors import PICTURE, film, user
from modeling_tests.test_pipeline_llava_st import Script
from modeling_tests.test_shared_media_llava_st import NUM_FRAMES, counted, prefix_length, recorded


CLIP = {"clip": [10, 80], "num_frames": 6}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Path of a video of 64×48, 100 frames at 10 frames per second."""
    return str(write_video(tmp_path_factory.mktemp("media") / "video.mp4", moving_frames(100, 48, 64), fps=10))


QUESTIONS = [
    {"task": "tvg", "text": "it falls"},
    {"task": "svg", "span": (2.345, 5.6), "text": "the red one"},
    {"task": "elc", "time": 2.77, "box": [3, 4.5, 40, 30]},
    {"text": "What is at <t3.3s>?"},
]


def test_session_answers_as_the_pipeline(grounder, video):
    with grounder.open(video, **CLIP) as session, counted(grounder) as counts:
        for question in QUESTIONS:
            (given, scores), (wanted, wanted_scores) = asked(session.ask, **question), recorded(grounder, video, **CLIP, **question)
            assert given == wanted
            torch.testing.assert_close(scores, wanted_scores, rtol=0, atol=1e-4)
    assert counts["read"] == len(QUESTIONS) and counts["frames"] == 6 * len(QUESTIONS)  # those of the pipeline alone


def asked(ask, **question):
    """As `recorded`, for a method of a session."""
    return recorded(lambda inputs, **kwargs: ask(**inputs, **kwargs), question)


def test_session_answers_several_questions_in_batches(grounder, video):
    wanted = [grounder(video, **CLIP, **question, max_new_tokens=6) for question in QUESTIONS]
    session = grounder.open({"video": video, "clip": CLIP["clip"]}, num_frames=6, max_new_tokens=6)
    assert session.ask(QUESTIONS) == wanted
    with counted(grounder) as counts:
        assert session.ask(QUESTIONS, batch_size=3) == wanted
    assert counts["read"] == counts["frames"] == 0
    texts = ["it falls", "it moves"]
    assert session.ask(text=texts, task="tvg") == [session.ask(text=text, task="tvg") for text in texts]
    assert session.ask([{"text": "it falls"}, QUESTIONS[3] | {"task": None}], task="tvg")[0] == session.ask(**QUESTIONS[0])


@pytest.mark.parametrize("medium", ["image", "frames"])
def test_session_of_pixels_answers_as_the_pipeline(grounder, medium):
    inputs = {"image": PICTURE} if medium == "image" else {"video": list(moving_frames(12, 48, 64)), "fps": 4}
    question = {"task": "reg", "box": [1, 2, 30, 40]} if medium == "image" else {"task": "tr", "span": (0.5, 2)}
    assert grounder.open(inputs, max_new_tokens=6).ask(**question) == grounder(inputs, max_new_tokens=6, **question)


def test_session_of_frames_without_rate_refuses_seconds(grounder):
    session = grounder.open({"video": list(moving_frames(4, 48, 64))})
    with pytest.raises(ValueError, match="span: the frame rate of the video is unknown"):
        session.ask(task="tr", span=(0, 1))


def test_session_serves_what_was_opened(grounder, video, tmp_path):
    path = tmp_path / "current.mp4"
    shutil.copyfile(video, path)
    session = grounder.open(path, max_new_tokens=6)
    wanted = session.ask(text="a")
    path.write_bytes(b"damaged")
    assert session.ask(text="a") == wanted == grounder(video, text="a", max_new_tokens=6)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"speculative": False}, {"speculative": True}], ids=str)
def test_session_follow_up_answers_as_a_chat(grounder, video, options):
    session, options = grounder.open(video), {"max_new_tokens": 6, **options}
    first = session.ask(text="From <t1.25s> on?", **options)
    with counted(grounder) as counts:
        second = session.follow_up(text="Where is it at <t2.5s>?", **options)
        third = session.follow_up(task="svg", span=(1.5, 2), text="it", **options)
    assert [Grounding.from_dict(answer).to_dict() for answer in (first, second, third)] == [first, second, third]
    assert counts["read"] == counts["frames"] == 0
    chat = [user(film(video), "From <t1.25s> on?"), reply(first), user("Where is it at <t2.5s>?")]
    assert {**grounder(chat, **options), "query": "Where is it at <t2.5s>?"} == second
    chat += [reply(second), user(*task_content("svg", text="it", span=(1.5, 2)))]
    assert grounder(chat, **options)["text"] == third["text"]


def reply(result: dict) -> dict:
    return {"role": "assistant", "content": result["text"]}


def test_session_follow_up_processes_only_new_tokens(grounder, video):
    session = grounder.open(video)
    written = "It falls."
    session.ask(text="a", logits_processor=[Script(grounder, [written])], max_new_tokens=50)
    with counted(grounder) as counts:
        session.follow_up(text="b", max_new_tokens=1)
    new = "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"  # the first of them was not processed in the answer
    tokens = len(grounder.processor.tokenizer(new)["input_ids"])
    assert counts["tokens"] == tokens


def test_session_follow_up_with_the_answer_written_otherwise_answers_as_the_chat(grounder, video):
    session = grounder.open(video, max_new_tokens=40)
    first = session.ask(text="a", logits_processor=[Script(grounder, ["  It falls. <TEMP-010>  "])])
    assert first["text"] == "It falls. <TEMP-010>"
    wanted = grounder([user(film(video), "a"), reply(first), user("b")], max_new_tokens=6)
    assert session.follow_up(text="b", max_new_tokens=6) == {**wanted, "query": "b"}


def test_session_streams_the_answers_of_ask_and_follow_up(grounder, video):
    session, streamed = grounder.open(video, max_new_tokens=12), grounder.open(video, max_new_tokens=12)
    first, second = session.ask(text="From <t1.25s> on?"), session.follow_up(text="Where is it?")
    parts = list(streamed.stream(text="From <t1.25s> on?"))
    assert parts[-1] == {"type": "answer", "answer": first}
    assert "".join(part["text"] for part in parts if part["type"] == "text").strip() == first["text"]
    assert list(streamed.stream(follow_up=True, text="Where is it?"))[-1]["answer"] == second


def test_session_stream_closed_early_leaves_the_session_usable(grounder, video):
    session = grounder.open(video, max_new_tokens=12)
    wanted = session.ask(text="it falls", task="tvg")
    stream = session.stream(follow_up=True, text="Where is it?")
    next(stream)
    stream.close()
    with pytest.raises(ValueError, match="follow_up continues the chat of one question, but there is none"):
        session.stream(follow_up=True, text="And then?")
    assert session.ask(text="it falls", task="tvg") == wanted


def test_session_ask_after_a_follow_up_begins_anew(grounder, video):
    session = grounder.open(video, max_new_tokens=6)
    first = session.ask(text="What?")
    session.follow_up(text="And then?")
    assert session.ask(text="What?") == first


def test_session_keeps_the_states_of_one_prefix(grounder, video):
    session = grounder.open(video)
    session.ask(text=["a", "b"], max_new_tokens=2)
    (states,) = session._states.states.values()
    assert states.length == prefix_length(grounder, video) and session._medium.find(None).pixels == {}
    session.close()
    assert session._states is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"text": "a", "clip": [0, 5]}, "clip: the image or video has been read already. Pass this to `open`"),
        ({"text": "a", "num_frames": 5}, "num_frames: the image or video has been read"),
        ({"task": "rec", "text": "a"}, "task='rec' is a task for images, but the input is a video"),
        ({"task": "tr", "span": (8, 99)}, r"span=\(8, 99\)|span=\(8.0, 99.0\)"),
        ({}, "`text` must be a string"),
        ({"text": ["a", "b"], "task": ["tvg"]}, "text has 2, task has 1"),
        ({"questions": "a"}, "questions='a' must be a list of dictionaries"),
        ({"questions": [{"text": "a", "video": "b.mp4"}]}, "A question of a session has text, .*; got video"),
        ({"text": "a", "cache_implementation": "static"}, "A session keeps its keys and values in the default cache"),
        ({"text": "a", "use_cache": False}, "A session keeps its keys and values in the default cache"),
    ],
)  # fmt: skip
def test_session_invalid_question_raises_with_its_reason(grounder, video, kwargs, message):
    session = grounder.open(video)
    with pytest.raises(ValueError, match=message):
        session.ask(max_new_tokens=1, **kwargs)


def test_session_follow_up_without_one_question_raises(grounder, video):
    session = grounder.open(video, max_new_tokens=1)
    with pytest.raises(ValueError, match="Call `ask` with a single question first"):
        session.follow_up(text="a")
    session.ask(text=["a", "b"])
    with pytest.raises(ValueError, match="Call `ask` with a single question first"):
        session.follow_up(text="a")
    session.ask(text="a")
    with pytest.raises(ValueError, match="follow_up takes one question"):
        session.follow_up(text=["a", "b"])


def test_session_closed_or_opened_with_a_question_raises(grounder, video):
    with grounder.open(video) as session:
        pass
    with pytest.raises(ValueError, match="This session is closed"):
        session.ask(text="a")
    with pytest.raises(ValueError, match=r"text: the session is opened without a question\. Pass this to `ask`"):
        grounder.open(video, text="a")
    with pytest.raises(OSError, match=r"missing\.mp4"):
        grounder.open("missing.mp4")
    with pytest.raises(ValueError, match="clip can only be given for a video"):
        grounder.open(PICTURE, clip=[0, 1])


def test_session_opens_with_one_pass_of_encoder_and_decoder(grounder, video):
    with counted(grounder) as counts:
        grounder.open(video)
    assert counts == {"read": 1, "frames": NUM_FRAMES, "tokens": prefix_length(grounder, video)}
