# SPDX-License-Identifier: Apache-2.0
"""Answers of a vLLM server to the client: equal to those of `generate`, with coordinates as bins and with exact positions."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.client import GroundingClient, RequestError
from llava_st_hf.model.grammar_export_llava_st import answer_regex
from llava_st_hf.model.questions_llava_st import prepare_question
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.shapes.files import write_image, write_video
from llava_st_hf.shapes.scenes import make_scene, scene_seed


MAX_TOKENS = 60
SCENES = 3


@pytest.fixture(scope="module")
def client(plain_server):
    with GroundingClient(plain_server.url, processor=DEMO_MODEL_PATH, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEMO_MODEL_PATH)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Questions of all tasks about whole files, clips, frames, and an image with transparency; coordinates are between bins."""
    folder, found = tmp_path_factory.mktemp("scenes"), []
    for number in range(SCENES):
        seed = scene_seed("test", number)
        image, video = folder / f"{number}.png", folder / f"{number}.mp4"
        write_image(make_scene(seed, is_video=False), image)
        write_video(make_scene(seed, is_video=True), video)
        pixels = np.asarray(PIL.Image.open(image).convert("RGB"))
        height, width = pixels.shape[:2]
        rng = np.random.default_rng(seed)
        x, y = np.sort(rng.random(2)) * width, np.sort(rng.random(2)) * height
        box = [float(x[0]), float(y[0]), float(x[1]), float(y[1])]
        text, span = "the small blue circle moves right", (0.7 + number / 7, 1.6 + number / 9)
        values = {"text": text, "span": span, "box": box}
        for task, settings in TASKS.items():
            given = {name: values[name] for name in settings.needs if name != "time"}
            if "time" in settings.needs:
                given |= {"time": span[0], "box": [10.3, 20.4, 40.5, 50.6]}
            found.append({settings.medium: str(image if settings.medium == "image" else video), "task": task, **given})
        found.append({"video": str(video), "task": "tr", "start": 0.3, "end": 1.9, "span": (0.7 + number / 9, 1.53)})
        found.append({"image": np.dstack([pixels, pixels[..., 0]]), "text": f"What is in [<w0.1{number}><h0.2><w{width / 3}px><h0.7>]?"})
    return found


def expected_text(model, processor, question, exact: bool) -> str:
    inputs = dict(prepare_question(processor, question)["model_inputs"])
    if not exact:
        inputs.pop("coordinate_values", None)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)[0, inputs["input_ids"].shape[1] :]
    return processor.decode_answer(ids)


@pytest.mark.parametrize("exact", [False, True], ids=["bins", "exact"])
def test_server_answers_the_client_as_generate(client, model, processor, questions, exact):
    answers = list(client.map(questions, exact=exact, max_tokens=MAX_TOKENS))
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        assert answer.text == expected_text(model, processor, question, exact), question
    other = [expected_text(model, processor, question, not exact) for question in questions]
    assert other != [answer.text for answer in answers]  # exact positions matter for at least one answer


def test_server_answers_constrained_questions_in_the_form_of_their_task(client, questions):
    complete = 0
    for question, answer in zip(questions, client.map(questions, constrained=True, max_tokens=MAX_TOKENS), strict=True):
        if isinstance(answer, Exception):
            raise answer
        if not any("cut off" in note for note in answer.notes):
            complete += 1
            rule = question.get("task", "auto_image")
            assert re.fullmatch(answer_regex(rule, 100, 100), answer.text), answer.text
    assert complete >= len(questions) / 2


@pytest.mark.parametrize(
    "content",
    [
        "When is <t1.8s>?",
        [{"type": "text", "text": "in <w0.25>"}],
        [{"type": "span", "start": 1, "end": 2}],
        [{"type": "box", "box": [1] * 4}],
    ],
)
def test_server_refuses_what_only_the_client_converts(client, content):
    payload = {"model": client.model, "messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}
    with pytest.raises(RequestError) as error:
        client._send("POST", "/chat/completions", payload)
    assert error.value.status == 400
    if "span" not in str(content) and "box" not in str(content):
        assert "GroundingClient" in str(error.value)
