# SPDX-License-Identifier: Apache-2.0
"""What is trained, in the model's own terms: the parts of LLaVA-ST, and a LoRA beside them."""

import re
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from ..model.modeling_llava_st import LlavaSTForConditionalGeneration


# Part → where its parameters are, adapter or not; the first that fits. "coordinate_embeddings" are the rows of the coordinate tokens in
# input and output embeddings, "lora" an adapter of every linear layer of the decoder.
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
    """The part that a parameter belongs to, by its name in the model, wrapped or not."""
    for part, pattern in TRAINABLE_MODULES.items():
        if re.search(pattern, parameter_name):
            return part
    raise ValueError(f"{parameter_name} is no parameter of a LLaVA-ST model.")


def check_trainable_modules(parts: Iterable[str], what: str) -> list[str]:
    """`parts` as a list, if each is a part of the model.

    Raises:
        ValueError: naming `what` and the unknown ones.
    """
    parts = [parts] if isinstance(parts, str) else list(parts)
    unknown = [part for part in parts if part not in TRAINABLE_MODULES]
    if unknown or not parts:
        raise ValueError(
            f"{what} names {', '.join(map(repr, unknown)) or 'nothing'}; the parts of the model are {', '.join(TRAINABLE_MODULES)}."
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
    Freezes the model but for `parts`, in place.

    Args:
        model: without an adapter.
        parts: keys of `TRAINABLE_MODULES`. With "lora", or "coordinate_embeddings" of embeddings that are frozen otherwise, the model
            becomes a `PeftModel` whose folders hold all trained parts.
        lora_r, lora_alpha, lora_dropout: rank, scale and dropout of the adapter (LLaVA-ST, section 4.1).

    Returns:
        The model, or the `PeftModel` around it.

    Raises:
        ValueError: where the parts are unknown, or are not to be had of this model or together.
    """
    parts = check_trainable_modules(parts, "train")
    _check_fit(model, parts)
    wanted = set(parts)
    if "coordinate_embeddings" in wanted and {"input_embeddings", "output_embeddings"} <= wanted:
        wanted.remove("coordinate_embeddings")  # they are rows of these matrices
    if wanted & {"lora", "coordinate_embeddings"}:
        return _with_adapter(model, wanted, lora_r, lora_alpha, lora_dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)
    _freeze_unused(model)
    return model


def _check_fit(model: LlavaSTForConditionalGeneration, parts: list[str]) -> None:
    if "lora" in parts and "language_model" in parts:
        raise ValueError('train names both "lora" and "language_model": the adapter is there in order to leave the decoder frozen.')
    if "coordinate_embeddings" in parts and not model.config.use_coordinate_tokens:
        raise ValueError(
            "train names coordinate_embeddings, but the model has no coordinate tokens yet (it is of stage 1). `prepare_base_model` adds "
            "them."
        )
    if "output_embeddings" in parts and "input_embeddings" not in parts and model.config.tie_word_embeddings:
        raise ValueError("Input and output embeddings of this model are one matrix: train names output_embeddings alone.")


def _with_adapter(model, wanted: set[str], lora_r: int, lora_alpha: int, lora_dropout: float):
    from peft import LoraConfig, get_peft_model

    if "language_model" in wanted:
        raise ValueError(
            "train names language_model and single rows of its embeddings: name input_embeddings and output_embeddings in place of "
            "coordinate_embeddings."
        )
    whole = {"packer": "packer", "input_embeddings": "embed_tokens", "output_embeddings": "lm_head"}
    whole |= {"vision_tower": "vision_tower", "projector": "multi_modal_projector"}
    rows = None
    if "coordinate_embeddings" in wanted:
        coordinates = model.config.coordinates
        ids = list(range(coordinates.start_token_id, coordinates.end_token_id))
        rows = {
            name: ids
            for part, name in (("input_embeddings", "embed_tokens"), ("output_embeddings", "lm_head"))
            if part not in wanted and not (name == "lm_head" and model.config.tie_word_embeddings)
        }
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        # PEFT's name for no layer at all, where rows alone are trained.
        target_modules=_LORA_TARGETS if "lora" in wanted else "dummy-target-modules",
        modules_to_save=[name for part, name in whole.items() if part in wanted] or None,
        trainable_token_indices=rows or None,
        ensure_weight_tying=model.config.tie_word_embeddings,
    )
    adapted = get_peft_model(model, config)
    _freeze_unused(model)
    return adapted


def _freeze_unused(model: LlavaSTForConditionalGeneration) -> None:
    """Weights that no computation reads: the fast packer of a model that drops its stream, as the released one does."""
    if model.config.disable_fast_stream:
        model.model.packer.fast.requires_grad_(False)
