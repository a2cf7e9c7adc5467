# SPDX-License-Identifier: Apache-2.0
"""Modules of LLaVA-ST that a run trains, and LoRA adapters for the language model."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from ..model.backbones_llava_st import freeze_unused_parameters
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.presence_llava_st import set_presence_calibration
from ..model.renamed_arguments_llava_st import warn_renamed
from ..model.scores_llava_st import set_calibration


# Module → pattern of its parameter names, with or without an adapter; the first match counts. "coordinate_embeddings" are the input and
# output embeddings of the coordinate tokens, "lora" is an adapter of every linear layer of the language model.
TRAINABLE_MODULES = {
    "lora": r"\.lora_[AB]\.",
    "coordinate_embeddings": r"\.trainable_tokens_delta\.",
    "vision_tower": r"(^|\.)vision_tower\.",
    "projector": r"(^|\.)multi_modal_projector\.",
    "packer": r"(^|\.)packer\.",
    "input_embeddings": r"(^|\.)language_model\.embed_tokens\.",
    "output_embeddings": r"(^|\.)lm_head\.",
    "language_model": r"(^|\.)language_model\.(layers|norm)\.",
}
_LORA_TARGETS = r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def part_of(parameter_name: str) -> str:
    """Returns the key of `TRAINABLE_MODULES` that a parameter belongs to, by its name in the model or in a wrapper of it."""
    for part, pattern in TRAINABLE_MODULES.items():
        if re.search(pattern, parameter_name):
            return part
    raise ValueError(f"{parameter_name} is not a parameter of a LLaVA-ST model. This is a bug of llava-st-hf: please report it.")


def check_trainable_modules(parts: Iterable[str], what: str) -> list[str]:
    """Returns `parts` as a list if each is a key of `TRAINABLE_MODULES`.

    The old name "coordinate_rows" becomes "coordinate_embeddings", with a `FutureWarning`.

    Raises:
        ValueError: naming the argument `what` and the unknown keys.
    """
    parts = [parts] if isinstance(parts, str) else list(parts)
    if "coordinate_rows" in parts:
        warn_renamed('The module "coordinate_rows"', '"coordinate_embeddings"', stacklevel=3)
        parts = ["coordinate_embeddings" if part == "coordinate_rows" else part for part in parts]
    unknown = [part for part in parts if part not in TRAINABLE_MODULES]
    if unknown or not parts:
        raise ValueError(
            f"{what} contains {', '.join(map(repr, unknown)) or 'no module'}; it must list modules among {', '.join(TRAINABLE_MODULES)}."
        )
    return parts


def prepare_model_for_training(
    model: LlavaSTForConditionalGeneration,
    parts: list[str],
    lora_r: int = 128,
    lora_alpha: int = 256,
    lora_dropout: float = 0.05,
) -> PreTrainedModel | nn.Module:
    """
    Freezes all modules except `parts`, in place, and adds LoRA adapters if asked for. A calibration of the scores is removed.

    Args:
        model: without an adapter.
        parts: keys of `TRAINABLE_MODULES`. With "lora", or "coordinate_embeddings" of embeddings that are otherwise frozen, the model
            is wrapped in a `PeftModel`, whose saved folders contain all trained modules.
        lora_r, lora_alpha, lora_dropout: rank, scale and dropout of the adapter (LLaVA-ST, section 4.1).

    Returns:
        The model, or the `PeftModel` around it.

    Raises:
        ValueError: if a module is unknown, or cannot be trained in this model or together with another one.
    """
    parts = check_trainable_modules(parts, "trainable_modules")
    _check_fit(model, parts)
    set_calibration(model.generation_config, None)
    set_presence_calibration(model.generation_config, None)
    wanted = set(parts)
    if "coordinate_embeddings" in wanted and {"input_embeddings", "output_embeddings"} <= wanted:
        wanted.remove("coordinate_embeddings")  # they are part of these matrices
    if wanted & {"lora", "coordinate_embeddings"}:
        return _with_adapter(model, wanted, lora_r, lora_alpha, lora_dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)
    _freeze_unused(model)
    return model


def _check_fit(model: LlavaSTForConditionalGeneration, parts: list[str]) -> None:
    if "lora" in parts and "language_model" in parts:
        raise ValueError(
            'trainable_modules contains both "lora" and "language_model": LoRA keeps the language model frozen. Remove one of them.'
        )
    if "coordinate_embeddings" in parts and not model.config.use_coordinate_tokens:
        raise ValueError(
            "trainable_modules contains coordinate_embeddings, but the model has no coordinate tokens (it is a stage-1 model). Add them "
            "by `prepare_base_model`."
        )
    if "output_embeddings" in parts and "input_embeddings" not in parts and model.config.tie_word_embeddings:
        raise ValueError("Input and output embeddings of this model are one matrix: add input_embeddings to trainable_modules.")


def _with_adapter(model, wanted: set[str], lora_r: int, lora_alpha: int, lora_dropout: float):
    from peft import LoraConfig, get_peft_model

    if "language_model" in wanted:
        raise ValueError(
            "trainable_modules contains language_model and coordinate_embeddings, which needs frozen embeddings: replace the latter by "
            "input_embeddings and output_embeddings."
        )
    modules = {"packer": "packer", "input_embeddings": "embed_tokens", "output_embeddings": "lm_head"}
    modules |= {"vision_tower": "vision_tower", "projector": "multi_modal_projector"}
    token_indices = None
    if "coordinate_embeddings" in wanted:
        coordinates = model.config.coordinates
        ids = list(range(coordinates.start_token_id, coordinates.end_token_id))
        token_indices = {
            name: ids
            for part, name in (("input_embeddings", "embed_tokens"), ("output_embeddings", "lm_head"))
            if part not in wanted and not (name == "lm_head" and model.config.tie_word_embeddings)
        }
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        # PEFT's name for no layer, if only embeddings are trained.
        target_modules=_LORA_TARGETS if "lora" in wanted else "dummy-target-modules",
        modules_to_save=[name for part, name in modules.items() if part in wanted] or None,
        trainable_token_indices=token_indices or None,
        ensure_weight_tying=model.config.tie_word_embeddings,
    )
    adapted = get_peft_model(model, config)
    _freeze_unused(model)
    return adapted


def _freeze_unused(model: LlavaSTForConditionalGeneration) -> None:
    """Freezes weights without effect: the fast packer of a model without the fast stream, such as the original checkpoints, and those of
    the vision encoder that only its pretraining uses."""
    freeze_unused_parameters(model.model.vision_tower)
    if model.config.disable_fast_stream:
        model.model.packer.fast.requires_grad_(False)


@contextmanager
def uncast_lora_inputs(model: nn.Module) -> Iterator[None]:
    """
    Lets LoRA layers take their inputs in half precision during the block, for a forward and backward pass under autocast.

    PEFT converts these inputs to float32, the type of LoRA's weights, before dropout; autocast converts them back for the product. This
    costs memory and its traffic, and no precision is gained.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and module.cast_input_dtype_enabled]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True
