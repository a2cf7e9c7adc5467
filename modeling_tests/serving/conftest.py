# SPDX-License-Identifier: Apache-2.0
"""Answers of `generate` that several tests compare with those of servers."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_st_hf import DEMO_MODEL_PATH

from .questions import Answer, answer, shapes_questions


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
