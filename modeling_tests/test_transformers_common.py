# SPDX-License-Identifier: Apache-2.0
"""Runs the common tests of transformers, which are in its source distribution only, on the model and the processor.

    pip download transformers==5.24.0 --no-deps --no-binary transformers && tar xzf transformers-5.24.0.tar.gz
    pip install parameterized
    TRANSFORMERS_SOURCE=transformers-5.24.0 python -m pytest modeling_tests/test_transformers_common.py

The version must be the installed one. Without `TRANSFORMERS_SOURCE` this file has no tests. The mixins of generation and export are not
part of the source distribution; `test_generation_modes.py` has tests of the same properties.
"""

import os
import sys
import tempfile
import types
import unittest
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTModel, LlavaSTProcessor
from modeling_tests.factories import image_tokens, random_images, random_videos, tiny_config, video_tokens
from modeling_tests.media import moving_frames, write_video
from modeling_tests.processors import tiny_processor


SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
if not SOURCE:
    pytest.skip("needs the source of transformers, see TRANSFORMERS_SOURCE in the docstring", allow_module_level=True)

FILES = Path(tempfile.mkdtemp(prefix="llava-st-common-tests-"))


def local_file(url: str) -> str:
    """Replaces a media file of the hub by one with other pixels, so that no test needs a network. Tests of audio are skipped."""
    path = FILES / url.rsplit("/", 1)[-1]
    if path.suffix == ".mp4":
        write_video(path, moving_frames(11, 48, 64), fps=30)
    elif path.suffix in (".png", ".jpg"):
        Image.fromarray(moving_frames(1, 48, 64)[0]).save(path)
    return str(path)


# Modules that the mixins import and that are not in the source distribution.
for name, attributes in {
    "tests.exporters.test_export": {"ExportTesterMixin": object},
    "tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "fetch_hub_objects_for_ci": {"url_to_local_path": local_file},
}.items():
    parts = name.split(".")
    for depth in range(2, len(parts)):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)
sys.path.insert(0, str(Path(SOURCE).resolve()))

from tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


class RefusedByDesign:
    """Tests of what the model refuses or does otherwise on purpose."""

    # Embeddings cannot be shrunk below the coordinate tokens, whose ids are fixed; the model raises a ValueError.
    test_resize_tokens_embeddings = None
    test_resize_embeddings_untied = None
    # Checkpoints are saved in the layout of this package, not in that of the original code: see `original_checkpoint_llava_st`.
    test_reverse_loading_mapping = None


class ModelTester:
    """Configuration and inputs of the model tests: two rows, each with an image and a video."""

    is_training = True
    batch_size = 2

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        config = self.get_config()
        self.hidden_size = config.text_config.hidden_size
        self.num_hidden_layers = config.text_config.num_hidden_layers
        self.num_attention_heads = config.text_config.num_attention_heads
        self.vocab_size = config.text_config.vocab_size
        self.image_token_id, self.video_token_id = config.image_token_id, config.video_token_id
        self.seq_length = len(self._row(config, 10))

    def get_config(self) -> LlavaSTConfig:
        return tiny_config()

    @staticmethod
    def _row(config: LlavaSTConfig, first: int) -> list[int]:
        return [first, first + 1, *image_tokens(config), first + 2, *video_tokens(config), config.coordinate_start_token_id, first + 3]

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = torch.tensor([self._row(config, first) for first in (10, 20)])
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": random_images(2),
            "pixel_values_videos": random_videos(2),
        }


class ModelTest(RefusedByDesign, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LlavaSTForConditionalGeneration,)
    test_generation_tester_mixin_inheritance = None  # the mixin is not part of the source distribution
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = inputs["input_ids"]
        return inputs


class BaseModelTest(RefusedByDesign, ModelTesterMixin, unittest.TestCase):
    """With tied embeddings: with untied ones visual features contain rows of the head, which the base model does not have."""

    all_model_classes = (LlavaSTModel,)
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(self)
        self.model_tester.is_training = False  # it has no loss
        self.model_tester.get_config = lambda: tiny_config(tie_word_embeddings=True)


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = LlavaSTProcessor
    # Longer than the 81 tokens of an image.
    images_text_kwargs_max_length = images_unstructured_max_length = 180
    images_text_kwargs_override_max_length = 176

    # A saved processor has an `auto_map`, which the processor in memory does not have; all else is equal.
    test_processor_from_and_save_pretrained = test_processor_from_and_save_pretrained_as_nested_dict = None
    # A list of frames is sampled like a video; transformers raises an error for it.
    test_apply_chat_template_video_frame_sampling = None

    @staticmethod
    def does_processor_return_mm_offsets(processor_class, method_name):
        """The mixin compares the class with its first base, which is here not the one with these methods."""
        return getattr(processor_class, method_name) is not getattr(ProcessorMixin, method_name)

    @classmethod
    def _setup_from_components(cls):
        return tiny_processor()
