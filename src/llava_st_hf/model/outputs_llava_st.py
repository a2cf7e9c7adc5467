# SPDX-License-Identifier: Apache-2.0
"""Outputs of the LLaVA-ST models."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import ModelOutput

from .cache_name_llava_st import CACHE_NAMES


@dataclass
class LlavaSTModelOutputWithPast(BaseModelOutputWithPast):
    """
    Output of [`LlavaSTModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            The decoder's last hidden states.
        cache (`Cache`, *optional*):
            Keys and values of the decoder's attention: `past_key_values` before transformers 5.24.
        image_hidden_states (`torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
            Features of all images in the decoder's input, without padding images.
        video_hidden_states (`torch.FloatTensor` of shape `(num_video_tokens, hidden_size)`, *optional*):
            Features of all videos in the decoder's input, without padding videos: of each video the fast stream, then the slow one.
        image_outputs, video_outputs (`BaseModelOutputWithPooling`, *optional*):
            Output of `get_image_features` and of `get_video_features`, with `output_hidden_states` or `output_attentions` only.
    """

    image_hidden_states: torch.FloatTensor | None = None
    video_hidden_states: torch.FloatTensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None
    video_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class LlavaSTCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of [`LlavaSTForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Soft cross-entropy, summed over supervised tokens and divided by `num_items_in_batch`, by default their number.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
            Prediction scores; coordinate tokens are the last columns. Not built in training (see `skip_logits`).
        cache (`Cache`, *optional*):
            Keys and values of the decoder's attention: `past_key_values` before transformers 5.24.
        token_losses (`torch.FloatTensor` of shape `(num_supervised_tokens,)`, *optional*, returned when `labels` is given):
            Loss of each supervised token in batch-major order, detached, for logging.
        bin_errors (`torch.FloatTensor` of shape `(num_supervised_tokens,)`, *optional*, returned when `labels` is given):
            Absolute difference between the most probable bin and the exact target of each supervised coordinate token, in bins; NaN at
            other tokens. None in a model without coordinate tokens, and with a wrapped head (see `supervised_cross_entropy`).
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            Hidden states of the decoder, one per layer and that of the embeddings, each of shape `(batch_size, sequence_length,
            hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            Attention weights of the decoder, one per layer, each of shape `(batch_size, num_heads, sequence_length, sequence_length)`.
        image_hidden_states (`torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
            Features of all images in the decoder's input, without padding images.
        video_hidden_states (`torch.FloatTensor` of shape `(num_video_tokens, hidden_size)`, *optional*):
            Features of all videos in the decoder's input, without padding videos.
        image_outputs, video_outputs (`BaseModelOutputWithPooling`, *optional*):
            Output of `get_image_features` and of `get_video_features`, with `output_hidden_states` or `output_attentions` only.
    """

    token_losses: torch.FloatTensor | None = None
    bin_errors: torch.FloatTensor | None = None
    image_hidden_states: torch.FloatTensor | None = None
    video_hidden_states: torch.FloatTensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None
    video_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class LlavaSTGenerateOutput(GenerateDecoderOnlyOutput):
    """
    Output of `generate` with `return_dict_in_generate=True` and an argument of LLaVA-ST's decode loop.

    Args:
        sequences (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Prompt and generated tokens.
        cache (`Cache`):
            Keys and values of all but the last token: `past_key_values` before transformers 5.24.
        token_logprobs (`torch.FloatTensor` of shape `(batch_size, num_new_tokens)`, *optional*, returned with `output_coordinate_scores`):
            Log probability of each generated token, before temperature and truncation of the distribution; 0 at padding.
        coordinate_logits (`torch.FloatTensor` of shape `(batch_size, num_new_tokens, num_coordinates)`, *optional*, returned with
            `output_coordinate_scores`):
            Log probability of each coordinate token at each step, in the order of the vocabulary; 0 at padding.
    """

    token_logprobs: torch.Tensor | None = None
    coordinate_logits: torch.Tensor | None = None


def split_generate_output(output: ModelOutput, batch_size: int) -> list[dict[str, Any]]:
    """
    Splits an output of `generate` into those of the single prompts.

    Args:
        output (`ModelOutput`):
            Output of `generate` with `return_dict_in_generate=True`.
        batch_size (`int`):
            Number of prompts.

    Returns:
        `list[dict]`: for each prompt the fields of `output` that have a value, except for the cache. The values have the structure of
        the output (tuples for steps and layers), with tensors without their first dimension, or, where a prompt has several rows (beams
        before the best is chosen), with its rows.
    """
    fields = {name: value for name, value in output.items() if value is not None and name not in CACHE_NAMES}
    return [{name: _of_prompt(value, number, batch_size) for name, value in fields.items()} for number in range(batch_size)]


def _of_prompt(value, number: int, batch_size: int):
    if isinstance(value, tuple):
        return tuple(_of_prompt(part, number, batch_size) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    rows = len(value) // batch_size
    return value[number] if rows == 1 else value[number * rows : (number + 1) * rows]


def keep_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """
    Selects the positions whose logits are computed. (transformers ≥ 5.21 has `slice_logits_to_keep` for it.)

    Args:
        hidden_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Hidden states of all positions.
        logits_to_keep (`int` or `torch.Tensor`):
            Number of last positions (0: all), their indices of shape `(num_positions,)` or `(batch_size, num_positions)`, or a boolean
            mask of shape `(batch_size, sequence_length)`.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_positions, hidden_size)`, or `(num_positions, hidden_size)` with a mask.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)
