# SPDX-License-Identifier: Apache-2.0
"""
Prints the largest differences between this package and the recorded outputs of the original LLaVA-ST code, as a Markdown table.

    python -m modeling_tests.parity

The table is that of docs/benchmarks.md. Exit status 1 if a difference exceeds its bound. The recorded values and their shapes are
described in reference_data/README.md.
"""

import json
import sys

import torch

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTImageProcessor
from llava_st_hf.checkpoints.conversion import merge_lora
from llava_st_hf.model.video_sampling_llava_st import sample_frame_indices
from modeling_tests.reference import (
    ORIGINAL_CHECKPOINT,
    ORIGINAL_LORA,
    REFERENCE,
    analytic_pixels,
    case_inputs,
    cases,
    config_overrides,
    expected,
    preprocessing_case,
    strided,
)


NUM_FAST_TOKENS, BASE_VOCABULARY, BINS = 900, 581, 100
TABLES = ("temporal", "spatial_height", "spatial_width")  # in the order of the coordinate tokens
ONE_STEP = 2 / 255  # one uint8 step of a normalized pixel


def largest(actual: torch.Tensor, recorded: torch.Tensor) -> float:
    """Largest absolute difference."""
    return (actual.float() - recorded.float()).abs().max().item()


def inference_differences(model: LlavaSTForConditionalGeneration) -> dict[str, float]:
    """Differences of logits, visual features and greedily decoded ids over all inference cases."""
    found = {"logits": 0.0, "image and video features": 0.0, "greedy token ids that differ": 0}
    model.eval()
    for case in cases("inference"):
        key, inputs = case["key"], case_inputs(case, model.config)
        text = expected()[f"{key}.text_positions"].long()
        with torch.no_grad():
            outputs = model(**inputs)
        found["logits"] = max(found["logits"], largest(strided(outputs.logits[0, text]), expected()[f"{key}.text_logits_stride11"]))
        if case["modality"] == "video":
            slow_stream = outputs.video_hidden_states[NUM_FAST_TOKENS:]
            difference = largest(strided(slow_stream), expected()[f"{key}.slow_features_stride11"])
        else:
            difference = largest(outputs.image_hidden_states[:64], expected()[f"{key}.image_features_first64"])
        found["image and video features"] = max(found["image and video features"], difference)
        generated = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        found["greedy token ids that differ"] += int((generated != expected()[f"{key}.generated_ids"]).sum())
    return found


def training_differences(model: LlavaSTForConditionalGeneration) -> dict[str, float]:
    """Differences of the loss, and of the gradients of the six coordinate tables relative to their norm, over all training cases."""
    found = {"loss": 0.0, "gradients of the coordinate tables, relative": 0.0}
    model.train()
    model.model.vision_tower.requires_grad_(False)
    for case in cases("training"):
        model.zero_grad()
        loss = model(**case_inputs(case, model.config), labels=expected()[f"{case['key']}.labels"].long()[None]).loss
        loss.backward()
        found["loss"] = max(found["loss"], abs(loss.item() - case["loss"]))
        for use, embeddings in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
            for index, table in enumerate(TABLES):
                first = BASE_VOCABULARY + BINS * index
                recorded = expected()[f"{case['key']}.grad.{table}_{use}_embeddings_stride11"]
                difference = (strided(embeddings.weight.grad[first : first + BINS]) - recorded).norm() / recorded.norm()
                name = "gradients of the coordinate tables, relative"
                found[name] = max(found[name], difference.item())
    return found


def merged_logits_difference() -> float:
    """Difference of the logits of the first inference case after the adapter of a stage folder is merged."""
    model = merge_lora(ORIGINAL_CHECKPOINT, ORIGINAL_LORA, **config_overrides()).eval()
    input_ids = expected()["inference.0.input_ids"].long()[None]
    with torch.no_grad():
        logits = model(input_ids=input_ids, pixel_values_videos=analytic_pixels(1, 100)[None]).logits[0]
    text = expected()["inference.0.text_positions"].long()
    return largest(strided(logits[text]), expected()["lora.0.text_logits_stride11"])


def preprocessing_difference() -> float:
    """Difference of the pixels of the image processor, in uint8 steps."""
    processor = LlavaSTImageProcessor()
    differences = []
    for number in range(3):
        frames, recorded = preprocessing_case(number)
        pixels = processor(frames, return_tensors="pt").pixel_values[:, :, ::5, ::5]
        differences.append(largest(pixels, recorded) / ONE_STEP)
    return max(differences)


def differing_frame_indices() -> int:
    """Number of sampled frame indices that differ."""
    recorded = json.loads((REFERENCE / "metrics" / "text_and_sampling.json").read_text())["frame_indices"]
    return sum(
        actual != index
        for case in recorded
        for actual, index in zip(sample_frame_indices(*case["split"], 100), case["indices"], strict=True)
    )


def main() -> int:
    model = LlavaSTForConditionalGeneration.from_pretrained(ORIGINAL_CHECKPOINT, **config_overrides())
    found = {
        **inference_differences(model),
        **training_differences(model),
        "logits after merging the adapter": merged_logits_difference(),
        "pixels, in uint8 steps": preprocessing_difference(),
        "frame indices that differ": differing_frame_indices(),
    }
    bounds = {
        "logits": 1e-4,
        "image and video features": 1e-4,
        "greedy token ids that differ": 0,
        "loss": 1e-5,
        "gradients of the coordinate tables, relative": 1e-4,
        "logits after merging the adapter": 1e-4,
        "pixels, in uint8 steps": 1 + 1e-4,
        "frame indices that differ": 0,
    }
    print("| quantity | largest difference | bound |\n|---|---|---|")
    for name, bound in bounds.items():
        is_count = isinstance(bound, int)
        print(f"| {name} | {found[name] if is_count else f'{found[name]:.1e}'} | {bound if is_count else f'{bound:.4g}'} |")
    return int(any(found[name] > bound for name, bound in bounds.items()))


if __name__ == "__main__":
    sys.exit(main())
