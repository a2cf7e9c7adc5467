# SPDX-License-Identifier: Apache-2.0
import json
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteriaList, pipeline

from llava_st_hf import DownloadLimits, Grounding, LlavaSTForConditionalGeneration, LlavaSTProcessor, VideoGroundingPipeline
from modeling_tests.media import moving_frames, write_video
from modeling_tests.processors import model_for, tiny_processor
from modeling_tests.reference import ORIGINAL_CHECKPOINT, config_overrides


PICTURE = Image.fromarray(np.zeros((50, 100, 3), np.uint8))
NOWHERE = "The answer has no valid time or box."


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Writes 100 frames of 64×48 at 10 frames per second: bin k is frame k at k/10 s."""
    return str(write_video(tmp_path_factory.mktemp("media") / "video.mp4", moving_frames(100, 48, 64), fps=10))


@pytest.fixture(scope="module")
def grounder():
    processor = tiny_processor()
    return pipeline("video-grounding", model=model_for(processor), processor=processor)


class Script(LogitsProcessor):
    """Forces `generate` to produce given answers, one per row of the batch, batch after batch."""

    def __init__(self, grounder, *batches, end="<|im_end|>"):
        tokenizer = grounder.processor.tokenizer
        self.batches = [[tokenizer(text + end)["input_ids"] for text in batch] for batch in batches]
        self.step, self.pad = 0, tokenizer.pad_token_id

    def __call__(self, input_ids, scores):
        rows = self.batches[0]
        assert len(rows) == len(input_ids)
        wanted = [ids[self.step] if self.step < len(ids) else self.pad for ids in rows]
        self.step += 1
        if self.step == max(map(len, rows)):
            self.batches.pop(0)
            self.step = 0
        forced = torch.full_like(scores, -torch.inf)
        forced[range(len(rows)), wanted] = 0
        return forced


def asked(grounder, monkeypatch):
    """Returns a list to which each prompt of the pipeline is appended, as text without media tokens."""
    prompts, template = [], grounder.processor.apply_chat_template

    def record(messages, **kwargs):
        inputs = template(messages, **kwargs)
        prompts.append(grounder.processor.decode_answer(inputs["input_ids"][0]))
        return inputs

    monkeypatch.setattr(grounder.processor, "apply_chat_template", record)
    return prompts


# Of the answers about the video of this file and PICTURE.
FILM = {
    "kind": "video",
    "width": 64,
    "height": 48,
    "fps": 10.0,
    "first_frame": 0,
    "last_frame": 99,
    "total_num_frames": 100,
    "duration": 10.0,
}
PHOTO = {"kind": "image", "width": 100, "height": 50, "fps": None, "first_frame": 0, "last_frame": 0}


def say(grounder, inputs, written, **kwargs):
    """Returns the pipeline's result for an answer that the model is forced to generate."""
    answer = grounder(inputs, logits_processor=[Script(grounder, [written])], max_new_tokens=200, **kwargs)
    for one in answer if isinstance(answer, list) else [answer]:
        assert Grounding.from_dict(one).to_dict() == {name: value for name, value in one.items() if name != "generation"}
    return answer


# Answers in seconds and pixels of the original file


def test_pipeline_span_is_in_seconds_of_the_file(grounder, video):
    answer = say(grounder, video, "During {<TEMP-025><TEMP-086>}.", text="falls", task="tvg")
    assert answer == {
        "text": "During {<TEMP-025><TEMP-086>}.",
        "events": [{"start": 2.5, "end": 8.6, "caption": None, "boxes": []}],
        "notes": [],
        "media": FILM,
        "task": "tvg",
        "query": "falls",
    }
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize("clip", [{"clip": [40, 59]}, {"start": 4.0, "end": 6.0}])
def test_pipeline_clip_times_count_from_the_start_of_the_file(grounder, video, clip):
    answer = say(
        grounder, video, "{<TEMP-000><TEMP-099>}. <TEMP-050>:[<WIDTH-000><HEIGHT-099><WIDTH-099><HEIGHT-099>]", text="When?", **clip
    )
    box = {"xmin": 0.0, "ymin": 48.0, "xmax": 64.0, "ymax": 48.0}
    # frame 40 + round(50/99 · 19) = 50; 40 + 50/99 · 19 = 49.596 in time
    moment = {"time": 4.96, "frame": 50, "box": box}
    assert answer["events"] == [{"start": 4.0, "end": 5.9, "caption": None, "boxes": [moment]}] and answer["notes"] == []


