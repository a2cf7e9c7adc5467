# SPDX-License-Identifier: Apache-2.0
"""`transformers serve` by its launcher answers as `generate` does, and refuses what it does not support."""

import sys

import pytest
from transformers import AutoProcessor

from llava_st_hf import DEMO_MODEL_PATH
from modeling_tests.serving.conftest import MAX_TOKENS, PER_TASK
from modeling_tests.serving.requests_over_http import ask, question_request
from modeling_tests.serving.server import running_server


LAUNCHER = (sys.executable, "-m", "llava_st_hf.serving.transformers_serve")
OF_EACH_TASK = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("openai")  # transformers serve needs it; vLLM depends on it
    with running_server(tmp_path_factory.mktemp("server") / "log", "--device", "cpu", command=LAUNCHER) as server:
        yield server


def without_extensions(body: dict) -> dict:
    return {name: value for name, value in body.items() if name not in ("return_token_ids", "repetition_penalty")}


def test_transformers_serve_answers_equal_those_of_generate(server, bundled):
    asked = [answer for task in {answer.task for answer in bundled} for answer in bundled if answer.task == task]
    asked = [answer for number, answer in enumerate(asked) if number % PER_TASK < OF_EACH_TASK]
    processor = AutoProcessor.from_pretrained(DEMO_MODEL_PATH)
    found = ask(server.url, [without_extensions(question_request(answer, DEMO_MODEL_PATH, MAX_TOKENS)) for answer in asked], 4)
    texts = [response.json()["choices"][0]["message"]["content"].strip() for response in found]
    assert len(asked) == 8 * OF_EACH_TASK
    assert texts == [processor.decode_answer(answer.ids) for answer in asked]


def test_transformers_serve_grammar_of_a_request_is_refused(server, bundled):
    body = without_extensions(question_request(bundled[0], DEMO_MODEL_PATH, 8, structured_outputs={"regex": "a"}))
    (response,) = ask(server.url, [body], 1)
    assert response.status_code == 422 and "structured_outputs" in response.text
