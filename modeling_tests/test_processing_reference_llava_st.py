# SPDX-License-Identifier: Apache-2.0
"""Comparison of the processor with the original LLaVA-ST code: equal tokens, and equal logits of the model."""

import re

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from modeling_tests.processors import answer, encode, settings_of, user
from modeling_tests.reference import ORIGINAL_CHECKPOINT, analytic_pixels, cases, config_overrides, expected, strided


@pytest.fixture(scope="module")
def released():
    model = LlavaSTForConditionalGeneration.from_pretrained(ORIGINAL_CHECKPOINT, **config_overrides()).eval()
    return AutoProcessor.from_pretrained(ORIGINAL_CHECKPOINT), model


AXIS_LISTS = {
    "TEMP": "temporal_input_locations",
    "HEIGHT": "spatial_height_input_locations",
    "WIDTH": "spatial_width_input_locations",
}


def reference_chat(case):
    """Converts a case to messages; benchmark prompts, whose coordinates are separate lists, get them inline."""
    shape = (5, 32, 48, 3) if case["modality"] == "video" else (32, 48, 3)
    medium = {"type": case["modality"], case["modality"]: np.zeros(shape, np.uint8)}
    if case["kind"] == "training":
        question, reply = (turn["value"] for turn in case["conversations"])
        return [user(medium, question), answer(reply)]
    if case["style"] == "demo":
        return [user(medium, case["query"])]
    numbers = {name: list(case["locations"][key]) for name, key in AXIS_LISTS.items()}
    text = case["prompt_with_placeholders"].split("\n", 1)[1]
    return [user(medium, re.sub(r"<(TEMP|HEIGHT|WIDTH)-INPUT>", lambda m: f"<{m[1][0].lower()}{numbers[m[1]].pop(0)}>", text))]


def axes_only(ids, config):
    """Replaces coordinate tokens and placeholders by the name of their axis: the original ids have placeholders where ours have bins."""
    names = {}
    for axis in ("temporal", "height", "width"):
        names |= dict.fromkeys(config.coordinates.token_ids(axis), axis)
        names |= {getattr(config, f"{axis}_{use}_token_id"): axis for use in ("input", "output")}
    return [names.get(token, token) for token in ids.tolist()]


def reference_pixels(case):
    if case["modality"] == "video":
        return {"pixel_values_videos": analytic_pixels(case["seed"], 100)[None]}
    return {"pixel_values": analytic_pixels(case["seed"], 1)}


@pytest.mark.parametrize("case", [*cases("inference"), *cases("training")], ids=lambda case: case["key"])
def test_input_ids_of_messages_equal_those_of_the_original_code(released, case):
    processor, model = released
    inputs = encode(processor, *reference_chat(case), add_generation_prompt=case["kind"] == "inference")
    ids = expected()[case["key"] + ".input_ids"]
    assert axes_only(inputs["input_ids"][0], model.config) == axes_only(ids, model.config)


@pytest.mark.parametrize("case", cases("inference")[:3], ids=lambda case: case["key"])
def test_logits_of_messages_equal_those_of_the_original_code(released, case):
    processor, model = released
    inputs = encode(processor, *reference_chat(case), add_generation_prompt=True)
    with torch.no_grad():
        logits = model(**{**inputs, **reference_pixels(case)}).logits[0]
    text = expected()[case["key"] + ".text_positions"].long()
    torch.testing.assert_close(strided(logits[text]), expected()[case["key"] + ".text_logits_stride11"], atol=1e-4, rtol=1e-4)


def test_processor_of_original_checkpoint_loads_and_saves_in_our_format(released, tmp_path):
    processor = released[0]
    assert type(processor) is LlavaSTProcessor and processor.ignore_prompt_x_coordinates and processor.num_temporal_bins == 100
    processor.save_pretrained(tmp_path)
    assert settings_of(AutoProcessor.from_pretrained(tmp_path)) == settings_of(processor)
