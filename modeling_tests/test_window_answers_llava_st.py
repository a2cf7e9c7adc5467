# SPDX-License-Identifier: Apache-2.0
"""Questions that are asked for several windows of a video: `window`, `overlap` and `all` of the pipeline."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

from llava_st_hf import DEMO_MODEL_PATH, Grounding, LlavaSTForConditionalGeneration
from llava_st_hf.model.presence_llava_st import as_answer, set_presence_calibration
from llava_st_hf.model.video_decoding_llava_st import VideoFileReader, open_video_file
from llava_st_hf.model.video_frames_llava_st import OpenedVideo
from llava_st_hf.model.video_metadata_llava_st import LlavaSTVideoMetadata
from llava_st_hf.model.video_windows_llava_st import OnePassReader, window_frames
from llava_st_hf.model.windows_llava_st import temporal_iou
from llava_st_hf.shapes.long_videos import absent_text, long_video, unique_instances
from modeling_tests.media import moving_frames, write_timed_video, write_video
from modeling_tests.test_pipeline_llava_st import Script


TVG = {"task": "tvg", "text": "it falls"}
SURE = {"text": 1e-6, "offset": 8.0}  # a calibration with which every event is present


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Path of a video of 64×48, 100 frames at 10 frames per second."""
    return str(write_video(tmp_path_factory.mktemp("media") / "video.mp4", moving_frames(100, 48, 64), fps=10))


@pytest.fixture
def calibrated(grounder):
    """Sets a calibration of the presence for a test."""
    yield lambda calibration: set_presence_calibration(grounder.model.generation_config, calibration)
    set_presence_calibration(grounder.model.generation_config, None)


def say(grounder, inputs, *batches, **kwargs):
    """The result of the pipeline for answers that the model is forced to generate, batch after batch."""
    return grounder(
        inputs, logits_processor=[Script(grounder, *batches)], max_new_tokens=60, speculative=False, scores=False, **{**TVG, **kwargs}
    )


def spans(answer):
    return [(event["start"], event["end"]) for event in answer["events"]]


# Windows


@given(st.integers(2, 400), st.floats(0.5, 60.0), st.floats(0.0, 0.9), st.sampled_from([1.0, 7.5, 10.0, 29.97]))
def test_window_frames_cover_the_clip_with_windows_of_equal_length(num_frames, window, share, fps):
    metadata = LlavaSTVideoMetadata(total_num_frames=num_frames + 7, fps=fps)
    windows = window_frames(metadata, 5, 4 + num_frames, window, share * window)
    assert windows[0][0] == 5 and windows[-1][1] == 4 + num_frames
    assert all(later[0] <= earlier[1] + 1 for earlier, later in pairwise(windows))
    lengths = [last - first + 1 for first, last in windows]
    assert max(lengths) - min(lengths) <= 2 and (len(windows) == 1 or min(lengths) >= int(window * fps) - 1)
    if len(windows) > 1:  # one fewer would not have the overlap
        assert (len(windows) - 1) * window - (len(windows) - 2) * share * window < num_frames / fps + 1e-5


def test_window_frames_of_a_varying_rate_have_equal_times(tmp_path):
    times = [0.0, 0.1, 0.2, 0.3, 1.3, 2.3, 2.4, 3.3, 3.4, 4.3]
    metadata = open_video_file(str(write_timed_video(tmp_path / "timed.mp4", times))).metadata
    windows = window_frames(metadata, 0, 9, 2.0, 0.0)
    assert len(windows) == 3 and windows[0] == (0, 5 - 1) and windows[-1][1] == 9


def test_one_pass_reader_gives_the_frames_of_each_window_and_decodes_each_once(grounder, video, monkeypatch):
    processor, decoded, opened = grounder.processor.video_processor, [], []
    plain = VideoFileReader._frames

    def recorded(self, indices):
        opened.append(self)
        for index, image in zip(indices, plain(self, indices), strict=True):
            decoded.append(index)
            yield image

    windows = [(0, 39), (20, 59), (40, 79), (60, 99)]
    wanted = [processor(video, clips=[{"frames": list(frames)}], num_frames=6)["pixel_values_videos"][0] for frames in windows]
    monkeypatch.setattr(VideoFileReader, "_frames", recorded)
    file = open_video_file(video)
    reader = OnePassReader(file, [processor.clip_indices(file.metadata, frames, 6) for frames in windows])
    for frames, pixels in zip(windows, wanted, strict=True):
        given = processor(OpenedVideo(reader), clips=[{"frames": list(frames)}], num_frames=6)["pixel_values_videos"][0]
        assert torch.equal(given, pixels)
        assert len(reader._kept) <= 6
    assert len(opened) == 1 and decoded == sorted(set(decoded))


