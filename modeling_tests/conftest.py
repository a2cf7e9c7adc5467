# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import settings
from transformers import pipeline

from llava_st_hf.evaluation.captions import missing_caption_tools
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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> str:
    """Folder of a tiny model with random weights and its processor. Tests do not change it."""
    folder, processor = tmp_path_factory.mktemp("tiny_checkpoint"), tiny_processor()
    model_for(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def meteor_process():
    """The METEOR program of all tests: each start reads its tables for 13 seconds of CPU time. None without pycocoevalcap or Java."""
    if missing_caption_tools() is not None:
        yield None
        return
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    yield meteor
    meteor.meteor_p.kill()


@pytest.fixture
def one_meteor(monkeypatch, meteor_process):
    """Captions are scored by `meteor_process`."""
    if meteor_process is not None:
        monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", lambda: meteor_process)


@pytest.fixture
def batch(model):
    return mixed_batch(model.config)
