# SPDX-License-Identifier: Apache-2.0
"""Merges stage folders of the original LLaVA-ST code, which hold a LoRA adapter and a pickle of the other trained weights, and adds
coordinate tokens to a model and its processor."""

import json
import math
import os
import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..model.checks_llava_st import is_finite_number
from ..model.coordinates_llava_st import MAX_BINS, MIN_BINS, coordinate_token
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.original_checkpoint_llava_st import KEY_RENAMES, PACKER_SPLITS, VOCABULARY_PARTS, rename_original_key
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.tokenizer_llava_st import add_coordinate_tokens_to_tokenizer


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = "non_lora_trainables.bin"
_PREFIX = "base_model.model."
_LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# Input and output tables of time, height and width.
_COORDINATE_TABLES = [part for parts in VOCABULARY_PARTS.values() for part in parts[1:]]


def merge_lora(base: str | os.PathLike, adapter: str | os.PathLike, **kwargs) -> LlavaSTForConditionalGeneration:
    """
    Merges a stage folder of the original LLaVA-ST code into the model that it was trained on.

    Args:
        base: folder or hub id of that model, in the original layout or ours.
        adapter: folder with `adapter_config.json`, `adapter_model.safetensors` and `non_lora_trainables.bin`.
        kwargs: for `from_pretrained` of the base, such as `dtype` or `device_map`.

    Returns:
        The merged model. If the base is a stage-1 model and the stage folder has coordinate embeddings, coordinate tokens are added;
        `add_coordinate_tokens_to_processor` returns the processor of such a model.

    Raises:
        FileNotFoundError: naming the file that the folder lacks.
        ValueError: naming the file, and the setting or tensor that does not fit. The pickle is read with `weights_only=True`.
    """
    lora_config, lora, other = _read_stage_folder(adapter)
    model = LlavaSTForConditionalGeneration.from_pretrained(base, **kwargs)
    if not model.config.use_coordinate_tokens and any(table in other for table in _COORDINATE_TABLES):
        add_coordinate_tokens(model, *_table_sizes(other, adapter))
    with torch.no_grad():
        for key, tensor in other.items():
            for parameter, part in _targets(model, key, tensor):
                if parameter.shape != part.shape:
                    shapes = f"shape {tuple(tensor.shape)}, and the parameter of the base model {tuple(parameter.shape)}"
                    raise ValueError(f"{key} in {OTHER_WEIGHTS} has {shapes}.")
                parameter.copy_(part)
        _add_lora(model, lora_config, lora)
    return model


def add_coordinate_tokens_to_processor(model: LlavaSTForConditionalGeneration, processor: LlavaSTProcessor) -> LlavaSTProcessor:
    """Returns the processor of a merged model: that of its base, with coordinate tokens if the model has them.

    Args:
        model: the merged model.
        processor: of the base model. Tokens are added to its tokenizer in place.

    Raises:
        ValueError: if the ids or numbers of coordinate tokens differ between tokenizer and model.
    """
    config = model.config
    if not config.use_coordinate_tokens:
        return processor
    tokenizer = processor.tokenizer
    if processor.num_temporal_bins == 0:
        add_coordinate_tokens_to_tokenizer(tokenizer, config.num_temporal_bins, config.num_spatial_bins)
        options = (
            "packer_spatial_stride",
            "packer_temporal_stride",
            "fast_spatial_stride",
            "use_downsample_image",
            "ignore_prompt_x_coordinates",
        )
        processor = type(processor)(
            processor.image_processor,
            tokenizer,
            processor.video_processor,
            patch_size=processor.patch_size,
            chat_template=processor.chat_template,
            **{name: getattr(processor, name) for name in options},
        )
    first = coordinate_token("temporal", 0)
    expected = (config.coordinate_start_token_id, config.num_temporal_bins, config.num_spatial_bins)
    found = (tokenizer.convert_tokens_to_ids(first), processor.num_temporal_bins, processor.num_spatial_bins)
    if found != expected:
        raise ValueError(
            f"The processor does not belong to the merged model: the id of {first} and the numbers of temporal and spatial bins are "
            f"{found} in the tokenizer and {expected} in the model."
        )
    return processor


