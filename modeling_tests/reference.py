# SPDX-License-Identifier: Apache-2.0
"""Where the reference measurements lie, the mark of tests that need them, and the inputs that they were taken with."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
ORIGINAL_CHECKPOINT = REFERENCE / "tiny" / "original_checkpoint"

requires_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the reference measurements are absent: no folder {REFERENCE}")


@cache
def config_overrides() -> dict:
    """What the released configuration does not say."""
    return json.loads((REFERENCE / "tiny" / "config_overrides.json").read_text())


@cache
def all_cases() -> dict:
    return json.loads((REFERENCE / "tiny" / "cases.json").read_text())


def cases(kind: str) -> list[dict]:
    """The cases of one kind ("inference" or "training"); none where the reference is absent."""
    return [case for case in all_cases()["cases"] if case["kind"] == kind] if REFERENCE.is_dir() else []


@cache
def expected() -> dict[str, torch.Tensor]:
    """The recorded tensors, by `<case>.<name>`."""
    return load_file(REFERENCE / "tiny" / "expected.safetensors")


def analytic_pixels(seed: int, num_frames: int) -> torch.Tensor:
    """(num_frames, 3, 384, 384) model inputs, computed in float64 and cast to float32."""
    frame, channel, row, column = (
        torch.arange(size, dtype=torch.float64).view([-1 if axis == dim else 1 for axis in range(4)])
        for dim, size in enumerate((num_frames, 3, 384, 384))
    )
    angle = 0.05 * seed + 0.031 * (channel + 1) * row + 0.017 * column * (1 + 0.01 * frame) + 0.3 * frame
    return torch.sin(angle).float()


def case_inputs(case: dict, config) -> dict[str, torch.Tensor]:
    """Model inputs of a case: ids, pixels, and the positions of its placeholders."""
    input_ids = expected()[f"{case['key']}.input_ids"].long()
    coordinates = torch.full(input_ids.shape, float("nan"))
    for axis, name in (("temporal", "temporal"), ("height", "spatial_height"), ("width", "spatial_width")):
        for use in ("input", "output"):
            values = case["locations"][f"{name}_{use}_locations"]
            is_placeholder = input_ids == getattr(config, f"{axis}_{use}_token_id")
            assert int(is_placeholder.sum()) == len(values)
            coordinates[is_placeholder] = torch.tensor(values, dtype=coordinates.dtype)
    inputs = {"input_ids": input_ids[None], "attention_mask": torch.ones_like(input_ids)[None], "coordinate_values": coordinates[None]}
    if case["modality"] == "video":
        inputs["pixel_values_videos"] = analytic_pixels(case["seed"], 100)[None]
    else:
        inputs["pixel_values"] = analytic_pixels(case["seed"], 1)
    return inputs