def test_pipeline_image_gives_boxes_without_times(grounder):
    answer = say(grounder, PICTURE, "[<WIDTH-000><HEIGHT-033><WIDTH-099><HEIGHT-066>]", text="the cat", task="rec")
    box = {"xmin": 0.0, "ymin": 16.67, "xmax": 100.0, "ymax": 33.33}
    assert answer["events"] == [{"caption": None, "boxes": [{"box": box}]}] and answer["notes"] == []


TASK_CASES = {
    "rec": ({"image": PICTURE, "text": "the cat"}, "[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]"),
    "reg": ({"image": PICTURE, "box": [10, 5, 90, 45]}, "a cat"),
    "dgc": ({"image": PICTURE}, "a cat [<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]"),
    "tvg": ({"text": "falls"}, "{<TEMP-010><TEMP-020>}"),
    "tr": ({"span": (1.0, 2.0)}, "a man falls."),
    "stvg": ({"text": "falls"}, "{<TEMP-010><TEMP-020>} <TEMP-015>:[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]"),
    "svg": ({"span": (1.0, 2.0), "text": "falls"}, "<TEMP-015>:[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]"),
    "elc": (
        {"time": 1.0, "box": [1, 2, 30, 40]},
        "Ends in <TEMP-020>, a man falls. Object bounding box: <TEMP-015>:[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>].",
    ),
}
WHOLE_PICTURE = {"box": {"xmin": 0.0, "ymin": 0.0, "xmax": 100.0, "ymax": 50.0}}
WHOLE_FRAME = {"time": 1.5, "frame": 15, "box": {"xmin": 0.0, "ymin": 0.0, "xmax": 64.0, "ymax": 48.0}}
TASK_EVENTS = {
    "rec": {"caption": None, "boxes": [WHOLE_PICTURE]},
    "reg": {"caption": "a cat", "boxes": [{"box": {"xmin": 10.0, "ymin": 5.0, "xmax": 90.0, "ymax": 45.0}}]},
    "dgc": {"caption": "a cat", "boxes": [WHOLE_PICTURE]},
    "tvg": {"start": 1.0, "end": 2.0, "caption": None, "boxes": []},
    "tr": {"start": 1.0, "end": 2.0, "caption": "a man falls", "boxes": []},
    "stvg": {"start": 1.0, "end": 2.0, "caption": None, "boxes": [WHOLE_FRAME]},
    "svg": {"start": 1.0, "end": 2.0, "caption": None, "boxes": [WHOLE_FRAME]},
    "elc": {"start": 1.0, "end": 2.0, "caption": "a man falls", "boxes": [WHOLE_FRAME]},
}


@pytest.mark.parametrize("task", TASK_CASES)
def test_pipeline_every_task_gives_seconds_and_pixels(grounder, video, task):
    question, text = TASK_CASES[task]
    inputs = question if "image" in question else {"video": video, **question}
    answer = say(grounder, {**inputs, "task": task}, text)
    known = {"media": PHOTO if "image" in question else FILM, "task": task} | ({"query": question["text"]} if "text" in question else {})
    assert answer == {"text": text, "events": [TASK_EVENTS[task]], "notes": [], **known}


def test_pipeline_elc_with_span_starts_the_event_at_the_start_of_the_span(grounder, video):
    written = "a man falls. <TEMP-015>:[<WIDTH-000><HEIGHT-000><WIDTH-099><HEIGHT-099>]"
    (event,) = say(grounder, video, written, task="elc", span=(1.0, 4.0), box=[1, 2, 30, 40])["events"]
    assert event["start"] == 1.0 and event["end"] is None


