# SPDX-License-Identifier: Apache-2.0
"""Answers of `generate` and a server that several tests use."""

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_st_hf import DEMO_MODEL_PATH

from .questions import Answer, answer, shapes_questions
from .server import SMALL, Server, running_server


PER_TASK = 26  # 208 questions of eight tasks
MAX_TOKENS = 640


@pytest.fixture(scope="session")
def bundled(tmp_path_factory) -> list[Answer]:
    """Questions of all tasks about images and videos, and the greedy answers of the demo model in float32."""
    model = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(DEMO_MODEL_PATH)
    questions = shapes_questions(tmp_path_factory.mktemp("shapes"), PER_TASK, processor.video_processor.num_frames)
    assert len(questions) == 8 * PER_TASK
    return [answer(model, processor, messages, MAX_TOKENS, task) for task, messages in questions]


@pytest.fixture(scope="session")
def plain_server(tmp_path_factory) -> Iterator[Server]:
    """vLLM's own server with the plug-in, which accepts embeddings and arguments of the processors in requests."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with running_server(log, *SMALL, "--trust-request-mm-kwargs", "--enable-prompt-embeds", timeout=600) as running:
        yield running
