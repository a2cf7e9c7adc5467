# SPDX-License-Identifier: Apache-2.0
"""Positions of images and videos among the tokens, and the replacement of their embeddings by features."""

import torch
from torch import nn
from transformers.utils import torch_compilable_check


def find_placeholders(
    token_ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    input_ids: torch.LongTensor | None,
    inputs_embeds: torch.FloatTensor | None,
    embedding: nn.Module,
) -> torch.Tensor:
    """
    Finds the positions that visual features replace: patch tokens and the markers around them. A marker without a patch token or another
    marker beside it is text, such as one that the model has generated.

    Args:
        token_ids (`tuple(tuple(int), tuple(int), tuple(int))`):
            Ids of opening markers, of patch tokens and of closing markers.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Token ids. If None, tokens are found by their embeddings.
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
            Read only without `input_ids`.
        embedding (`nn.Module`):
            Input embeddings of the model.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, sequence_length)`, True at these positions.
    """

    def positions_of(ids: tuple[int, ...]) -> torch.Tensor:
        if input_ids is not None:
            masks = [input_ids == token_id for token_id in ids]
        else:
            embeddings = embedding(torch.tensor(ids, device=inputs_embeds.device))
            masks = [(inputs_embeds == token).all(-1) for token in embeddings.to(inputs_embeds.device)]
        return torch.stack(masks).any(0)

    openings, patches, closings = map(positions_of, token_ids)
    before_content = nn.functional.pad(patches | closings, (0, 1))[:, 1:]
    after_content = nn.functional.pad(patches | openings, (1, 0))[:, :-1]
    return patches | (openings & before_content) | (closings & after_content)


def check_no_placeholders(kind: str, placeholder_mask: torch.Tensor) -> None:
    """
    Raises an error for tokens of images or videos without their pixels.

    Args:
        kind (`str`):
            `"image"` or `"video"`, for the error message.
        placeholder_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            Positions that features would replace.

    Raises:
        ValueError: If there are any.
    """
    torch_compilable_check(
        ~placeholder_mask.any(),
        lambda: (
            f"The text has {int(placeholder_mask.sum())} {kind} tokens, but no {kind}s are given. Pass their pixels: the data collator "
            "must process images and videos with the text. (TRL does if the dataset has a column `images`, which may hold empty lists.)"
        ),
    )


def insert_features(
    kind: str,
    features: torch.Tensor | list[torch.Tensor],
    media_mask: torch.Tensor | None,
    placeholder_mask: torch.Tensor,
    inputs_embeds: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Replaces embeddings by the features of images or videos.

    Args:
        kind (`str`):
            `"image"` or `"video"`, for error messages.
        features (`torch.FloatTensor` of shape `(num_media, num_tokens, hidden_size)`, or a list of such):
            Features of all images or videos, in the order of their tokens.
        media_mask (`torch.BoolTensor` of shape `(num_media,)`, *optional*):
            False for padding media, whose features are not used.
        placeholder_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            Positions of the features.
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Embeddings of all tokens.

    Returns:
        `tuple(torch.FloatTensor, torch.FloatTensor)`: the embeddings, and the features in use, of shape `(num_tokens, hidden_size)`.

    Raises:
        ValueError: If `media_mask` does not fit the features, or these do not fit the positions.
    """
    if media_mask is not None:
        if media_mask.shape != (len(features),):
            raise ValueError(f"{kind}_mask must have one entry per {kind}, ({len(features)},), got {tuple(media_mask.shape)}.")
        # Indexing keeps padding media in the graph: their features get a gradient of zero, and so do all weights that they depend on.
        features = features[media_mask.to(features.device, torch.bool)]
    if not isinstance(features, torch.Tensor):  # `generate` cuts and repeats features as lists
        features = torch.cat([item.flatten(0, -2) for item in features])
    features = features.flatten(0, -2).to(inputs_embeds.device, inputs_embeds.dtype)  # (tokens, hidden)
    torch_compilable_check(
        placeholder_mask.sum() == features.shape[0],
        lambda: (
            f"The {kind}s give {features.shape[0]} features, but the text has {int(placeholder_mask.sum())} {kind} tokens for them. If the "
            "sequences were truncated (max_length of a trainer or tokenizer), set a larger max_length, or None."
        ),
    )
    return inputs_embeds.masked_scatter(placeholder_mask[..., None], features), features