@pytest.mark.parametrize(
    "question, message",
    [
        ({"task": "tr", "span": (1.0, 99.0)}, r"^span=\(1\.0, 99\.0\) is outside the clip, which lasts from 0 to 10 seconds\.$"),
        ({"task": "elc", "time": 99, "box": [1, 2, 30, 40]}, r"^time=99\.0 is outside the clip"),
        ({"task": "elc", "time": 1, "box": [1, 2, 300, 40]}, r"^box=\(1\.0, 2\.0, 300\.0, 40\.0\) is outside the video, whose width is 64"),
        ({"text": "What is at <t99s>?"}, r"^<t99s> is outside the clip"),
    ],
)
def test_pipeline_value_outside_the_video_raises_with_the_argument_name(grounder, video, question, message):
    with pytest.raises(ValueError, match=message):
        grounder(video, max_new_tokens=1, **question)


def test_pipeline_answer_with_lone_surrogates_is_encodable(grounder, video, monkeypatch):
    monkeypatch.setattr(grounder.processor, "decode_answer", lambda ids: "a \ud800 {<TEMP-010><TEMP-020>}")
    answer = grounder(video, text="x", task="tvg", max_new_tokens=1)
    json.dumps(answer, ensure_ascii=False).encode("utf-8")
    assert answer["events"][0]["caption"] == "a \ufffd" and "U+FFFD" in answer["notes"][0]


def test_pipeline_seconds_and_pixels_are_quantized_in_the_prompt(grounder, video, monkeypatch):
    prompts = asked(grounder, monkeypatch)
    grounder(video, task="elc", time=1.0, box=[0, 0, 32, 48], max_new_tokens=1)
    assert "Starts in <TEMP-010>, what happened" in prompts[0]
    assert "region [<WIDTH-000><HEIGHT-000><WIDTH-050><HEIGHT-099>]?" in prompts[0]


# Kinds of input


def mixed(video):
    return [
        {"video": video, "text": "falls", "task": "tvg"},
        {"image": PICTURE, "task": "dgc"},
        {"image": PICTURE, "text": "What is at [<w0.1><h0.1><w0.2><h0.2>]?"},
        {"video": moving_frames(12, 48, 64), "text": "When?", "clip": [3, 9]},
        [{"role": "user", "content": "Only text."}],
    ]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_pipeline_batch_of_mixed_media_equals_single_inputs(grounder, video, batch_size):
    inputs = mixed(video)
    # transformers recognizes chats by the first item of a list, so a chat can follow dictionaries
    one_by_one = [grounder(item, max_new_tokens=8) for item in inputs]
    assert grounder(inputs, max_new_tokens=8, batch_size=batch_size) == one_by_one


def test_pipeline_generator_is_streamed(grounder):
    taken = []

    def questions():
        for index in range(6):
            taken.append(index)
            yield {"image": PICTURE, "text": f"Question {index}"}

    answers = grounder(questions(), max_new_tokens=2)
    assert not isinstance(answers, list) and len(taken) <= 1  # transformers reads the first item in advance
    next(answers)
    assert len(taken) < 6
    assert len(list(answers)) == 5 and taken == list(range(6))


def test_pipeline_dataset_is_streamed(grounder):
    class Questions(Dataset):
        seen = []

        def __len__(self):
            return 4

        def __getitem__(self, index):
            self.seen.append(index)
            return {"image": PICTURE, "text": "Where?"}

    dataset = Questions()
    answers = iter(grounder(dataset, max_new_tokens=2))
    next(answers)
    assert len(dataset.seen) < 4
    assert len(list(answers)) == 3


def test_pipeline_chats_and_lists_of_chats_are_accepted(grounder, video):
    chat = [{"role": "user", "content": [{"type": "video", "path": video}, "When? ", {"type": "span", "start": 1, "end": 2}]}]
    answer = say(grounder, chat, "{<TEMP-010><TEMP-020>}")
    assert answer["events"] == [{"start": 1.0, "end": 2.0, "caption": None, "boxes": []}]
    assert len(grounder([chat, chat], max_new_tokens=2)) == 2
    assert grounder([{"role": "user", "content": "Hello"}], max_new_tokens=2)["events"] == []


@pytest.mark.parametrize("kind", ["path", "Path", "pil", "array", "tensor", "frames"])
def test_pipeline_media_without_dictionary_equal_media_in_a_dictionary(grounder, tmp_path, kind):
    PICTURE.save(tmp_path / "a.png")
    media, medium = {
        "path": (str(tmp_path / "a.png"), "image"),
        "Path": (tmp_path / "a.png", "image"),
        "pil": (PICTURE, "image"),
        "array": (np.asarray(PICTURE), "image"),
        "tensor": (torch.zeros(5, 3, 48, 64, dtype=torch.uint8), "video"),
        "frames": ([PICTURE, PICTURE], "video"),
    }[kind]
    expected = grounder({medium: media, "text": "What?"}, max_new_tokens=3)
    # a bare list is a list of inputs
    assert (
        grounder([media], text="What?", max_new_tokens=3)[0] if kind == "frames" else grounder(media, text="What?", max_new_tokens=3)
    ) == expected


