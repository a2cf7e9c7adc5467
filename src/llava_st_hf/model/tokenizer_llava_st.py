# SPDX-License-Identifier: Apache-2.0
"""Coordinate tokens as ordinary added tokens of a tokenizer.

In the released checkpoints they are special tokens, which `decode(skip_special_tokens=True)` removes, and with it streamers, servers
and the reward functions of TRL. Text is tokenized the same in both cases.
"""

import json

from transformers import AddedToken, PreTrainedTokenizerBase

from .coordinates_llava_st import COORDINATE_TOKEN, coordinate_tokens


def add_coordinate_tokens_to_tokenizer(tokenizer: PreTrainedTokenizerBase, num_temporal_bins: int, num_spatial_bins: int) -> None:
    """Appends the coordinate tokens to the vocabulary in place, as ordinary added tokens that are matched in the raw text.

    Args:
        tokenizer: without coordinate tokens.
        num_temporal_bins, num_spatial_bins: number of tokens for time, and for each of height and width.
    """
    names = coordinate_tokens(num_temporal_bins, num_spatial_bins)
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])


def make_coordinate_tokens_ordinary(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes special coordinate tokens of a tokenizer ordinary added tokens, in place. Ids and tokenization do not change.

    Raises:
        ValueError: if coordinate tokens are special in a tokenizer that is not based on the library tokenizers.
    """
    added = tokenizer.added_tokens_decoder.values()
    if not any(COORDINATE_TOKEN.fullmatch(token.content) and (token.special or token.normalized) for token in added):
        return
    if not tokenizer.is_fast:
        raise ValueError(f"The coordinate tokens of a {type(tokenizer).__name__} are special. Use a tokenizer that has a tokenizer.json.")
    # tokenizers cannot remove the mark from a token that it has, so the tokenizer is built anew from its description.
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in description["added_tokens"]:
        if COORDINATE_TOKEN.fullmatch(token["content"]):
            token["special"] = token["normalized"] = False
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(description))
    backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens  # not part of the description
    tokenizer._tokenizer = backend
    tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if not COORDINATE_TOKEN.fullmatch(str(token))]


__all__ = ["add_coordinate_tokens_to_tokenizer", "make_coordinate_tokens_ordinary"]
