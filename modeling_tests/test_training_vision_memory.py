# SPDX-License-Identifier: Apache-2.0
"""Frames per vision pass in training: chosen from the free memory; one pass per media kind with sharded weights."""

import pytest
import torch

from llava_st_hf.training import vision_memory
from llava_st_hf.training.vision_memory import bytes_per_frame, choose_vision_chunk_size
from modeling_tests.factories import tiny_config
from modeling_tests.one_training import make_trainer


CONFIG = tiny_config().vision_config
INPUTS = {"pixel_values": torch.zeros(3, 3, 18, 18), "pixel_values_videos": torch.zeros(2, 4, 3, 18, 18)}


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory of every device, in bytes."""
    return lambda size: monkeypatch.setattr(vision_memory, "free_bytes", lambda device: size)


def test_choose_vision_chunk_size_returns_the_frames_that_fit_into_the_free_memory(free):
    frame = bytes_per_frame(CONFIG, itemsize=4)
    assert frame == 81 * (8 * 32 + 2 * 37) * 4
    for size, frames in ((10 * frame, 7), (2 * frame, 1), (0, 1)):
        free(size)
        assert choose_vision_chunk_size(CONFIG, INPUTS, sharded=False) == frames
    free(10 * frame)
    halves = {name: pixels.bfloat16() for name, pixels in INPUTS.items()}
    assert choose_vision_chunk_size(CONFIG, halves, sharded=False) == 14


def test_choose_vision_chunk_size_without_pixels_or_known_memory_returns_none():
    assert choose_vision_chunk_size(CONFIG, {"input_ids": torch.zeros(1, 2)}, sharded=True) is None
    assert choose_vision_chunk_size(CONFIG, INPUTS, sharded=False) is None  # on a CPU


@pytest.mark.parametrize("names", [("pixel_values",), ("pixel_values_videos",), ("pixel_values", "pixel_values_videos")])
def test_choose_vision_chunk_size_with_sharded_weights_covers_all_frames_in_one_pass(free, names):
    free(0)
    inputs = {name: INPUTS[name] for name in names}
    assert choose_vision_chunk_size(CONFIG, inputs, sharded=True) == (8 if "pixel_values_videos" in names else 3)


def test_trainer_passes_the_vision_chunk_size_to_the_model(free, tmp_path):
    free(0)
    trainer = make_trainer(tmp_path, max_steps=1, count=3, per_device_train_batch_size=3)
    sizes = []
    tower = trainer.model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    trainer.train()
    assert sizes == [1] * 11  # an image and a video of ten frames