def test_pipeline_text_of_an_input_overrides_that_of_the_call(grounder, video, monkeypatch):
    prompts = asked(grounder, monkeypatch)
    grounder([{"video": video, "text": "own"}, {"video": video}], text="shared", max_new_tokens=1)
    assert "own" in prompts[0] and "shared" in prompts[1]


@pytest.mark.parametrize("name", ["clip.mp4", "photo.png"])
def test_pipeline_download_limits_apply_to_media_urls(grounder, name):
    url = f"http://127.0.0.1:9/{name}"
    with pytest.raises(OSError, match="not one of those allowed: media"):
        grounder(url, text="What?", download_limits=DownloadLimits(allowed_hosts=["media.example"]))
    with pytest.raises(OSError, match="refused"):
        grounder(url, text="What?", download_limits=DownloadLimits(allowed_hosts=["127.0.0.1"]))


def test_pipeline_num_frames_sets_the_number_of_sampled_frames(grounder, video, monkeypatch):
    shapes = []
    generate = type(grounder.model).generate

    def record(self, **kwargs):
        shapes.append(kwargs["pixel_values_videos"].shape[1])
        return generate(self, **kwargs)

    monkeypatch.setattr(type(grounder.model), "generate", record)
    grounder(video, text="When?", num_frames=5, max_new_tokens=1)
    assert shapes == [5]


# Invalid questions


@pytest.mark.parametrize(
    "inputs, kwargs, message",
    [
        ({"image": PICTURE}, {"task": "tvg", "text": "x"}, "task='tvg' is a task for videos, but the input is an image"),
        ([PICTURE] * 2, {"task": "tvg", "text": "x"}, 'is an image. Frames of a video are given as {"video": frames}'),
        ({"video": "v"}, {"task": "rec", "text": "x"}, "task='rec' is a task for images"),
        ({"image": PICTURE}, {"task": "nonsense"}, "task='nonsense' is not a valid task"),
        ({"image": PICTURE}, {"task": "rec"}, "text is missing"),
        ({"image": PICTURE}, {"task": "dgc", "box": [1, 2, 3, 4]}, "box is not used"),
        ({"image": PICTURE}, {}, "`text` must be .* got text=None"),
        ({"image": PICTURE}, {"text": "   "}, "must be a string that is not blank"),
        ({"image": PICTURE}, {"text": 5}, "got text=5"),
        ({"image": PICTURE}, {"text": "x", "box": [1, 2, 3, 4]}, "box need a task"),
        ({"image": PICTURE}, {"text": "x", "clip": [1, 2]}, "clip can only be given for a video"),
        ({"image": PICTURE, "video": "v", "text": "x"}, {}, "exactly one of 'video' and 'image'"),
        ({"picture": PICTURE, "text": "x"}, {}, "exactly one of 'video' and 'image'"),
        ({"image": PICTURE, "prompt": "x"}, {}, "got image, prompt"),
        (5, {"text": "x"}, "Media must be a path"),
        ([{"role": "user", "content": "Hi"}], {"task": "tvg"}, "`task` cannot be combined with chat messages"),
        ({"image": PICTURE}, {"task": "reg", "box": [50, 5, 10, 20]}, "is reversed"),
        ({"image": PICTURE}, {"task": "reg", "box": [0, 0, 500, 20]}, "is outside the image, whose width is 100"),
        ({"image": PICTURE}, {"task": "reg", "box": [0, 0, float("nan"), 20]}, "finite number"),
        ({"image": PICTURE}, {"task": "reg", "box": 7}, "A box has four numbers"),
        ({"image": PICTURE}, {"task": "reg", "box": {"xmin": 1, "ymin": 2, "xmax": 3}}, "has no 'ymax'"),
        ({"image": PICTURE}, {"task": "rec", "text": "  "}, "text='  ' must be a string that is not blank"),
        ({"image": PICTURE}, {"task": "rec", "text": 5}, "text=5 must be a string"),
        ({"image": PICTURE}, {"task": "rec", "text": {"a": 1}}, "must be a string"),
        ({"image": PICTURE}, {"task": {"rec"}, "text": "x"}, "is not a valid task"),
        ({"video": "v"}, {"task": "elc", "box": [1, 2, 3, 4]}, "takes time and box: time is missing"),
        ((PICTURE, PICTURE), {"text": "x"}, 'Give frames as {"video": frames}'),
        ((), {"text": "x"}, "A tuple of 0 is not an input"),
        ({"role": "user"}, {}, 'with "role" and "content"'),
        ({"image": PICTURE}, {"text": "x", "fps": 5}, "fps can only be given for a video"),
        ({"image": PICTURE}, {"text": "x", "timestamps": [0]}, "timestamps can only be given for a video"),
        ({"video": "v.mp4"}, {"text": "x", "fps": 5}, "fps can only be given for a list or folder of frames"),
        ({"video": [PICTURE]}, {"text": "x", "fps": 0}, "fps must be a finite number .* above 0, got 0"),
        ({"video": [PICTURE]}, {"text": "x", "fps": "5"}, "fps must be a finite number .* above 0, got '5'"),
        ({"video": [PICTURE]}, {"text": "x", "fps": 5, "processor_kwargs": {"video_metadata": [{"fps": 5}]}}, "not both"),
        ({"video": [PICTURE] * 4}, {"task": "tr", "span": (0, 1)}, "span: the frame rate of the video is unknown. Give `fps`"),
        ({"video": [PICTURE] * 4}, {"text": "What is at <t0.1s>?"}, "<t0.1s>: the frame rate of the video is unknown. Give `fps`"),
        ({"image": PICTURE}, {"text": "x", "num_return_sequences": 2, "do_sample": True}, "num_return_sequences must be 1"),
    ],
)  # fmt: skip
def test_pipeline_invalid_question_raises_with_the_argument_name(grounder, inputs, kwargs, message):
    with pytest.raises(ValueError, match=message):
        grounder(inputs, max_new_tokens=1, **kwargs)


