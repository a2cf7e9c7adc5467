# SPDX-License-Identifier: Apache-2.0
"""Check that messages contain no control tokens, which only the chat template and the processor may write."""

import re
from collections.abc import Iterable

from .configuration_llava_st import SPECIAL_TOKENS


# transformers inserts this private-use character before control tokens that it encodes as plain text (`sanitize_control_tokens`). In a
# user's text it would hide the control token after it.
SANITIZED_MARK = "\U000f0000"
UNMARKED = f"(?<!{SANITIZED_MARK})"


def control_token_pattern(tokens: Iterable[str] = ()) -> re.Pattern:
    """
    Returns a pattern that matches the visual and placeholder tokens of the model, every `<|name|>` as in Qwen2 tokenizers, and `tokens`.

    Args:
        tokens: further tokens, such as the special tokens of a tokenizer.
    """
    longest_first = sorted({*SPECIAL_TOKENS.values(), *tokens}, key=lambda token: (-len(token), token))
    return re.compile("|".join([*map(re.escape, longest_first), r"<\|\w+\|>"]))


CONTROL_TOKEN = control_token_pattern()


def check_control_tokens(text: str, pattern: re.Pattern = CONTROL_TOKEN) -> None:
    """
    Raises an error if a text contains a control token.

    Args:
        text: the whole text of one message, because a token may be split between content items.
        pattern: result of `control_token_pattern`.

    Raises:
        ValueError: naming the token, or the character U+F0000.
    """
    if SANITIZED_MARK in text:
        raise ValueError(f"The text contains the character U+F0000, which marks control tokens in transformers. Remove it: {text[:100]!r}.")
    if (token := pattern.search(text)) is not None:
        raise ValueError(
            f"The text contains the special token {token[0]!r}, which only the chat template and the processor may write: {text[:100]!r}."
        )


def check_messages(conversation: list, pattern: re.Pattern = CONTROL_TOKEN) -> None:
    """
    Raises an error for control tokens in the role, the text or any further field of a message.

    Args:
        conversation: a chat of messages whose content is a string or a list of items, or a list of such chats.
        pattern: result of `control_token_pattern`.

    Raises:
        ValueError: naming the token.
    """
    for message in conversation:
        if not isinstance(message, dict):
            check_messages(message, pattern)
            continue
        content = message["content"]
        parts = [content] if isinstance(content, str) else [item["text"] for item in content if item["type"] == "text"]
        check_control_tokens("".join(parts), pattern)
        for value in _strings([field for name, field in message.items() if name != "content"]):
            check_control_tokens(value, pattern)


def _strings(value) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(item)
