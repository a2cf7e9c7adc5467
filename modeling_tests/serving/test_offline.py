# SPDX-License-Identifier: Apache-2.0
"""vLLM's offline engine with the plug-in gives the tokens of `generate`."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.checkpoints.fingerprint import write_fingerprint

from ..factories import tiny_config, tiny_model
from ..media import moving_frames, write_video
from ..processors import tiny_processor
from .conftest import MAX_TOKENS
from .engine import run_engine
from .questions import Answer, answer, differences


def assert_equal(answers: list[Answer], outputs: list[dict]):
    """All tokens are equal. Prints the number of answers and the smallest margin of a token."""
    smallest = min(margin for expected in answers for margin in expected.margins)
    num_tokens = sum(len(expected.ids) for expected in answers)
    found = differences(answers, outputs)
    print(f"\n{len(answers) - len(found)} of {len(answers)} answers ({num_tokens} tokens) are equal; smallest margin {smallest:.2g}.")
    assert not found, "\n".join(found)


@pytest.fixture(scope="module")
def constrained(bundled) -> list[Answer]:
    """One question of each task, with an answer that is constrained to its form."""
    model = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(DEMO_MODEL_PATH)
    firsts = {expected.task: expected for expected in bundled}
    return [answer(model, processor, _messages(expected), MAX_TOKENS, task, constrained=True) for task, expected in firsts.items()]


def _messages(expected: Answer) -> list[dict]:
    """The question of an answer with coordinates as tokens."""
    text = expected.request["prompt"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    [[kind, path]] = expected.request["media"]
    return [{"role": "user", "content": [{"type": kind, "path": path}, {"type": "text", "text": text.removeprefix(f"<{kind}>\n")}]}]


def test_engine_bundled_model_16_at_once_equals_generate(bundled, constrained, tmp_path):
    # Prompts are longer than a step of 256 tokens, and questions about one video share a prefix.
    options = {"max_num_batched_tokens": 256, "enable_chunked_prefill": True, "enable_prefix_caching": True}
    rounds = [[expected.request for expected in answers] for answers in (bundled, constrained)]
    free, formed = run_engine(tmp_path, DEMO_MODEL_PATH, rounds, **options)
    assert_equal(bundled, free)
    assert_equal(constrained, formed)
    assert "fingerprint are equal" in (tmp_path / "engine.log").read_text()


def test_engine_bundled_model_one_at_a_time_equals_generate(bundled, tmp_path):
    # Compiled, as by default, and without a prefix cache.
    rounds = [[expected.request] for expected in bundled]
    outputs = run_engine(tmp_path, DEMO_MODEL_PATH, rounds, enforce_eager=False, enable_prefix_caching=False)
    assert_equal(bundled, [output for [output] in outputs])


# Random weights


def save_random_model(folder, tied: bool, **flags) -> tuple:
    """Writes a model with grouped-query attention, and returns it and its processor."""
    processor = tiny_processor(**{name: value for name, value in flags.items() if name != "disable_fast_stream"})
    config = tiny_config(
        num_temporal_bins=100,
        num_spatial_bins=100,
        vision_config={"image_size": 126, "patch_size": 14},
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": processor.tokenizer.pad_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
        },
        packer_temporal_stride=processor.packer_temporal_stride,
        tie_word_embeddings=tied,
        **flags,
    )
    model = tiny_model(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_fingerprint(folder, model, processor)
    return model, processor


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    videos = [str(write_video(folder / f"{n}.mp4", moving_frames(n, 48, 64))) for n in (30, 47)]
    pictures = []
    rng = np.random.default_rng(0)
    for number in range(2):
        path = folder / f"{number}.png"
        PIL.Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        pictures.append(str(path))
    return videos, pictures


def several_questions(media) -> list[tuple[list[dict], dict]]:
    """Messages with one or several images and videos and with coordinates, and options of the video processor."""
    videos, pictures = media
    film, other = ({"type": "video", "path": path} for path in videos)
    photo, second = ({"type": "image", "path": path} for path in pictures)

    def user(*content):
        return {"role": "user", "content": [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]}

    # A width in the prompt of the assistant is not replaced by `ignore_prompt_x_coordinates`.
    spoken = {"role": "assistant", "content": [{"type": "text", "text": "At [<w0.1><h0.2><w0.5><h0.6>]."}]}
    return [
        ([user(photo, "What is in [<w0.1><h0.2><w0.5><h0.6>]?")], {}),
        ([user(film, "What happens during {<t0.2><t0.7>}?")], {}),
        ([user(film, "What happens?")], {"num_frames": 7}),
        ([user(other, "What happens?")], {"fps": 4}),
        ([user(film, "and", photo, "and", other, second, "Compare them, <w0.25>.")], {}),
        ([user(photo, "Where is it?"), spoken, user("And at <t0.5> of", other, "<w0.9>?")], {}),
    ]


VARIANTS = {
    "untied, both flags": {"tied": False, "ignore_prompt_x_coordinates": True, "disable_fast_stream": True},
    "tied, small images": {"tied": True, "use_downsample_image": True},
    "untied, two processes": {"tied": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_engine_random_model_equals_generate(variant, media, tmp_path):
    checkpoint = tmp_path / "model"
    model, processor = save_random_model(checkpoint, **VARIANTS[variant])
    answers = [answer(model, processor, messages, 48, variant, **options) for messages, options in several_questions(media)]
    options = {"limit_mm_per_prompt": {"image": 2, "video": 2}}
    environment = {}
    if "processes" in variant:
        options |= {"tensor_parallel_size": 2}
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    rounds = [[expected.request for expected in answers], *([expected.request] for expected in answers)]
    together, *alone = run_engine(tmp_path, checkpoint, rounds, environment, **options)
    assert_equal(answers, together)
    assert_equal(answers, [output for [output] in alone])
