# SPDX-License-Identifier: Apache-2.0
"""What is done with the embeddings of the coordinate tokens: blending two bins, Language-Aligned Positional Embedding of
visual features, and Neighbouring Token Propagation (LLaVA-ST, section 3.2). Functions of tensors, without weights."""

import torch
from torch.nn import functional as F

from .coordinates_llava_st import CoordinateVocabulary, propagation_matrix


def propagate(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Neighbouring Token Propagation: w + Mw - stopgrad(Mw). The values are those of `rows`, the gradient is (I + M)·g.

    Args:
        rows: (num_coordinates, hidden_size), one row for each coordinate token.
        sizes: number of bins of each axis.
    """
    mixed = propagation_matrix(sizes, device=rows.device, dtype=rows.dtype) @ rows
    return rows + (mixed - mixed.detach())


def blend_coordinates(
    input_ids: torch.LongTensor,
    inputs_embeds: torch.Tensor,
    coordinates: torch.FloatTensor | None,
    rows: torch.Tensor,
    vocabulary: CoordinateVocabulary,
) -> torch.Tensor:
    """
    Replaces the embeddings of coordinate tokens: by a blend of two bins where an exact position is given, else by the
    token's own row.

    Args:
        input_ids: (batch_size, sequence_length)
        inputs_embeds: (batch_size, sequence_length, hidden_size), the tokens' embeddings.
        coordinates: (batch_size, sequence_length), fractions in [0, 1] or NaN; None for NaN throughout.
        rows: (num_coordinates, hidden_size), embeddings of the coordinate tokens, propagated or not.

    Returns:
        (batch_size, sequence_length, hidden_size)
    """
    if coordinates is None:
        coordinates = torch.full_like(input_ids, float("nan"), dtype=torch.float32)
    lower, upper, weight = vocabulary.between_tokens(input_ids, coordinates.float())
    is_coordinate = (lower >= vocabulary.start_token_id) & (lower < vocabulary.end_token_id)
    lower, upper = ((ids - vocabulary.start_token_id).clamp(0, len(vocabulary) - 1) for ids in (lower, upper))
    lower, upper = F.embedding(lower, rows), F.embedding(upper, rows)  # (batch, sequence, hidden)
    blended = lower + weight[..., None].to(lower.dtype) * (upper - lower)
    return torch.where(is_coordinate[..., None], blended, inputs_embeds)


def add_positions(features: torch.Tensor, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """
    Language-Aligned Positional Embedding: each axis adds its rows, interpolated from bins to frames, rows and columns.

    Args:
        features: (videos, frames, rows, columns, hidden_size)
        rows: (num_coordinates, hidden_size), the mean of each coordinate token's input and output embedding.
        sizes: number of bins of each axis.

    Returns:
        as `features`
    """
    positions = 0
    for dim, axis_rows in enumerate(rows.split(sizes), start=1):
        length = features.shape[dim]
        if dim == 1 and length == 1:
            axis_rows = axis_rows[:1]  # a single frame is an image, at the start of time
        elif len(axis_rows) != length:
            axis_rows = F.interpolate(axis_rows.float().T[None], size=length, mode="linear", align_corners=False)[0].T
        shape = [1] * dim + [length] + [1] * (3 - dim) + [-1]
        if dim == 1:
            features = features + axis_rows.to(features.device, features.dtype).view(shape)
        else:  # the plane's positions are the same in every frame: summed before they meet the features
            positions = positions + axis_rows.to(features.device, features.dtype).view(shape)
    return features + positions