@pytest.mark.parametrize(
    "question, message",
    [
        ({"task": "tr", "span": (2.0, 1.0)}, "ends before it starts"),
        ({"task": "tr", "span": (1.0, 99.0)}, "is outside the clip, which lasts from 0 to 10 seconds"),
        ({"task": "tr", "span": 3.0}, "must be a pair"),
        ({"task": "tvg", "text": "x", "start": 5.0, "end": 5.0}, "must be after its start"),
        ({"task": "tvg", "text": "x", "clip": [50, 400]}, "beyond the video, which has 100 frames"),
        ({"task": "tvg", "text": "x", "clip": [50, 40]}, "must not be before the first"),
        ({"task": "tvg", "text": "x", "clip": 5}, "clip frames must be"),
        ({"task": "tvg", "text": "x", "clip": [0, 9], "end": 1.0}, "not both"),
    ],
)
def test_pipeline_invalid_time_or_clip_raises(grounder, video, question, message):
    with pytest.raises(ValueError, match=message):
        grounder(video, max_new_tokens=1, **question)


def test_pipeline_model_and_processor_of_different_vocabularies_raises():
    with pytest.raises(ValueError, match="Model and processor do not belong together: "):
        pipeline("video-grounding", model=model_for(tiny_processor(num_temporal_bins=50)), processor=tiny_processor(num_temporal_bins=60))


def test_pipeline_empty_list_gives_empty_list(grounder):
    assert grounder([]) == []


@pytest.mark.parametrize(
    "box", [(10, 5, 90, 45), np.array([10, 5, 90, 45]), torch.tensor([10.0, 5, 90, 45]), {"xmin": 10, "ymin": 5, "xmax": 90, "ymax": 45}]
)
def test_pipeline_box_of_any_type_is_accepted(grounder, box):
    assert say(grounder, {"image": PICTURE, "task": "reg", "box": box}, "a cat")["events"] == [TASK_EVENTS["reg"]]


