# SPDX-License-Identifier: Apache-2.0
"""Recorded outputs of the original LLaVA-ST code (`reference_data/README.md`), and the inputs with which they were recorded."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file


REFERENCE = Path(__file__).resolve().parent / "reference_data"
ORIGINAL_CHECKPOINT = REFERENCE / "tiny" / "original_checkpoint"
ORIGINAL_LORA = REFERENCE / "tiny" / "original_lora"
STRIDE = 11  # every eleventh value of large tensors is recorded; 11 does not divide any row length, so every column occurs


@cache
def config_overrides() -> dict:
    """Configuration values that the original LLaVA-ST code hard-codes, so that its `config.json` lacks them."""
    return json.loads((REFERENCE / "tiny" / "config_overrides.json").read_text())


@cache
def all_cases() -> list[dict]:
    return json.loads((REFERENCE / "tiny" / "cases.json").read_text())


def cases(kind: str) -> list[dict]:
    """The cases of one kind ("inference" or "training")."""
    return [case for case in all_cases() if case["kind"] == kind]


@cache
def expected() -> dict[str, torch.Tensor]:
    """The recorded tensors, by `<case>.<name>`."""
    return load_file(REFERENCE / "tiny" / "expected.safetensors")


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """Every eleventh value of the flattened tensor, as in the tensors of `expected()` whose names end in `_stride11`."""
    return tensor.flatten()[::STRIDE]


def preprocessing_case(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(frames, pixel_values)`: uint8 (frames, height, width, 3), and every fifth row and column of the (frames, 3, 384, 384) inputs."""
    resized = expected()[f"preprocess.{number}.resized_stride5"]
    return expected()[f"preprocess.{number}.frames"], ((resized.double() / 255 - 0.5) / 0.5).float()


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
