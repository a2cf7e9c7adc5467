# SPDX-License-Identifier: Apache-2.0
"""Inputs of the coordinates in answers during training: exact positions, or the nearest bins as in generation.

A generated coordinate is a token, whose embedding is the input of the next step. In training by the paper the input is the exact position,
interpolated between two bins (LLaVA-ST, section 3.2). The targets are the same for both kinds of inputs: two-hot between these bins.
"""

from typing import Literal, get_args

import numpy as np
import torch

from .labels import IGNORED


AnswerCoordinates = Literal["exact", "bins", "mixed"]
_SHARE_OF_BINS = 0.5  # of the conversations, with "mixed"


def check_answer_coordinates(value: str) -> AnswerCoordinates:
    """Returns `value` if it is "exact", "bins" or "mixed"; else raises `ValueError`."""
    for choice in get_args(AnswerCoordinates):
        if value == choice:
            return choice
    raise ValueError(f"answer_coordinates={value!r} must be one of {', '.join(get_args(AnswerCoordinates))}.")


def choose_bins(choice: AnswerCoordinates, num_conversations: int, seed: list[int]) -> torch.Tensor:
    """
    Chooses the conversations of a batch whose answers have bins as inputs.

    Args:
        choice: "exact": none; "bins": all; "mixed": each with probability 1/2.
        num_conversations: of the batch.
        seed: of the random choice: run, step, micro-batch and process, so that a resumed run makes the same choices.

    Returns:
        (num_conversations,) booleans.
    """
    if choice == "mixed":
        return torch.from_numpy(np.random.default_rng(seed).random(num_conversations) < _SHARE_OF_BINS)
    return torch.full((num_conversations,), choice == "bins")


def answer_coordinate_inputs(
    coordinate_values: torch.Tensor, labels: torch.Tensor, segment_ids: torch.Tensor | None, bins: torch.Tensor
) -> torch.Tensor:
    """
    Removes the exact values of coordinates in answers, so that the input is the embedding of the token, which is the nearest bin.

    Args:
        coordinate_values: (batch_size, sequence_length) exact values (fraction in [0, 1]), NaN where a token has none.
        labels: same shape; a token with a label belongs to an answer.
        segment_ids: same shape, the number of each token's conversation where rows have several, as the collator returns them.
        bins: (num_conversations,) booleans, of `choose_bins`.

    Returns:
        (batch_size, sequence_length)
    """
    bins = bins.to(labels.device, non_blocking=True)
    # A token with a label belongs to one conversation: shared prefixes and padding, with negative numbers, have none.
    of_token = bins[:, None] if segment_ids is None else bins[segment_ids.clamp(min=0)]  # (batch, 1) or (batch, sequence)
    return coordinate_values.masked_fill(of_token & (labels != IGNORED), float("nan"))