@pytest.mark.parametrize("span", [[1.0, 2.0], np.array([1.0, 2.0]), {"start": 1.0, "end": 2.0}])
def test_pipeline_span_of_any_type_is_accepted(grounder, video, span):
    assert say(grounder, {"video": video, "task": "tr", "span": span}, "a man falls.")["events"] == [TASK_EVENTS["tr"]]


@pytest.mark.parametrize("frames", ["array", "list"])
def test_pipeline_frames_with_fps_give_seconds(grounder, frames):
    frames = moving_frames(100, 48, 64) if frames == "array" else [Image.fromarray(frame) for frame in moving_frames(100, 48, 64)]
    answer = say(grounder, {"video": frames, "fps": 10, "task": "tr", "span": (1.0, 2.0)}, "a man falls.")
    assert answer == {"text": "a man falls.", "events": [TASK_EVENTS["tr"]], "notes": [], "media": FILM, "task": "tr"}
    (answer,) = say(grounder, [{"video": frames, "text": "When?", "start": 4.0, "end": 6.0}], "{<TEMP-000><TEMP-099>}", fps=10)
    assert (answer["events"][0]["start"], answer["events"][0]["end"]) == (4.0, 5.9)


# Generation


def test_pipeline_cut_off_answer_has_a_note(grounder):
    answer = grounder(PICTURE, text="the cat", task="rec", max_new_tokens=3, logits_processor=[Script(grounder, ["abc"], end="")])
    assert answer == {
        "text": "abc",
        "events": [],
        "notes": [NOWHERE, "The answer was cut off after 3 tokens. Increase max_new_tokens to get all of it."],
        "media": PHOTO,
        "task": "rec",
        "query": "the cat",
    }


def test_pipeline_batch_only_cut_off_rows_have_a_note(grounder):
    script = Script(grounder, ["a", "abcdefgh"])
    done, cut = grounder([{"image": PICTURE, "text": "x"}] * 2, batch_size=2, max_new_tokens=4, logits_processor=[script])
    assert done["notes"] == [NOWHERE] and cut["notes"][-1].startswith("The answer was cut off after 4 tokens")


def test_pipeline_row_ended_by_a_stopping_criterion_is_not_cut_off(grounder):
    """Ends the first row after two tokens; `generate` pads it up to the limit, without an end token."""
    batch = [{"image": PICTURE, "text": "x"}] * 2

    def stops_first_row_after_two_tokens(input_ids, scores, **kwargs):
        letters = grounder.processor.tokenizer.decode(input_ids[0])
        return torch.tensor([letters.endswith("ab"), False], device=input_ids.device)

    script = Script(grounder, ["ab", "cdef"], end="")
    options = {"max_new_tokens": 4, "stopping_criteria": StoppingCriteriaList([stops_first_row_after_two_tokens])}
    done, cut = grounder(batch, batch_size=2, logits_processor=[script], **options)
    assert done["text"] == "ab" and done["notes"] == [NOWHERE]
    assert cut["text"] == "cdef" and cut["notes"][-1].startswith("The answer was cut off after 4 tokens")


@pytest.mark.parametrize(
    "end, kwargs",
    [
        ("", {"stop_strings": "c", "max_new_tokens": 9}),
        ("", {"stop_strings": ["c"], "max_new_tokens": 3}),
        ("", {"eos_token_id": "c", "max_new_tokens": 9}),
        ("", {"eos_token_id": "c", "max_new_tokens": 3}),
        ("<|im_end|>", {"max_length": 300}),
    ],
)
def test_pipeline_answer_ended_by_stop_string_or_end_token_is_not_cut_off(grounder, end, kwargs):
    tokenizer = grounder.processor.tokenizer
    if "eos_token_id" in kwargs:
        kwargs = {**kwargs, "eos_token_id": tokenizer.convert_tokens_to_ids(kwargs["eos_token_id"])}
    if "stop_strings" in kwargs:
        kwargs = {**kwargs, "tokenizer": tokenizer}
    answer = grounder(PICTURE, text="x", logits_processor=[Script(grounder, ["abc"], end=end)], **kwargs)
    assert answer == {"text": "abc", "events": [], "notes": [NOWHERE], "media": PHOTO, "query": "x"}


