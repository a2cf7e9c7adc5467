# SPDX-License-Identifier: Apache-2.0
"""Selective activation checkpointing: results of matrix products and attention that are kept for the backward pass, everything else is
recomputed there.

With gradient checkpointing alone a layer keeps its input only, and its whole forward pass is computed again in the backward pass.
"""

from functools import partial
from typing import Literal, get_args

import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, create_selective_checkpoint_contexts
from transformers import PreTrainedModel


# "reductions": attention, and products whose result is smaller than the input, such as those with down_proj, k_proj and v_proj: they cost
# the most operations per byte that is kept. "matmuls": attention and all products but those from a low rank, which are cheap to recompute.
KeptActivations = Literal["reductions", "matmuls"]

_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}
_PRODUCTS = {_aten.mm.default: 1, _aten.addmm.default: 2}  # → position of the right factor among the arguments
# Products with more output features per input feature are those of the second matrix of LoRA. MLPs widen by 2.7 to 8.
_WIDENING = 8


def check_kept_activations(value: str | None) -> KeptActivations | None:
    """Returns `value` if it is None, "reductions" or "matmuls"; else raises `ValueError`."""
    if value is None:
        return None
    for choice in get_args(KeptActivations):
        if value == choice:
            return choice
    raise ValueError(f"selective_checkpointing={value!r} must be one of {', '.join(get_args(KeptActivations))}, or null.")


def keeps_result(kept: KeptActivations, operation, args: tuple) -> bool:
    """
    Decides whether the result of an operation in a checkpointed layer is kept.

    Args:
        kept: which results are kept.
        operation: an operator of `torch.ops`.
        args: its arguments.
    """
    if operation in _ATTENTION:
        return True
    if operation not in _PRODUCTS:
        return False
    right = args[_PRODUCTS[operation]]  # (in_features, out_features)
    in_features, out_features = right.shape
    return in_features > out_features or (kept == "matmuls" and in_features * _WIDENING >= out_features)


def _contexts(kept: KeptActivations):
    def policy(context: SelectiveCheckpointContext, operation, *args, **kwargs) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if keeps_result(kept, operation, args) else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def enable_selective_checkpointing(model: PreTrainedModel | nn.Module, kept: KeptActivations) -> None:
    """
    Lets the checkpointed decoder layers of a model keep the results of their costly operations, in place. Packers keep nothing.

    Args:
        model: [`LlavaSTForConditionalGeneration`] or a `PeftModel` around it, with gradient checkpointing enabled.
        kept: which results are kept.

    Raises:
        ValueError: if gradient checkpointing is not enabled, or is reentrant.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = [layer for layer in base.model.language_model.layers if layer.gradient_checkpointing]
    if not layers:
        raise ValueError("selective_checkpointing needs gradient checkpointing of the decoder's layers: set gradient_checkpointing: true.")
    for layer in layers:
        checkpoint = layer._gradient_checkpointing_func
        if checkpoint.keywords.get("use_reentrant") is not False:
            raise ValueError("selective_checkpointing needs gradient_checkpointing_kwargs: {use_reentrant: false}.")
        layer._gradient_checkpointing_func = partial(checkpoint, context_fn=partial(_contexts, kept))
