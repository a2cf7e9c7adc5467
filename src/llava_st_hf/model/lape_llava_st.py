# SPDX-License-Identifier: Apache-2.0
"""Functions of the coordinate tokens' embeddings (LLaVA-ST, section 3.2): linear interpolation between two bins, Language-Aligned
Positional Embedding of visual features, and Neighbouring Token Propagation. None of them has weights of its own."""

import torch
from torch.nn import functional as F

from .coordinates_llava_st import CoordinateVocabulary, propagation_matrix


def propagate(embeddings: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """
    Applies Neighbouring Token Propagation: w + Mw - stopgrad(Mw). The value is w, the gradient is (I + M)·g.

    Args:
        embeddings (`torch.FloatTensor` of shape `(num_coordinates, hidden_size)`):
            One embedding per coordinate token.
        sizes (`list[int]`):
            Number of bins of each axis.

    Returns:
        `torch.FloatTensor` of shape `(num_coordinates, hidden_size)`.
    """
    mixed = propagation_matrix(sizes, device=embeddings.device, dtype=embeddings.dtype) @ embeddings
    return embeddings + (mixed - mixed.detach())


def interpolate_coordinates(
    input_ids: torch.LongTensor,
    inputs_embeds: torch.Tensor,
    coordinate_values: torch.FloatTensor | None,
    coordinate_embeddings: torch.Tensor,
    vocabulary: CoordinateVocabulary,
) -> torch.Tensor:
    """
    Replaces the embeddings of coordinate tokens: by the linear interpolation of two bins' embeddings where an exact value is given, else
    by the token's own embedding.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Token ids.
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Embeddings of these tokens.
        coordinate_values (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Fractions in [0, 1], NaN where a token has no exact value.
        coordinate_embeddings (`torch.FloatTensor` of shape `(num_coordinates, hidden_size)`):
            Input embeddings of the coordinate tokens, with or without propagation.
        vocabulary ([`CoordinateVocabulary`]):
            Ids and bins of the coordinate tokens.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`.
    """
    if coordinate_values is None:
        coordinate_values = torch.full_like(input_ids, float("nan"), dtype=torch.float32)
    lower, upper, weight = vocabulary.between_tokens(input_ids, coordinate_values.float())
    is_coordinate = (lower >= vocabulary.start_token_id) & (lower < vocabulary.end_token_id)
    lower, upper = ((ids - vocabulary.start_token_id).clamp(0, len(vocabulary) - 1) for ids in (lower, upper))
    lower, upper = F.embedding(lower, coordinate_embeddings), F.embedding(upper, coordinate_embeddings)  # (batch, sequence, hidden)
    interpolated = lower + weight[..., None].to(lower.dtype) * (upper - lower)
    return torch.where(is_coordinate[..., None], interpolated, inputs_embeds)


def add_positions(features: torch.Tensor, coordinate_embeddings: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """
    Adds the Language-Aligned Positional Embedding: for each axis the embeddings of its tokens, interpolated from bins to the frames, rows
    and columns of the features.

    Args:
        features (`torch.FloatTensor` of shape `(num_videos, num_frames, num_rows, num_columns, hidden_size)`):
            Patch features.
        coordinate_embeddings (`torch.FloatTensor` of shape `(num_coordinates, hidden_size)`):
            Mean of each coordinate token's input and output embedding.
        sizes (`list[int]`):
            Number of bins of each axis.

    Returns:
        `torch.FloatTensor` of the shape of `features`.
    """
    positions = 0
    for dim, embeddings in enumerate(coordinate_embeddings.split(sizes), start=1):
        length = features.shape[dim]
        if dim == 1 and length == 1:
            embeddings = embeddings[:1]  # an image has the time 0
        elif len(embeddings) != length:
            embeddings = F.interpolate(embeddings.float().T[None], size=length, mode="linear", align_corners=False)[0].T
        embeddings = embeddings.to(features.device, features.dtype).view([1] * dim + [length] + [1] * (3 - dim) + [-1])
        if dim == 1:
            features = features + embeddings  # (videos, frames, rows, columns, hidden)
        else:  # rows and columns are the same in every frame: their sum is added once
            positions = positions + embeddings  # (1, 1, rows, columns, hidden)
    return features + positions
