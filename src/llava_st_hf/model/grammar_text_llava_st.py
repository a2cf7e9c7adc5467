# SPDX-License-Identifier: Apache-2.0
"""Conditions on the text of an answer, as automata over classes of characters.

Each condition excludes text that `grounding.parse_answer` reads as something other than words, or of which it leaves no caption. They are
conservative: a byte of an incomplete character may become any character that is not ASCII.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product


# Words that `grounding` removes from captions: its format text, alone and with "and" and "then" directly attached, which remain as
# separate words and are removed afterwards.
_REMOVED_WORDS = frozenset(
    {"bounding", "starts", "ends", "in", "at"}
    | {"".join(parts) for parts in product(("", "box", "boxes"), ("", "and", "then"), ("", "object"))} - {""}
)
_PREFIXES = frozenset(word[:length] for word in _REMOVED_WORDS for length in range(1, len(word) + 1))
_LETTERS = "".join(sorted(set("".join(_REMOVED_WORDS))))

BLANK, UNCERTAIN, DIGIT, WORD, OTHER, FORBIDDEN = " ", "?", "0", "W", "-", "<"
#: Classes of characters: letters of removed words, then the rest. Brackets occur in literals only.
CLASSES = f"{_LETTERS}{WORD}{DIGIT}{UNCERTAIN}{BLANK}{OTHER},.:{{}}[]{FORBIDDEN}"
TEXT_CLASSES = CLASSES[: CLASSES.index("{")]
_WORD_CLASSES = frozenset(_LETTERS + WORD + DIGIT)
_ANY_LETTER = re.compile("[a-z]", re.IGNORECASE)


@cache
def character_class(character: str) -> str:
    """The class of a character, one of `CLASSES`."""
    if character in ",.:{}[]<":
        return character
    if not character.isascii() and (character == "\ufffd" or _ANY_LETTER.match(character)):
        return UNCERTAIN  # bytes of an incomplete character, and letters such as ſ that patterns without case take for ASCII letters
    if character.lower() in _LETTERS:
        return character.lower()
    for pattern, name in ((r"\d", DIGIT), (r"\w", WORD), (r"\s", BLANK)):
        if re.match(pattern, character):
            return name
    return OTHER


@dataclass(frozen=True)
class Condition:
    """
    An automaton over classes of characters.

    Args:
        first: its first state.
        step: `(state, class)` → the next state; None where the text is not allowed.
        accepts: whether the text may end in a state.
    """

    first: str
    step: Callable[[str, str], str | None]
    accepts: Callable[[str], bool]


def _word(state: str, kind: str) -> str:
    """ "": between words; the beginning of a word that may be removed; "?": a word with uncertain characters; "!": a word was found."""
    if state == "!":
        return "!"
    if kind == UNCERTAIN:
        return "?"
    if kind not in _WORD_CLASSES:
        return "!" if state not in ("", "?") and state not in _REMOVED_WORDS else ""
    if state == "?" or state + kind in _PREFIXES:
        return "?" if state == "?" else state + kind
    return "!"


def _no_number(state: str, kind: str) -> str:
    """ "number": what may be the end of a number; "colon": a colon after it."""
    if state == "colon" and kind in (BLANK, UNCERTAIN, ":"):
        return "colon"
    if state == "number" and kind == ":":
        return "colon"
    if kind in (DIGIT, UNCERTAIN) or (state == "number" and kind in (".", BLANK, "s")):
        return "number"
    return ""


def _no_colon(state: str, kind: str) -> str | None:
    """ "": only blanks so far."""
    if state == "" and kind in (BLANK, UNCERTAIN):
        return ""
    return None if state == "" and kind == ":" else "begun"


def _separated(state: str, kind: str) -> str:
    """ "": only blanks and commas so far."""
    return "" if state == "" and kind in (BLANK, UNCERTAIN, ",") else "begun"


#: Conditions of `grammar_llava_st.TEXTS`.
CONDITIONS = {
    "word": Condition("", _word, lambda state: state not in ("", "?") and state not in _REMOVED_WORDS),
    "no_number": Condition("", _no_number, lambda state: state != "colon"),
    "no_colon": Condition("", _no_colon, lambda state: True),
    "separated": Condition("", _separated, lambda state: state == "begun"),
}
