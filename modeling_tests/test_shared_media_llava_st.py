# SPDX-License-Identifier: Apache-2.0
"""Questions about the same image or video: answers equal those of separate calls, and it is read and encoded once."""

import io
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DynamicCache, LogitsProcessor, pipeline
from transformers.generation import utils as generation_utils

from llava_st_hf.model.cache_name_llava_st import CACHE_NAME
from llava_st_hf.model.questions_llava_st import prepare_question
from modeling_tests.media import moving_frames, write_video
from modeling_tests.processors import PICTURE, answer, film, model_for, photo, tiny_processor, user


NUM_FRAMES = 10


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Paths of two videos of 64×48 at 10 frames per second, of 100 and of 40 frames."""
    folder = tmp_path_factory.mktemp("media")
    moving = moving_frames(140, 48, 64)
    return [str(write_video(folder / f"{n}.mp4", frames, fps=10)) for n, frames in enumerate((moving[:100], moving[100:]))]


@contextmanager
def counted(grounder):
    """Yields a dictionary that counts the videos and images read, the frames encoded and the tokens that the decoder processes."""
    counts = {"read": 0, "frames": 0, "tokens": 0}
    processor, model = grounder.processor, grounder.model.model
    read_videos, read_images = processor.video_processor.preprocess, processor.image_processor.preprocess

    def count(name, of):
        def hook(module, args, kwargs):
            counts[name] += of(args, kwargs)

        return hook

    def reader(read):
        def reading(media, *args, **kwargs):
            counts["read"] += 1
            return read(media, *args, **kwargs)

        return reading

    tokens = count("tokens", lambda args, kwargs: kwargs["inputs_embeds"].shape[1])
    frames = count("frames", lambda args, kwargs: len((*args, *kwargs.values())[0]))
    hooks = [
        model.vision_tower.register_forward_pre_hook(frames, with_kwargs=True),
        model.language_model.register_forward_pre_hook(tokens, with_kwargs=True),
    ]
    processor.video_processor.preprocess, processor.image_processor.preprocess = reader(read_videos), reader(read_images)
    try:
        yield counts
    finally:
        del processor.video_processor.preprocess, processor.image_processor.preprocess
        for hook in hooks:
            hook.remove()


def questions(videos: list[str]) -> list:
    """Questions of all kinds about two videos, two images and none, of which neighbours often share the medium."""
    first, second = videos
    clip = {"video": first, "clip": [20, 80]}
    return [
        {"video": first, "task": "tvg", "text": "it falls"},
        {"video": first, "task": "stvg", "text": "the red one moves to the left side"},
        {"video": first, "task": "svg", "span": (1.234, 5.6), "text": "it"},
        {"video": second, "task": "elc", "time": 0.77, "box": [3, 4.5, 40, 30]},
        {"video": second, "text": "What is at <t1.3s>?"},
        {**clip, "task": "tr", "span": (2.5, 4)},
        {"image": PICTURE, "task": "rec", "text": "dog"},
        {"image": PICTURE, "task": "reg", "box": [1, 2, 30, 40]},
        [user("Is it a text?")],
        [user(film(first), "What?"), answer("It falls from <t0.3> to <t0.41>."), user("And then?")],
        [user(film(first, start=2.0, end=8.0), photo(), "Where?")],
        {**clip, "task": "tvg", "text": "a"},
    ]


class Recorder(LogitsProcessor):
    """Records the scores from which `generate` chooses each token."""

    def __init__(self):
        self.steps = []

    def __call__(self, input_ids, scores):
        self.steps.append(scores.clone())
        return scores

    def rows(self, num_steps: int) -> torch.Tensor:
        """(questions, num_steps, vocabulary) scores, if every batch had `num_steps`."""
        batches = [torch.stack(self.steps[first : first + num_steps], 1) for first in range(0, len(self.steps), num_steps)]
        return torch.cat(batches)


def recorded(grounder, inputs, num_steps: int = 6, **kwargs) -> tuple[list | dict, torch.Tensor]:
    """Answers of `num_steps` tokens, and the scores of each."""
    recorder = Recorder()
    answers = grounder(inputs, max_new_tokens=num_steps, min_new_tokens=num_steps, logits_processor=[recorder], **kwargs)
    return answers, recorder.rows(num_steps)


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ({}, {}),
        ({"tie_word_embeddings": True}, {"ignore_prompt_x_coordinates": True}),
        ({"disable_fast_stream": True}, {"use_downsample_image": True}),
    ],
    ids=["untied", "tied-placeholders", "slow-stream-packed-images"],
)
def test_batches_with_shared_media_answer_as_separate_calls(videos, overrides, settings):
    processor = tiny_processor(**settings)
    grounder = pipeline("video-grounding", model=model_for(processor, **overrides), processor=processor)
    asked = questions(videos)
    separate, scores = zip(*(recorded(grounder, one) for one in asked), strict=True)
    scores = torch.cat(scores)
    finite = scores.masked_fill(scores.isinf(), 0)
    assert torch.pdist(finite.flatten(1)).min() > 0.1  # the answers depend on the question
    for batch_size in (1, 2, 5, 12):
        together, found = recorded(grounder, asked, batch_size=batch_size)
        assert together == list(separate)
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)


def test_batches_with_shared_media_read_and_encode_it_once(grounder, videos):
    first, second = videos
    asked = [{"video": first, "text": text} for text in ("a", "what?", "where is it?")] + [{"video": second, "text": "a"}] * 2
    with counted(grounder) as separate:
        for one in asked:
            grounder(one, max_new_tokens=1)
    with counted(grounder) as batches:
        grounder(asked, batch_size=2, max_new_tokens=1)
    assert separate["read"] == 5 and separate["frames"] == 5 * NUM_FRAMES
    assert batches["read"] == 2 and batches["frames"] == 2 * NUM_FRAMES
    with counted(grounder) as generator:
        list(grounder((one for one in asked), max_new_tokens=1))
    assert generator == {"read": 2, "frames": 2 * NUM_FRAMES, "tokens": separate["tokens"] - 3 * prefix_length(grounder, first)}


def prefix_length(grounder, video: str) -> int:
    """Number of tokens up to the end of the video, in the prompts of the chat template."""
    ids = prepare_question(grounder.processor, video, text="a")["model_inputs"]["input_ids"][0]
    return int(torch.isin(ids, torch.tensor(grounder.processor.video_token_ids)).nonzero()[-1]) + 1


def test_shared_prefix_of_two_prompts_has_no_token_of_the_question(grounder, videos):
    prepared = prepare_question(grounder.processor, videos[0], text="a")["model_inputs"]
    length = prefix_length(grounder, videos[0])
    assert grounder.processor.tokenizer.decode(prepared["input_ids"][0][length:]) == "\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 7}, {"vision_chunk_size": 3}],
    ids=str,
)
def test_batches_with_shared_media_and_generate_arguments_answer_as_separate_calls(grounder, videos, options):
    if "prefill_chunk_size" in options and not hasattr(generation_utils, "_slice_mm_encoder_output"):
        pytest.skip("transformers 5.20 computes no chunks of prompts with media")
    asked = [{"video": videos[0], "text": text} for text in ("a", "where is it?", "what")] + [{"image": PICTURE, "task": "dgc"}]
    separate = [grounder(one, max_new_tokens=6, **options) for one in asked]
    with counted(grounder) as counts:
        assert grounder(asked, batch_size=2, max_new_tokens=6, **options) == separate
    assert counts["read"] == 2


def test_cache_of_the_caller_is_used(grounder, videos):
    cache = DynamicCache(config=grounder.model.config)
    grounder([{"video": videos[0], "text": "a"}] * 2, batch_size=2, max_new_tokens=2, **{CACHE_NAME: cache})
    assert cache.get_seq_length() > prefix_length(grounder, videos[0])


def test_file_that_changes_between_questions_of_a_generator_is_read_again(grounder, videos, tmp_path):
    path = tmp_path / "current.mp4"

    def stream():
        for video in (videos[0], videos[0], videos[1]):
            shutil.copyfile(video, path)
            yield {"video": str(path), "text": "a"}

    with counted(grounder) as counts:
        answers = list(grounder(stream(), max_new_tokens=6))
    assert answers == [grounder(video, text="a", max_new_tokens=6) for video in (videos[0], videos[0], videos[1])]
    assert counts["read"] == 3  # a copy has another time of change


def test_file_that_changes_between_calls_is_read_again(grounder, videos, tmp_path):
    path = tmp_path / "current.mp4"
    for video in videos:
        shutil.copyfile(video, path)
        with counted(grounder) as counts:
            grounder([str(path)] * 2, text="a", max_new_tokens=1)
        assert counts["read"] == 1


@pytest.mark.parametrize("kind", ["array", "tensor", "frames", "image"])
def test_pixels_that_change_between_questions_of_a_generator_are_read_again(grounder, kind):
    pixels = moving_frames(12, 48, 64)
    medium = {
        "array": {"video": pixels},
        "tensor": {"video": torch.from_numpy(pixels)},  # shares the memory
        "frames": {"video": list(pixels)},
        "image": {"image": Image.frombuffer("RGB", (64, 48), pixels[0], "raw", "RGB", 0, 1)},
    }[kind]
    if kind == "image":
        medium["image"].readonly = 0

    def stream():
        yield {**medium, "text": "a"}
        yield {**medium, "text": "b"}
        if kind == "image":
            medium["image"].paste((255, 0, 0), (0, 0, 30, 30))
        pixels[:] = 255 - pixels
        yield {**medium, "text": "b"}

    with counted(grounder) as counts:
        *_, after = grounder(stream(), max_new_tokens=6)
    assert counts["read"] == 2
    assert after == grounder(medium, text="b", max_new_tokens=6)


def test_same_file_with_other_reading_is_read_again(grounder, videos):
    with counted(grounder) as counts:
        grounder([{"video": videos[0], "text": "a", **clip} for clip in ({}, {"clip": [0, 50]}, {"clip": [0, 51]}, {})], max_new_tokens=1)
    assert counts["read"] == 4


def test_folder_of_frames_and_bytes_are_read_once(grounder, videos, tmp_path):
    for number, pixels in enumerate(moving_frames(3, 48, 64)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    content = Path(videos[0]).read_bytes()
    for medium in ({"video": str(tmp_path)}, {"video": content}, {"video": bytes(bytearray(content))}):
        with counted(grounder) as counts:
            grounder([{**medium, "text": "a"}] * 2, max_new_tokens=1)
        assert counts["read"] == 1


# Several questions about one input


def test_lists_of_values_ask_one_question_for_each(grounder, videos):
    texts, spans = ["it falls", "it moves"], [(1, 2), [2.5, 3]]
    found = grounder(videos[0], text=texts, span=spans, task="svg", max_new_tokens=6)
    assert found == [grounder(videos[0], text=texts[n], span=spans[n], task="svg", max_new_tokens=6) for n in range(2)]
    boxes = [[1, 2, 30, 40], {"xmin": 3, "ymin": 4, "xmax": 10, "ymax": 20}]
    one = grounder(PICTURE, task="reg", box=boxes[0], max_new_tokens=6)
    assert grounder(PICTURE, task="reg", box=np.array([boxes[0]]), max_new_tokens=6) == [one]
    found = grounder({"image": PICTURE, "task": ["reg", "dgc", "reg"], "box": [boxes[0], None, boxes[1]]}, max_new_tokens=6)
    assert found == [
        grounder(PICTURE, task=task, box=box, max_new_tokens=6) for task, box in (("reg", boxes[0]), ("dgc", None), ("reg", boxes[1]))
    ]
    assert grounder(videos[0], text=[]) == []


def test_lists_of_values_are_answered_in_one_batch_that_reads_the_file_once(grounder, videos):
    class Once(io.BytesIO):
        """A stream that cannot be read twice."""

        def seekable(self):
            return False

    stream = Once(Path(videos[0]).read_bytes())
    with counted(grounder) as counts:
        found = grounder(stream, text=["a", "b", "c"], max_new_tokens=2, min_new_tokens=2)
    assert counts["read"] == 1 and counts["frames"] == NUM_FRAMES
    longest = len("\na<|im_end|>\n<|im_start|>assistant\n") - len("<|im_end|>") - len("<|im_start|>") + 2
    assert counts["tokens"] == prefix_length(grounder, videos[0]) + longest + 1  # the last token is not processed
    assert found == grounder(videos[0], text=["a", "b", "c"], max_new_tokens=2, min_new_tokens=2, batch_size=1)


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        ("a.mp4", {"text": ["a", "b"], "span": [(0, 1)], "task": "svg"}, "must have one length: text has 2, span has 1"),
        (["a.mp4", "b.mp4"], {"text": ["a", "b"]}, "asks several questions about one image or video, but the input is a list"),
        ((name for name in ["a.mp4"]), {"time": [1.0]}, "the input is a generator"),
        (PICTURE, {"text": ["a", " "]}, "not blank"),
        (PICTURE, {"task": "reg", "box": [[1, 2, 3]]}, "A box has four numbers"),
    ],
)  # fmt: skip
def test_lists_of_values_invalid_raise_before_generation(grounder, inputs, kwargs, message):
    with pytest.raises(ValueError, match=message), counted(grounder) as counts:
        grounder(inputs, max_new_tokens=1, **kwargs)
    assert counts["tokens"] == 0
