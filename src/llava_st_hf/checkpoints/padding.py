# SPDX-License-Identifier: Apache-2.0
"""Padding of the vocabulary to a multiple of 64: servers need a spare token id, and sizes that tensor parallelism can divide."""

import torch
from transformers import PreTrainedTokenizerBase

from ..model.modeling_llava_st import LlavaSTForConditionalGeneration


MULTIPLE = 64


@torch.no_grad()
def pad_vocabulary(model: LlavaSTForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Pads input and output embeddings, in place, to a multiple of 64 with at least one row more than the tokenizer has tokens.

    A head without bias cannot exclude a token. The added rows are therefore the mean of all others: their logit is the mean of all
    logits, which is never the highest, so that greedy decoding by any program does not choose them. In `generate` they have the
    probability 0 with sampling as well, by `suppress_tokens` of the generation configuration.

    A model without coordinate tokens (stage 1) is not changed: its coordinate tokens will be the rows after its last one. Call the function
    again after tokens have been added to the tokenizer, whose ids would be suppressed otherwise.

    Args:
        model: of any dtype.
        tokenizer: of the model.

    Raises:
        ValueError: if the tokenizer has more tokens than the model has embeddings.
    """
    if not model.config.use_coordinate_tokens:
        return
    num_tokens, num_rows = max(tokenizer.get_vocab().values()) + 1, model.config.text_config.vocab_size
    if num_tokens > num_rows:
        raise ValueError(f"The tokenizer has {num_tokens} tokens, but the model has embeddings of {num_rows}. They do not belong together.")
    padded = max(num_tokens // MULTIPLE + 1, -(-num_rows // MULTIPLE)) * MULTIPLE
    model.resize_token_embeddings(padded, mean_resizing=False)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}  # one if tied
    for matrix in matrices.values():
        matrix[num_tokens:] = matrix[:num_tokens].mean(dim=0, dtype=torch.float32)  # a sum in half precision would be inexact
    suppressed = set(model.generation_config.suppress_tokens or [])
    while (num_rows := num_rows - 1) in suppressed:  # earlier padding, some of which may be tokens now
        suppressed.remove(num_rows)
    model.generation_config.suppress_tokens = [*sorted(suppressed), *range(num_tokens, padded)]


__all__ = ["MULTIPLE", "pad_vocabulary"]