def _table_sizes(other: dict[str, torch.Tensor], adapter: str | os.PathLike) -> tuple[int, int]:
    """Returns the numbers of temporal and spatial bins of a stage folder with all six matrices of coordinate embeddings."""
    missing = [table for table in _COORDINATE_TABLES if table not in other]
    if missing:
        raise ValueError(
            f"{adapter}/{OTHER_WEIGHTS} has coordinate embeddings for a base without them, but lacks {', '.join(missing)}: all six "
            "matrices are needed."
        )
    for table in _COORDINATE_TABLES:
        if other[table].ndim != 2 or not MIN_BINS <= len(other[table]) <= MAX_BINS:
            raise ValueError(
                f"{table} in {adapter}/{OTHER_WEIGHTS} has shape {tuple(other[table].shape)}; "
                f"it must be (bins, hidden_size) with {MIN_BINS} to {MAX_BINS} bins."
            )
    return len(other[_COORDINATE_TABLES[0]]), len(other[_COORDINATE_TABLES[1]])


def add_coordinate_tokens(model: LlavaSTForConditionalGeneration, num_temporal_bins: int, num_spatial_bins: int) -> None:
    """Adds coordinate tokens, and with them LAPE, to a stage-1 model, in place (LLaVA-ST, section 3).

    Their embeddings are appended to the input and output embeddings, and initialized from the global random state.

    Args:
        model: without coordinate tokens.
        num_temporal_bins, num_spatial_bins: number of tokens for time, and for each of height and width.

    Raises:
        ValueError: if the model has coordinate tokens.
    """
    config = model.config
    if config.use_coordinate_tokens:
        raise ValueError("The model already has coordinate tokens.")
    first = config.text_config.vocab_size
    model.resize_token_embeddings(first + num_temporal_bins + 2 * num_spatial_bins, mean_resizing=False)
    config.num_temporal_bins, config.num_spatial_bins = num_temporal_bins, num_spatial_bins
    config.coordinate_start_token_id, config.use_coordinate_tokens = first, True
    config.validate()
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight._is_hf_initialized = False  # the new embeddings of a loaded matrix are not initialized
    with torch.no_grad():
        model._init_coordinate_embeddings(model.model)
        model._init_coordinate_embeddings(model)