def test_one_pass_reader_with_other_frames_than_requested_is_an_error(video):
    reader = OnePassReader(open_video_file(video), [[0, 5]])
    with pytest.raises(ValueError, match=r"order of the requests, got \[0, 6\]"):
        next(reader.chunks([0, 6]))


# Answers


def test_pipeline_window_merges_answers_in_seconds_of_the_file(grounder, video, calibrated):
    calibrated(SURE)
    # Windows of 40 frames: 0–4, 3–7 and 6–10 s; bin 99 is the last frame. The first event continues in the second window.
    texts = ["{<TEMP-050><TEMP-099>}", "{<TEMP-000><TEMP-050>}", "{<TEMP-060><TEMP-080>}"]
    answer = say(grounder, video, texts, window=4.0, overlap=0.0)
    assert spans(answer) == [(1.97, 4.97)] and answer["events"][0]["presence"] == answer["presence"] == 0.9997
    assert answer["text"].splitlines() == texts[:2]
    assert answer["media"] == grounder(video, **TVG, max_new_tokens=1)["media"]
    assert answer["notes"] == [
        "The question was asked for 3 windows of 4 s: 3 of 3 events have a presence of at least 0.5.",
        "3 events of windows were merged to 2.",
        "Of 2 events, the one with the highest score is returned. all=True returns every one that is present.",
    ]


def test_pipeline_all_asks_about_the_parts_outside_events_and_returns_every_event(grounder, video, calibrated):
    calibrated(SURE)
    windows = ["{<TEMP-050><TEMP-099>}", "{<TEMP-000><TEMP-050>}", "{<TEMP-060><TEMP-080>}"]
    # Parts of at least 1.2 s outside them: 0 to 1.97 s, 4.97 to 7 s, and 6 to 8.364 s. An answer that fills a part leaves no other.
    parts = ["{<TEMP-010><TEMP-090>}", "nothing", "{<TEMP-000><TEMP-099>}"]
    answer = say(grounder, video, windows, parts, window=4.0, overlap=0.0, all=True)
    assert spans(answer) == [(0.192, 1.727), (1.97, 4.97), (6.0, 8.3), (8.364, 9.152)]
    assert answer["notes"][0].startswith("The question was asked for 3 windows of 4 s and 3 parts of windows: 5 of 5 events")
    assert "An event without a span was left out." in answer["notes"][-1] or "no valid time" in answer["notes"][-1]


def test_pipeline_all_without_a_present_event_has_no_events_and_says_so(grounder, video, calibrated):
    calibrated({"text": 1e-6, "offset": -3.0, "threshold": 0.5})
    answer = say(grounder, video, ["{<TEMP-010><TEMP-020>}"] * 3, window=4.0, overlap=0.0, all=True)
    assert answer["events"] == [] and answer["presence"] == 0.0474 and answer["text"] == ""
    assert answer["notes"][-1] == "What is described was not found: the highest presence is 0.0474, the threshold 0.5."
    one = say(grounder, video, ["{<TEMP-010><TEMP-020>}"] * 3, window=4.0, overlap=0.0)
    assert len(one["events"]) == 1 and one["notes"][-1].startswith("Its presence, 0.0474, is below the threshold of 0.5")


def test_pipeline_window_with_boxes_has_frames_and_pixels_of_the_file(grounder, video, calibrated):
    calibrated(SURE)
    corners = "[<WIDTH-025><HEIGHT-000><WIDTH-099><HEIGHT-099>]"
    text = "{<TEMP-000><TEMP-099>} <TEMP-050>: " + corners
    answer = say(
        grounder, video, [text], ["{<TEMP-000><TEMP-099>} <TEMP-049>: " + corners], task="stvg", window=5.0, overlap=0.0, batch_size=1
    )
    assert spans(answer) == [(0.0, 9.9)]  # two windows that one event fills
    boxes = answer["events"][0]["boxes"]
    assert [box["frame"] for box in boxes] == [25, 74] and boxes[0]["box"] == {"xmin": 16.16, "ymin": 0.0, "xmax": 64.0, "ymax": 48.0}
    assert Grounding.from_dict(answer).to_dict() == answer == json.loads(json.dumps(answer))


