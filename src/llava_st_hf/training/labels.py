# SPDX-License-Identifier: Apache-2.0
"""Labels of a conversation: the ids of the tokens that are included in the loss, -100 at the others."""

from typing import Literal, get_args

import torch

from ..model.renamed_arguments_llava_st import warn_renamed


LossOn = Literal["assistant", "original"]
IGNORED = -100
_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"


def check_loss_on(value: str) -> LossOn:
    """Returns `value` if it is a scheme of `make_labels`; for the old name "released", "original" with a `FutureWarning`.

    Raises:
        ValueError: For another value.
    """
    if value == "released":
        warn_renamed('loss_on="released"', 'loss_on="original"', stacklevel=3)
        return "original"
    for scheme in get_args(LossOn):
        if value == scheme:
            return scheme
    raise ValueError(f'loss_on={value!r} must be "assistant" or "original".')


def make_labels(input_ids: torch.Tensor, answer_mask: torch.Tensor, tokenizer, scheme: LossOn = "assistant") -> torch.Tensor:
    """
    Makes the labels of one conversation.

    Args:
        input_ids: (sequence_length,)
        answer_mask: same shape, 1 at the tokens that the chat template marks as generated: the text of each assistant message and its
            `<|im_end|>`.
        tokenizer: the processor's.
        scheme: "assistant" includes these tokens. "original" includes those of the original training code: assistant messages with their
            header, and every `<|im_start|>`, `<|im_end|>` and newline token of the other messages.

    Returns:
        (sequence_length,)

    Raises:
        ValueError: For another scheme.
    """
    scheme = check_loss_on(scheme)
    learned = answer_mask.bool()
    if scheme == "original":
        newline = tokenizer.encode("\n", add_special_tokens=False)
        always = torch.tensor([*tokenizer.convert_tokens_to_ids([_TURN_START, _TURN_END]), *newline])
        turn = (input_ids == always[0]).cumsum(0)  # (sequence,) number of the message that contains the token
        # A message with marked tokens is an assistant's, and is included from its header on.
        is_answer = torch.zeros(int(turn.max()) + 1, dtype=torch.bool)
        is_answer[turn[learned]] = True
        learned = is_answer[turn] | torch.isin(input_ids, always)
    return input_ids.masked_fill(~learned, IGNORED)
