# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints → ours, where `from_pretrained` alone is not enough: stage folders that hold a LoRA adapter and a pickle
of the other trained weights, on top of a base model."""

import json
import math
import os
import re

import torch
from safetensors.torch import load_file

from .modeling_llava_st import LlavaSTForConditionalGeneration
from .released_layout_llava_st import KEY_RENAMES, PACKER_SPLITS, VOCABULARY_PARTS, rename_released_key


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = "non_lora_trainables.bin"
_PREFIX = "base_model.model."
_LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_TEMPORAL_TABLE = "model.temporal_input_embeddings.weight"
_SPATIAL_TABLE = "model.spatial_height_input_embeddings.weight"


def merge_lora(base: str | os.PathLike, adapter: str | os.PathLike, **kwargs) -> LlavaSTForConditionalGeneration:
    """
    A stage folder of the released program, merged into the model it was trained on.

    Args:
        base: folder or hub id of that model, in the released layout or ours.
        adapter: folder with `adapter_config.json`, `adapter_model.safetensors` and `non_lora_trainables.bin`.
        kwargs: passed on to `from_pretrained` of the base, such as `dtype` or `device_map`.

    Returns:
        The merged model. A base of stage 1 that meets coordinate tables grows its vocabulary by them.

    Raises:
        FileNotFoundError: naming what the folder lacks.
        ValueError: naming the setting or tensor that does not fit. The pickle is read with `weights_only=True`.
    """
    lora_config, lora, other = _read_stage_folder(adapter)
    model = LlavaSTForConditionalGeneration.from_pretrained(base, **kwargs)
    if not model.config.use_lape and _TEMPORAL_TABLE in other:
        add_coordinate_rows(model, len(other[_TEMPORAL_TABLE]), len(other[_SPATIAL_TABLE]))
    with torch.no_grad():
        for key, tensor in other.items():
            for parameter, part in _targets(model, key, tensor):
                if parameter.shape != part.shape:
                    shapes = f"shape {tuple(tensor.shape)}, and its place in the base model {tuple(parameter.shape)}"
                    raise ValueError(f"{key} in {OTHER_WEIGHTS} has {shapes}.")
                parameter.copy_(part)
        _add_lora(model, lora_config, lora)
    return model


def add_coordinate_rows(model: LlavaSTForConditionalGeneration, num_temporal_bins: int, num_spatial_bins: int) -> None:
    """Turns a stage-1 model into one with LAPE: adds the coordinate tokens' rows at the end of both embeddings, freshly
    initialised, in place."""
    config = model.config
    if config.use_lape:
        raise ValueError("The model has coordinate tokens already.")
    first = config.text_config.vocab_size
    model.resize_token_embeddings(first + num_temporal_bins + 2 * num_spatial_bins, mean_resizing=False)
    config.num_temporal_bins, config.num_spatial_bins = num_temporal_bins, num_spatial_bins
    config.coordinate_start_token_id, config.use_lape = first, True
    config.validate()
    with torch.no_grad():
        model._init_coordinate_rows(model.model)
        model._init_coordinate_rows(model)


def _read_stage_folder(adapter: str | os.PathLike) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The adapter's settings and weights and the other trained weights, keys without PEFT's prefix."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, OTHER_WEIGHTS):
        if not os.path.isfile(os.path.join(adapter, name)):
            raise FileNotFoundError(f"{adapter} is no stage folder of LLaVA-ST: it has no {name}.")
    with open(os.path.join(adapter, ADAPTER_CONFIG), encoding="utf-8") as file:
        lora_config = json.load(file)
    expected = {"peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None}
    for name, value in expected.items():
        if lora_config.get(name, value) != value:
            raise ValueError(f"{adapter}/{ADAPTER_CONFIG} has {name}={lora_config[name]!r}; a stage of LLaVA-ST has {value!r}.")
    for name in ("rank_pattern", "alpha_pattern"):
        if lora_config.get(name):
            raise ValueError(f"{adapter}/{ADAPTER_CONFIG} has a {name}, which no stage of LLaVA-ST has: {lora_config[name]!r}.")
    lora = load_file(os.path.join(adapter, ADAPTER_WEIGHTS))
    other = torch.load(os.path.join(adapter, OTHER_WEIGHTS), map_location="cpu", weights_only=True)
    for name, weights in ((ADAPTER_WEIGHTS, lora), (OTHER_WEIGHTS, other)):
        for key, tensor in weights.items():
            if not key.startswith(_PREFIX) or not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{adapter}/{name} holds {key!r}; every entry is a tensor whose key begins with {_PREFIX!r}.")
    return lora_config, *({key.removeprefix(_PREFIX): tensor for key, tensor in weights.items()} for weights in (lora, other))


def _parameter(model: LlavaSTForConditionalGeneration, key: str, released: str) -> torch.Tensor:
    try:
        return model.get_parameter(key if key.startswith("lm_head.") else f"model.{key}")
    except AttributeError:
        raise ValueError(f"The stage folder holds {released}, of which the base model has no counterpart ({key}).") from None


def _targets(model: LlavaSTForConditionalGeneration, key: str, tensor: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Our parameters, or rows of one, that a released tensor fills, each with its part of the tensor."""
    for whole, parts in VOCABULARY_PARTS.items():
        if key in parts:
            parameter = _parameter(model, whole, key)
            if parts.index(key) == 0:
                base_rows = model.config.coordinates.start_token_id if model.config.use_lape else len(parameter)
                return [(parameter[:base_rows], tensor)]
            if not model.config.use_lape:
                raise ValueError(f"The stage folder holds {key}, but the base model has no coordinate tokens.")
            sizes = model.config.coordinates.sizes()
            start = model.config.coordinates.start_token_id + sum(sizes[: parts.index(key) - 1])
            return [(parameter[start : start + sizes[parts.index(key) - 1]], tensor)]
    ours = rename_released_key(key)
    for fused, names in PACKER_SPLITS.items():
        if ours.endswith(fused):
            parameters = [_parameter(model, ours.removesuffix(fused) + name, key) for name in names]
            return list(zip(parameters, tensor.chunk(len(names)), strict=True))
    if not any(re.match(pattern, key) for pattern in KEY_RENAMES):
        raise ValueError(f"The stage folder holds {key}, which is no tensor of a LLaVA-ST model.")
    return [(_parameter(model, ours, key), tensor)]


def _add_lora(model: LlavaSTForConditionalGeneration, lora_config: dict, lora: dict[str, torch.Tensor]) -> None:
    """W += scaling · B A of every adapted linear."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in lora.items():
        match = _LORA_KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{ADAPTER_WEIGHTS} holds {key}, which is no LoRA weight.")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise ValueError(f"{ADAPTER_WEIGHTS} holds only lora_{next(iter(pair))} of {module}.")
        rank = len(pair["A"])
        scaling = lora_config["lora_alpha"] / (math.sqrt(rank) if lora_config.get("use_rslora") else rank)
        [(parameter, _)] = _targets(model, f"{module}.weight", pair["B"])
        if parameter.shape != (len(pair["B"]), pair["A"].shape[1]):
            shape = (len(pair["B"]), pair["A"].shape[1])
            raise ValueError(f"The adapter of {module} is for a weight of shape {shape}; the base model's is {tuple(parameter.shape)}.")
        # In fp32: the sum of a small update in bf16 would lose most of it.
        update = scaling * (pair["B"].float() @ pair["A"].float())
        parameter.copy_(parameter.float() + update.to(parameter.device))
