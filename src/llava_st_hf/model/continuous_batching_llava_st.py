# SPDX-License-Identifier: Apache-2.0
"""Prompts with images, videos and exact coordinates for `generate_batch`, whose scheduler takes token ids only.

Every position of a prompt that a feature or an exact coordinate replaces gets an id of its own above the vocabulary, and the embedding
module returns its vector for this id. The scheduler may split, share and recompute prompts, since equal ids have equal embeddings.
"""

from collections.abc import Mapping

import torch
from torch import nn

from .placeholders_llava_st import insert_features


_KEYS = {"input_ids", "attention_mask", "coordinate_values", "pixel_values", "pixel_values_videos"}


class PromptEmbeddings(nn.Module):
    """
    Token embeddings with further rows.

    Args:
        embeddings (`nn.Module`):
            Embeddings of the token ids below `first_id`.
        rows (`torch.FloatTensor` of shape `(num_rows, hidden_size)`):
            Embeddings of the ids `first_id` to `first_id + num_rows - 1`.
        first_id (`int`):
            Size of the vocabulary.
    """

    rows: torch.Tensor

    def __init__(self, embeddings: nn.Module, rows: torch.Tensor, first_id: int):
        super().__init__()
        self.embeddings, self.first_id = embeddings, first_id
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, input_ids: torch.LongTensor) -> torch.Tensor:
        embeds = self.embeddings(input_ids.clamp(max=self.first_id - 1))
        rows = self.rows[(input_ids - self.first_id).clamp(min=0)]
        return torch.where((input_ids >= self.first_id)[..., None], rows, embeds)


def _embed(model, inputs: Mapping) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Model inputs of some prompts → ids, embeddings and, of the same shape as the ids, which embeddings are not those of the ids."""
    if unknown := sorted(set(inputs) - _KEYS):
        raise ValueError(f"generate_batch takes prompts with the keys {', '.join(sorted(_KEYS))}; got {', '.join(unknown)}, too.")
    given = {key: torch.as_tensor(value, device=model.device) for key, value in inputs.items() if value is not None}
    ids, values = given["input_ids"], given.get("coordinate_values")
    embeds = model.model.embed_inputs(ids, values)[0]  # (prompts, sequence, hidden)
    replaced = torch.zeros_like(ids, dtype=torch.bool) if values is None else ~values.isnan()
    for kind, key, features in (
        ("image", "pixel_values", model.get_image_features),
        ("video", "pixel_values_videos", model.get_video_features),
    ):
        mask = model.model.get_placeholder_mask(kind, ids)
        if key in given:
            outputs = features(given[key].to(model.dtype), return_dict=True)
            embeds, _ = insert_features(kind, outputs.pooler_output, None, mask, embeds)
            replaced = replaced | mask
        elif mask.any():
            raise ValueError(f"A prompt of generate_batch has the tokens of {kind}s without {key}. Pass the processor's whole output.")
    return ids, embeds, replaced


def prepare_prompts(model, inputs: Mapping | list) -> tuple[list[list[int]], torch.Tensor, list[int]]:
    """
    Gives ids of their own to all positions that are not embeddings of tokens.

    Args:
        model ([`LlavaSTForConditionalGeneration`]):
            Model that computes the features.
        inputs (`Mapping` or `list`):
            Output of the processor for one or more prompts, or a list of such outputs and lists of token ids.

    Returns:
        `tuple(list[list[int]], torch.FloatTensor, list[int])`: ids of each prompt without padding; `rows` of shape `(num_rows,
        hidden_size)`, the embeddings of the ids from the size of the vocabulary on; the token ids in whose place these are.

    Raises:
        ValueError: If an input has no `input_ids`, an unknown key, or tokens of media without pixels.
    """
    embeddings = model.get_input_embeddings()
    first_id = embeddings.weight.shape[0]
    prompts: list[list[int]] = []
    rows = [embeddings.weight.new_empty(0, embeddings.weight.shape[1])]
    tokens: list[int] = []
    for item in [inputs] if isinstance(inputs, Mapping) else inputs:
        if not isinstance(item, Mapping):
            item = {"input_ids": [list(item)]}
        if item.get("input_ids") is None:
            raise ValueError(f"A prompt of generate_batch needs input_ids, got the keys {', '.join(map(repr, item)) or 'none'}.")
        ids, embeds, replaced = _embed(model, item)
        attention_mask = item.get("attention_mask")
        keep = torch.ones_like(replaced) if attention_mask is None else torch.as_tensor(attention_mask, device=ids.device).bool()
        for row in range(len(ids)):
            row_ids, row_embeds, row_replaced = ids[row, keep[row]], embeds[row, keep[row]], replaced[row, keep[row]]
            prompt = row_ids.clone()  # (tokens,)
            count = int(row_replaced.sum())
            prompt[row_replaced] = torch.arange(count, device=prompt.device) + first_id + len(tokens)
            prompts.append(prompt.tolist())
            rows.append(row_embeds[row_replaced].to(rows[0].dtype))
            tokens += row_ids[row_replaced].tolist()
    return prompts, torch.cat(rows), tokens