@pytest.fixture(scope="module")
def options():
    return {**TVG, "window": 4.0, "overlap": 1.0, "grammar": "tvg", "num_frames": 6, "max_new_tokens": 12}


def test_pipeline_window_answers_lists_and_generators_as_single_inputs(grounder, video, options):
    one = grounder(video, **options)
    other = grounder(video, **{**options, "text": "it moves", "batch_size": 2})
    assert grounder([video, {"video": video, "text": "it moves"}], **options) == [one, other]
    assert list(grounder((given for given in [video, video]), **options)) == [one, one]
    assert grounder(video, **{**options, "text": ["it falls", "it moves"]}) == [one, other]


def test_pipeline_window_answers_frames_as_the_file(grounder, video, options):
    frames = moving_frames(100, 48, 64)
    given = grounder({"video": frames}, fps=10, clip=[20, 79], **options)
    assert given["media"] == {**grounder(video, clip=[20, 79], **options)["media"]}
    timed = grounder({"video": frames}, timestamps=[number / 10 for number in range(100)], start=2.0, end=8.0, **options)
    assert spans(timed) == spans(given)


def test_pipeline_window_of_a_varying_rate_has_times_of_the_file(grounder, tmp_path, calibrated):
    calibrated(SURE)
    path = str(write_timed_video(tmp_path / "timed.mp4", [0.0, 0.1, 0.2, 0.3, 1.3, 2.3, 2.4, 3.3, 3.4, 4.3]))
    answer = say(grounder, path, ["{<TEMP-000><TEMP-099>}"], ["nothing"], ["nothing"], window=2.0, overlap=0.0, batch_size=1)
    assert spans(answer) == [(0.0, 1.3)]


def test_presence_is_the_mean_probability_of_the_description_after_the_question_about_the_span(grounder, video, calibrated):
    calibrated(None)
    answer = say(grounder, video, ["{<TEMP-010><TEMP-050>}"], all=True, text="it falls down")
    processor, span = grounder.processor, (10 / 99 * 9.9, 50 / 99 * 9.9)
    inputs = grounder.preprocess(video, task="tr", span=tuple(round(time, 3) for time in span))["model_inputs"]
    ids = torch.tensor([processor.tokenizer("It falls down.")["input_ids"] + [processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]])
    whole = torch.cat((inputs["input_ids"], ids), dim=1)
    exact = torch.cat((inputs["coordinate_values"], torch.full(ids.shape, float("nan"))), dim=1)
    with torch.no_grad():
        logits = grounder.model(
            input_ids=whole, coordinate_values=exact, pixel_values_videos=inputs["pixel_values_videos"], logits_to_keep=ids.shape[1] + 1
        ).logits
    wanted = logits[0, :-1].softmax(-1).gather(1, ids[0, :, None]).mean().item()
    assert answer["presence"] == pytest.approx(wanted, abs=1e-3) and answer["presence"] > 1e-3


@pytest.mark.parametrize(("text", "wanted"), [("it falls", "It falls."), (" It falls! ", "It falls!"), ("a", "A.")])
def test_as_answer_has_a_capital_and_a_full_stop(text, wanted):
    assert as_answer(text) == wanted


def test_presence_calibration_is_saved_with_the_model(grounder, tmp_path, calibrated):
    calibrated({"text": 2.5, "threshold": 0.25})
    grounder.model.save_pretrained(tmp_path)
    loaded = LlavaSTForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert loaded.presence_calibration == {"text": 2.5, "span": 0.0, "offset": 0.0, "threshold": 0.25}