def _read_stage_folder(adapter: str | os.PathLike) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns the adapter's settings, its weights, and the other trained weights, with keys without PEFT's prefix."""
    if not isinstance(adapter, (str, os.PathLike)):
        raise ValueError(f"adapter={adapter!r} must be the path of a stage folder.")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, OTHER_WEIGHTS):
        if not os.path.isfile(os.path.join(adapter, name)):
            raise FileNotFoundError(f"{adapter} is not a stage folder of LLaVA-ST: it has no {name}.")
    try:
        with open(os.path.join(adapter, ADAPTER_CONFIG), encoding="utf-8") as file:
            lora_config = json.load(file)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} is damaged: {error}") from error
    if not isinstance(lora_config, dict):
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} must contain a JSON object of settings, got {lora_config!r:.100}.")
    expected = {"peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None}
    for name, value in expected.items():
        if lora_config.get(name, value) != value:
            raise ValueError(f"{adapter}/{ADAPTER_CONFIG} has {name}={lora_config[name]!r}; a stage of LLaVA-ST has {value!r}.")
    for name in ("rank_pattern", "alpha_pattern"):
        if lora_config.get(name):
            raise ValueError(f"{adapter}/{ADAPTER_CONFIG} has {name}={lora_config[name]!r}; stages of LLaVA-ST have none.")
    alpha = lora_config.get("lora_alpha")
    if not is_finite_number(alpha):
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} has lora_alpha={alpha!r}; it must be a finite number.")
    try:
        lora = load_file(os.path.join(adapter, ADAPTER_WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"{adapter}/{ADAPTER_WEIGHTS} is damaged: {error}") from error
    other = _read_pickle(os.path.join(adapter, OTHER_WEIGHTS))
    for name, weights in ((ADAPTER_WEIGHTS, lora), (OTHER_WEIGHTS, other)):
        for key, tensor in weights.items():
            if not isinstance(key, str) or not key.startswith(_PREFIX) or not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{adapter}/{name} contains {key!r}; every entry must be a tensor whose key begins with {_PREFIX!r}.")
    lora, other = ({key.removeprefix(_PREFIX): tensor for key, tensor in weights.items()} for weights in (lora, other))
    return lora_config, lora, other


def _read_pickle(path: str) -> dict[str, torch.Tensor]:
    try:
        other = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise many kinds of errors while they are unpickled
        # torch's message advises to run the code in the file; it is in the cause only.
        raise ValueError(
            f"{path} is damaged or contains objects other than tensors, which are not loaded because they could run code."
        ) from error
    if not isinstance(other, dict):
        raise ValueError(f"{path} must contain a dictionary of tensors, got a {type(other).__name__}.")
    return other


def _parameter(model: LlavaSTForConditionalGeneration, key: str, original: str) -> torch.Tensor:
    try:
        return model.get_parameter(key if key.startswith("lm_head.") else f"model.{key}")
    except AttributeError:
        raise ValueError(f"The stage folder contains {original}, but the base model has no {key}.") from None


def _targets(model: LlavaSTForConditionalGeneration, key: str, tensor: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns the parameters, or slices of one, that a tensor of the original layout is copied to, each with its part of the tensor."""
    for whole, parts in VOCABULARY_PARTS.items():
        if key in parts:
            parameter = _parameter(model, whole, key)
            if parts.index(key) == 0:
                base_rows = model.config.coordinates.start_token_id if model.config.use_coordinate_tokens else len(parameter)
                return [(parameter[:base_rows], tensor)]
            if not model.config.use_coordinate_tokens:
                raise ValueError(f"The stage folder contains {key}, but the base model has no coordinate tokens.")
            sizes = model.config.coordinates.sizes()
            start = model.config.coordinates.start_token_id + sum(sizes[: parts.index(key) - 1])
            return [(parameter[start : start + sizes[parts.index(key) - 1]], tensor)]
    ours = rename_original_key(key)
    for fused, names in PACKER_SPLITS.items():
        if ours.endswith(fused):
            parameters = [_parameter(model, ours.removesuffix(fused) + name, key) for name in names]
            return list(zip(parameters, tensor.chunk(len(names)), strict=True))
    if not any(re.match(pattern, key) for pattern in KEY_RENAMES):
        raise ValueError(f"The stage folder contains {key}, which is not a tensor of a LLaVA-ST model.")
    return [(_parameter(model, ours, key), tensor)]


def _add_lora(model: LlavaSTForConditionalGeneration, lora_config: dict, lora: dict[str, torch.Tensor]) -> None:
    """Adds scaling · B A to the weight W (outputs, inputs) of every adapted linear layer, in place."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in lora.items():
        match = _LORA_KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{ADAPTER_WEIGHTS} contains {key}, which is not a LoRA weight.")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise ValueError(f"{ADAPTER_WEIGHTS} contains only lora_{next(iter(pair))} of {module}.")
        shapes = {side: tuple(tensor.shape) for side, tensor in pair.items()}
        if any(len(shape) != 2 for shape in shapes.values()) or shapes["A"][0] != shapes["B"][1] or not shapes["A"][0]:
            raise ValueError(
                f"{ADAPTER_WEIGHTS} contains lora_A of shape {shapes['A']} and lora_B of shape {shapes['B']} of {module}; they must be "
                "(rank, inputs) and (outputs, rank) with the same rank."
            )
        rank = len(pair["A"])
        scaling = lora_config["lora_alpha"] / (math.sqrt(rank) if lora_config.get("use_rslora") else rank)
        [(parameter, _)] = _targets(model, f"{module}.weight", pair["B"])
        if parameter.shape != (len(pair["B"]), pair["A"].shape[1]):
            shape = (len(pair["B"]), pair["A"].shape[1])
            raise ValueError(f"The adapter of {module} is for a weight of shape {shape}; the base model's is {tuple(parameter.shape)}.")
        # In float32: a sum in bfloat16 would lose most of a small update.
        update = scaling * (pair["B"].float() @ pair["A"].float())
        parameter.copy_(parameter.float() + update.to(parameter.device))
