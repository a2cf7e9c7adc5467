# SPDX-License-Identifier: Apache-2.0
"""The processor against the released program: the same tokens, and with our model the same logits."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from modeling_tests.processors import answer, encode, user
from modeling_tests.reference import REFERENCE, requires_reference


def reference_cases(kind):
    if not REFERENCE.is_dir():
        return []
    cases = json.loads((REFERENCE / "tiny" / "cases.json").read_text())["cases"]
    return [pytest.param(case, id=case["key"]) for case in cases if case["kind"] == kind]


@pytest.fixture(scope="module")
def released():
    folder = REFERENCE / "tiny"
    overrides = json.loads((folder / "config_overrides.json").read_text())
    model = LlavaSTForConditionalGeneration.from_pretrained(folder / "original_checkpoint", **overrides).eval()
    processor = AutoProcessor.from_pretrained(folder / "original_checkpoint")
    return processor, model, load_file(folder / "expected.safetensors")


AXIS_LISTS = {
    "TEMP": "temporal_input_locations",
    "HEIGHT": "spatial_height_input_locations",
    "WIDTH": "spatial_width_input_locations",
}


def reference_chat(case):
    """A case as messages; benchmark prompts, which carry their numbers beside the text, with the numbers inline."""
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
    """Coordinates and their placeholders as the name of their axis: the released ids have placeholders where ours have bins."""
    names = {}
    for axis in ("temporal", "height", "width"):
        names |= dict.fromkeys(config.coordinates.token_ids(axis), axis)
        names |= {getattr(config, f"{axis}_{use}_token_id"): axis for use in ("input", "output")}
    return [names.get(token, token) for token in ids.tolist()]


def reference_pixels(case):
    frames = 100 if case["modality"] == "video" else 1
    t, c, i, j = np.ogrid[:frames, :3, :384, :384]
    pixels = np.sin(0.05 * case["seed"] + 0.031 * (c + 1) * i + 0.017 * j * (1 + 0.01 * t) + 0.3 * t).astype(np.float32)
    pixels = torch.from_numpy(pixels)
    return {"pixel_values_videos": pixels[None]} if frames > 1 else {"pixel_values": pixels}


@requires_reference
@pytest.mark.parametrize("case", [*reference_cases("inference"), *reference_cases("training")])
def test_ids_equal_the_released_programs(released, case):
    processor, model, expected = released
    inputs = encode(processor, *reference_chat(case), add_generation_prompt=case["kind"] == "inference")
    ids = expected[case["key"] + ".input_ids"].flatten()
    assert axes_only(inputs["input_ids"][0], model.config) == axes_only(ids, model.config)


@requires_reference
@pytest.mark.parametrize("case", reference_cases("inference")[:3])
def test_logits_from_messages_equal_the_released_programs(released, case):
    processor, model, expected = released
    inputs = encode(processor, *reference_chat(case), add_generation_prompt=True)
    with torch.no_grad():
        logits = model(**{**inputs, **reference_pixels(case)}).logits[0]
    places = expected[case["key"] + ".text_positions"].long()
    torch.testing.assert_close(logits[places], expected[case["key"] + ".text_logits"], atol=1e-4, rtol=1e-4)


@requires_reference
def test_a_released_folder_loads_as_a_processor_and_saves_as_ours(released, tmp_path):
    processor = released[0]
    assert type(processor) is LlavaSTProcessor and processor.ignore_prompt_x_coordinates and processor.num_temporal_bins == 100
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