@pytest.mark.parametrize(
    "calibration", [{"text": 0}, {"span": -1}, {"threshold": 1.5}, {"other": 1}, {"text": "1"}, [1, 2], {"offset": np.nan}]
)
def test_presence_calibration_that_is_not_valid_is_an_error(grounder, calibration):
    with pytest.raises(ValueError, match="presence_calibration must map some of text, span, offset, threshold to numbers"):
        set_presence_calibration(grounder.model.generation_config, calibration)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"window=0 must be a number of seconds above 0"),
        ({"window": "4"}, r"window='4' must be a number of seconds"),
        ({"window": float("nan")}, r"window=nan must be"),
        ({"window": True}, r"window=True must be"),
        ({"window": 4, "overlap": 4}, r"overlap=4 must be a number of seconds from 0 to below window=4"),
        ({"window": 4, "overlap": -1}, r"overlap=-1 must be"),
        ({"overlap": 0}, r"overlap=0 is that of windows: give `window`"),
        ({"all": "yes"}, r"all='yes' must be True or False"),
        ({"window": 4, "batch_size": 0}, r"batch_size=0 must be a whole number"),
        ({"window": 4, "num_frames": 0}, r"num_frames must be a whole number"),
        ({"window": 4, "num_workers": 2}, r"num_workers does not go with window"),
        ({"window": 4, "output_scores": True}, r"output_scores do not go with window"),
        ({"window": 4, "use_cache": False}, r"need the default cache"),
        ({"window": 4, "processor_kwargs": {"fps": 2}}, r"processor_kwargs=\{'fps': 2\} do not go with window"),
        ({"window": 4, "task": "svg", "span": (1, 2)}, r"task='svg' does not go with window and all.*tvg and stvg"),
        ({"window": 4, "task": None}, r"task=None does not go with window"),
        ({"window": 4, "text": " "}, r"text=' ' must be a string that is not blank"),
        ({"window": 4, "clip": [5, 2]}, r"last frame of a clip \(2\) must not be before the first"),
        ({"window": 1e-4}, r"gives 100000 windows.*at most 10000|gives \d+ windows for 10.000 s; at most 10000"),
    ],
)
def test_pipeline_window_with_a_bad_argument_is_an_error_before_anything_is_decoded(grounder, video, arguments, message, monkeypatch):
    monkeypatch.setattr(VideoFileReader, "chunks", lambda *args: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=message):
        grounder(video, **{**TVG, **arguments})


def test_pipeline_window_with_another_input_is_an_error(grounder, video):
    with pytest.raises(ValueError, match="the input is an image"):
        grounder({"image": np.zeros((8, 8, 3), np.uint8)}, window=4, **TVG)
    with pytest.raises(ValueError, match="A chat is about one window"):
        grounder([{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": "x"}]}], window=4)
    with pytest.raises(ValueError, match="A prepared question is about one window"):
        grounder(grounder.preprocess(video, **TVG), window=4)
    with pytest.raises(ValueError, match="need the times of frames: give `fps`"):
        grounder({"video": moving_frames(10, 8, 8)}, window=4, **TVG)
    with pytest.raises(ValueError, match=r"^text=' '"):  # of the second input, before the first is answered
        grounder([video, {"video": video, "text": " "}], window=4, **TVG)


@pytest.mark.parametrize("arguments", [{"window": 4.0}, {"all": True}, {"overlap": 1.0}])
def test_sessions_streams_and_defaults_refuse_windows(grounder, video, arguments):
    message = "can only be given to a call of the pipeline"
    with pytest.raises(ValueError, match=message):
        grounder.open(video, **arguments)
    with pytest.raises(ValueError, match=message):
        grounder.stream(video, **TVG, **arguments)
    with pytest.raises(ValueError, match=message):
        pipeline("video-grounding", model=grounder.model, processor=grounder.processor, **arguments)


# The demo model


def test_demo_model_finds_events_of_a_minute_in_windows_and_that_another_does_not_occur(tmp_path):
    demo, made = pipeline("video-grounding", model=DEMO_MODEL_PATH, dtype="float32"), long_video("test", 0, 60)
    path = str(tmp_path / "minute.mp4")
    made.write(path)
    asked = [unique_instances(made)[place] for place in (0, 16)]
    texts = [instance.text for instance in asked] + [absent_text(made, np.random.default_rng(0))]
    answers = demo(path, text=texts, task="tvg", window=4.0, overlap=1.0, all=True, batch_size=32)
    for answer, instance in zip(answers, asked, strict=False):
        (span,) = spans(answer)
        assert temporal_iou(span, (instance.start, instance.end)) >= 0.5 and answer["presence"] > 0.9
    assert answers[-1]["events"] == [] and answers[-1]["presence"] < 0.5
    one_look = demo(path, text=texts[:2], task="tvg")
    assert not any(temporal_iou(spans(answer)[0], (one.start, one.end)) >= 0.3 for answer, one in zip(one_look, asked, strict=True))
