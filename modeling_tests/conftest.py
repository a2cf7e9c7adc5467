# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import settings
from transformers import pipeline

from modeling_tests.factories import mixed_batch, tiny_model
from modeling_tests.processors import model_for, tiny_processor


# The same examples in every run, so that failures are reproducible.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def grounder():
    """Pipeline of a tiny model with random weights."""
    processor = tiny_processor()
    return pipeline("video-grounding", model=model_for(processor), processor=processor)


@pytest.fixture
def batch(model):
    return mixed_batch(model.config)
