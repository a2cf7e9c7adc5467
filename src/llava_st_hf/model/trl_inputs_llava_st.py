# SPDX-License-Identifier: Apache-2.0
"""Inputs of training by TRL's own trainers, whose loss is computed outside of the model.

TRL (`add_fused_lm_head`) replaces `forward` of a model by a function that, called with `fused_lm_head=True`, runs the base model and
computes log-probabilities of `labels` from its hidden states and the head.
"""

from collections.abc import Callable
from functools import wraps
from types import MethodType

import torch
from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
_CHECKS = iter(range(16))  # of batches on a device


def mask_media_labels(labels: torch.Tensor, media_token_ids: list[int]) -> torch.Tensor:
    """
    Removes the labels of image and video tokens. Features replace the embeddings of these tokens, so they cannot be predicted.

    Args:
        labels (`torch.LongTensor` of any shape):
            Ids to predict, -100 where nothing is supervised.
        media_token_ids (`list[int]`):
            Ids of the tokens that features replace.

    Returns:
        `torch.LongTensor` of the same shape, -100 at these tokens.
    """
    is_media = torch.zeros_like(labels, dtype=torch.bool)
    for token_id in media_token_ids:  # comparison with a tensor of ids would copy them to the device, and wait for it
        is_media |= labels == token_id
    return labels.masked_fill(is_media, IGNORED_LABEL)


def mask_counted_labels(labels: torch.Tensor, media_token_ids: list[int]) -> torch.Tensor:
    """
    Removes the labels of image and video tokens as `mask_media_labels` does, and warns once if there are any.

    A trainer divides the sum of the losses by the number of labels, which it counts before the model is called and which the model cannot
    correct: it is that of all micro-batches and processes. On other devices than the CPU only the first batches are checked, since each
    check waits for the device; a data collator treats all batches alike.
    """
    masked = mask_media_labels(labels, media_token_ids)
    if torch.compiler.is_compiling() or (labels.device.type != "cpu" and next(_CHECKS, None) is None):
        return masked
    if not torch.equal(masked, labels):
        logger.warning_once(
            "The data collator labels image or video tokens. They are not learned, but a trainer counts them, which makes the loss and its "
            'gradient too small. Set the labels in the processor\'s output itself (batch["labels"] = batch["input_ids"].clone()), or set '
            "them to -100 at config.all_media_token_ids."
        )
    return masked


def _with_complete_inputs(forward: Callable) -> Callable:
    """Wraps a `forward` that replaces the one of the class."""

    @wraps(forward)
    def complete(self, *args, **kwargs):
        if kwargs.get("fused_lm_head"):
            if any(kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos")):
                # The base model does not have the head, whose rows are part of visual features.
                kwargs["coordinate_output_embeddings"] = self.get_coordinate_output_embeddings()
            for name in ("labels", "shift_labels"):
                if kwargs.get(name) is not None:
                    kwargs[name] = mask_counted_labels(kwargs[name], self.config.all_media_token_ids)
            head = self.get_output_embeddings()
            if not isinstance(head, nn.Linear):
                head.bias = None  # TRL reads the bias, which PEFT's wrapper of trained rows does not have
        return forward(self, *args, **kwargs)

    return complete


class LlavaSTReplacedForwardMixin:
    """Completes the inputs of a `forward` that a trainer assigns to an instance of the model."""

    def __setattr__(self, name, value):
        if name == "forward" and isinstance(value, MethodType):
            value = MethodType(_with_complete_inputs(value.__func__), value.__self__)
        super().__setattr__(name, value)