@pytest.mark.parametrize("where", ["max_length", "generation_config", "model"])
def test_pipeline_cut_off_by_any_length_limit_has_a_note(grounder, monkeypatch, where):
    kwargs = {}
    if where == "max_length":
        prompt = grounder.preprocess({"image": PICTURE, "text": "x"})["model_inputs"]["input_ids"].shape[1]
        kwargs = {"max_length": prompt + 3}
    elif where == "generation_config":
        kwargs = {"generation_config": GenerationConfig(max_new_tokens=3)}
    else:
        monkeypatch.setattr(grounder.model.generation_config, "max_new_tokens", 3)
    answer = grounder(PICTURE, text="x", logits_processor=[Script(grounder, ["abc"], end="")], **kwargs)
    assert answer["notes"][-1].startswith("The answer was cut off after 3 tokens")


def test_pipeline_second_end_token_ends_the_answer(grounder, monkeypatch):
    end, pad = grounder.processor.tokenizer.eos_token_id, grounder.processor.tokenizer.pad_token_id
    monkeypatch.setattr(grounder.model.generation_config, "eos_token_id", [end, pad])
    answer = grounder(PICTURE, text="x", max_new_tokens=9, logits_processor=[Script(grounder, ["ab"], end="<|endoftext|>")])
    assert answer["text"] == "ab" and answer["notes"] == [NOWHERE]


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, 2048),
        ({"max_new_tokens": 7}, 7),
        ({"generate_kwargs": {"max_new_tokens": 8}}, 8),
        ({"generation_config": GenerationConfig(max_new_tokens=9)}, 9),
    ],
)
def test_pipeline_max_new_tokens_is_2048_unless_given(grounder, monkeypatch, given, expected):
    def generate(self, input_ids, **kwargs):
        config = kwargs.get("generation_config")
        assert (config.max_new_tokens if config is not None else kwargs["max_new_tokens"]) == expected
        return torch.cat((input_ids, input_ids[:, :1]), dim=1)

    monkeypatch.setattr(grounder.model, "generate", types.MethodType(generate, grounder.model))
    grounder(PICTURE, text="x", **given)


def test_pipeline_return_dict_in_generate_gives_the_same_result(grounder):
    plain = grounder(PICTURE, text="x", max_new_tokens=3)
    assert grounder(PICTURE, text="x", max_new_tokens=3, return_dict_in_generate=True) == plain
    answer = grounder(PICTURE, text="x", max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
    assert answer.pop("generation") and answer == plain


def test_pipeline_random_answers_never_raise(grounder, video):
    torch.manual_seed(0)
    for inputs in (
        {"video": video, "text": "x"},
        {"image": PICTURE, "text": "x"},
        {"video": video, "task": "elc", "time": 1, "box": [0, 0, 9, 9]},
    ):
        for _ in range(3):
            json.dumps(
                grounder(inputs, max_new_tokens=40, do_sample=True, temperature=5.0, suppress_tokens=list(range(256))), allow_nan=False
            )


# Saving and loading


def test_pipeline_save_and_load_gives_equal_answers(grounder, video, tmp_path):
    grounder.save_pretrained(tmp_path)
    loaded = pipeline("video-grounding", model=str(tmp_path))
    assert type(loaded) is VideoGroundingPipeline and type(loaded.processor) is LlavaSTProcessor
    question = {"video": video, "text": "When?"}
    assert loaded(question, max_new_tokens=8) == grounder(question, max_new_tokens=8)


def test_pipeline_original_checkpoint_is_loaded_directly(video):
    # `config=` would only select the class: transformers loads a model given by its folder with the configuration in it
    loaded = pipeline("video-grounding", model=str(ORIGINAL_CHECKPOINT), model_kwargs=config_overrides())
    assert type(loaded.model) is LlavaSTForConditionalGeneration and loaded.processor.ignore_prompt_x_coordinates
    answer = say(loaded, {"image": PICTURE, "task": "reg", "box": [10, 5, 90, 45]}, "a cat")
    assert answer["events"] == [TASK_EVENTS["reg"]] and answer["notes"] == []


def test_pipeline_with_a_dtype_can_be_saved(tiny_checkpoint, tmp_path):
    pipeline("video-grounding", model=tiny_checkpoint, dtype="bfloat16").save_pretrained(tmp_path)
    assert "dtype" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert pipeline("video-grounding", model=str(tmp_path)).model.dtype == torch.bfloat16
