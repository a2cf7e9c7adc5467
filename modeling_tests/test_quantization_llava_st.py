# SPDX-License-Identifier: Apache-2.0
"""Quantized weights: modules in floating point, and models of 8 and 4 bits where bitsandbytes is installed."""

import logging

import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig, FineGrainedFP8Config
from transformers.quantizers.quantizers_utils import should_convert_module

from llava_st_hf import LlavaSTForConditionalGeneration
from llava_st_hf.model.quantization_llava_st import leave_in_floating_point

from .factories import random_videos, tiny_config, tiny_model, video_tokens


LAYERS = {
    "lm_head",
    "model.vision_tower.encoder.layers.0.mlp.fc2",
    "model.multi_modal_projector.linear_1",
    "model.packer.slow.q_proj",
    "model.language_model.layers.1.mlp.down_proj",
    "packer.slow.q_proj",  # of the model without head
}
DECODER = "model.language_model.layers.1.mlp.down_proj"


def quantized(names: list[str]) -> set[str]:
    return {layer for layer in LAYERS if should_convert_module(layer, names)}


@pytest.mark.parametrize(
    ("config", "argument"),
    [
        (BitsAndBytesConfig(load_in_8bit=True), "llm_int8_skip_modules"),
        ({"load_in_8bit": True}, "llm_int8_skip_modules"),
        (FineGrainedFP8Config(), "modules_to_not_convert"),
    ],
    ids=["8bit", "dict", "fp8"],
)
def test_leave_in_floating_point_plain_configuration_quantizes_the_decoder_only(config, argument):
    assert quantized(getattr(leave_in_floating_point(config), argument)) == {DECODER}


def test_leave_in_floating_point_given_modules_replace_all_but_the_head():
    given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["model.vision_tower"])
    names = leave_in_floating_point(given).llm_int8_skip_modules
    assert quantized(names) == LAYERS - {"lm_head", "model.vision_tower.encoder.layers.0.mlp.fc2"}
    assert given.llm_int8_skip_modules == ["model.vision_tower"]  # the user's object is not changed
    assert leave_in_floating_point(BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=names)).llm_int8_skip_modules == names


def test_leave_in_floating_point_embeddings_included_raises():
    config = FineGrainedFP8Config()
    config.include_input_output_embeddings = True  # an argument of TorchAoConfig, which needs torchao
    with pytest.raises(ValueError, match="include_input_output_embeddings=True quantizes lm_head"):
        leave_in_floating_point(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a warning per layer and token
    folder = tmp_path_factory.mktemp("model")
    text = {"hidden_size": 64, "intermediate_size": 128}
    tiny_model(tiny_config(text_config=text)).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.tensor([[5, *video_tokens(model.config, 4), 6, 7]])
    return model(input_ids=ids, pixel_values_videos=random_videos(1)).logits


EIGHT_BIT, FOUR_BIT = {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("options", "error"),
    [(EIGHT_BIT, 0.03), ({**EIGHT_BIT, "llm_int8_skip_modules": []}, 0.1), (FOUR_BIT, 0.3)],
    ids=["8bit", "8bit_all", "nf4"],
)
def test_from_pretrained_quantized_gives_similar_logits_before_and_after_saving(options, error, folder, tmp_path):
    expected = logits(LlavaSTForConditionalGeneration.from_pretrained(folder))
    model = LlavaSTForConditionalGeneration.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**options))
    assert model.model.language_model.layers[0].mlp.up_proj.weight.dtype in (torch.int8, torch.uint8)
    assert model.lm_head.weight.dtype == torch.float32
    assert (model.model.packer.slow.q_proj.weight.dtype == torch.float32) == ("llm_int8_skip_modules" not in options)
    model.save_pretrained(tmp_path)  # before a call: bitsandbytes' kernel for CPUs then rounds the scales of 4 bits in place
    found = logits(model)
    assert 0 < (found - expected).norm() / expected.norm() < error
    assert torch.equal(logits(LlavaSTForConditionalGeneration.from_pretrained(tmp_path)), found)
    base = AutoModel.from_pretrained(tmp_path)
    assert base.packer.slow.q_proj.weight.dtype == model.model.packer.slow.q_proj.weight.dtype


def test_from_pretrained_four_bits_layer_that_blocks_do_not_divide_raises(folder):
    skipped = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["model.vision_tower", "model.packer"])
    with pytest.raises(ValueError, match=r"model.multi_modal_projector.linear_1 has 32 inputs, which blocks of 64.*llm_int8_skip_modules"):
        LlavaSTForConditionalGeneration.from_pretrained(folder, quantization_config=skipped)
