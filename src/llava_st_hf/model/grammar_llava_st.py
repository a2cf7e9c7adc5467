# SPDX-License-Identifier: Apache-2.0
"""Grammar of answers: which text and which coordinates an answer to each task consists of, as data.

A rule is a regular expression over literals in quotes, names of `PIECES`, kinds of text (`TEXTS`) and coordinates (`COORDINATES`), with
the operators `|`, `*`, `+`, `?` and parentheses. The wording is free, and the coordinates between it have one form. What
`grounding.parse_answer` reads from an answer that follows its rule never gives a note.

Bounds of coordinates are registers: x2 ≥ x1, y2 ≥ y1, the end of a span is not before its start, and the times of a tubelet are ascending
and within the span that the answer or the prompt states.
"""

import re
from dataclasses import dataclass
from functools import cache


#: Registers of an answer in progress, bins except the first two. "begin" and "end" bound the times of a tubelet, "next" its next time, and
#: "first" the end of a repeated span; "start" is the lowest bin that is not before the start in the prompt.
REGISTERS = ("zero", "infinity", "begin", "end", "next", "first", "start", "x1", "y1")


@dataclass(frozen=True)
class Coordinate:
    """
    A coordinate of a rule.

    Args:
        axis: "temporal", "height" or "width".
        at_least: one or two registers that the bin is not below.
        at_most: a register that the bin is not above.
        writes: the register that receives the bin.
        plus: added to the bin that is written.
    """

    axis: str
    at_least: tuple[str, ...] = ("zero",)
    at_most: str = "infinity"
    writes: str | None = None
    plus: int = 0


COORDINATES = {
    "X1": Coordinate("width", writes="x1"),
    "Y1": Coordinate("height", writes="y1"),
    "X2": Coordinate("width", at_least=("x1",)),
    "Y2": Coordinate("height", at_least=("y1",)),
    # A span of the answer, which bounds the tubelet after it.
    "START": Coordinate("temporal", writes="begin"),
    "END": Coordinate("temporal", at_least=("begin",), writes="end"),
    # The span of the prompt, or a part of it, repeated in the answer.
    "PROMPT_START": Coordinate("temporal", at_least=("begin",), at_most="end", writes="first"),
    "PROMPT_END": Coordinate("temporal", at_least=("first",), at_most="end"),
    # The event that begins at the start in the prompt: its end, or its span.
    "EVENT_END": Coordinate("temporal", at_least=("start",), writes="end"),
    "EVENT_START": Coordinate("temporal", at_least=("begin",), writes="first"),
    "EVENT_SPAN_END": Coordinate("temporal", at_least=("first", "start"), writes="end"),
    # Times of a tubelet. A time alone has the bounds of the first one.
    "FIRST": Coordinate("temporal", at_least=("begin",), at_most="end", writes="next", plus=1),
    "NEXT": Coordinate("temporal", at_least=("next",), at_most="end", writes="next", plus=1),
}

#: Kinds of text, all without <, {, }, [ and ], and the conditions of each (`grammar_text_llava_st`).
TEXTS: dict[str, tuple[str, ...]] = {
    "text": (),
    "words": ("word",),  # that a caption is left of
    "label": ("no_number",),  # before a box of a video, where "12:" would be in the place of a time
    "gap": ("separated",),  # between two tubelets
    "after_time": ("no_colon",),  # a colon would announce a box
    "words_after_time": ("no_colon", "word"),
    "label_after_time": ("no_colon", "no_number"),
}

#: Parts of rules.
PIECES = {
    "box": '"[" X1 Y1 X2 Y2 "]"',
    "span": '"{" START END "}"',
    "prompt_span": '"{" PROMPT_START PROMPT_END "}"',
    "event_span": '"{" EVENT_START EVENT_SPAN_END "}"',
    "tubelet": 'FIRST ":" box (","? " "? NEXT ":" box)*',
    "tubelets": "tubelet (gap tubelet)*",
    "items": "(label box | text span)+ (text tubelets)?",
}

#: Answers to the tasks of `tasks.TASKS`, and to questions in free text about an image or a video.
RULES = {
    "rec": "text box text",
    "reg": "words",
    "dgc": "(words box+)+ text",
    "tvg": "(text span)+ text",
    "tr": "words",
    "stvg": "(text span)+ text tubelet text",
    "svg": "(text prompt_span)? text tubelet text",
    "elc": "text (EVENT_END words_after_time | event_span words) tubelet text",
    "auto_image": "words | (text box)+ text",
    "auto_video": (
        "words | items+ text | text tubelets items* text"
        " | text FIRST (after_time | after_time tubelets text | label_after_time box text | after_time span (text tubelets)? text)"
    ),
}

#: Classes of characters of exported grammars, as the inside of brackets. Without control characters except tab and line breaks.
_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_BLANK = r" \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
CHARACTERS = {
    "any": rf"^<{{}}\[\]{_CONTROL}",
    "letter": r"0-9A-Za-z\u00c0-\u167f\u1681-\u1fff\u3040-\ud7ff",
    "blank": _BLANK,
    "solid": rf"^<{{}}\[\]:{_BLANK}{_CONTROL}",
    "separator": rf"^<{{}}\[\],{_BLANK}{_CONTROL}",
}
#: `TEXTS` of exported grammars: simpler than the conditions of `TEXTS`, which regular expressions of a reasonable size cannot state.
EXPORTED_TEXTS = {
    "text": "any*",
    "words": "any* letter any*",
    "label": "(any* solid)? blank*",
    "gap": "any* separator any*",
    "after_time": "blank* (solid any*)?",
    "words_after_time": "blank* (solid any*)? letter any*",
    "label_after_time": "blank* (solid (any* solid)? blank*)?",
}

_SYMBOL = re.compile(r'\s*(?:"(?P<literal>[^"]+)"|(?P<name>\w+)|(?P<operator>[()|*+?]))')


@cache
def parse_rule(rule: str) -> tuple:
    """
    The syntax tree of a rule: `("literal", characters)`, `("text", kind)`, `("coordinate", name)`, `("characters", class)`,
    `("sequence", *trees)`, `("choice", *trees)`, `("repeat", tree)` for one or more, `("optional", tree)`. Names of `PIECES` are replaced
    by their trees.

    Raises:
        ValueError: naming the rule and what is not a symbol of it.
    """
    symbols, position = [], 0
    rule = rule.strip()
    while position < len(rule):
        found = _SYMBOL.match(rule, position)
        if found is None:
            raise ValueError(f"Rule {rule!r} has an invalid symbol at {rule[position:]!r}.")
        symbols.append((found.lastgroup, found[found.lastgroup or 0]))
        position = found.end()
    tree, rest = _choice(symbols)
    if rest:
        raise ValueError(f"Rule {rule!r} has the unexpected symbol {rest[0][1]!r}.")
    return tree


def _choice(symbols: list) -> tuple[tuple, list]:
    options = []
    while True:
        tree, symbols = _sequence(symbols)
        options.append(tree)
        if symbols[:1] != [("operator", "|")]:
            return (options[0] if len(options) == 1 else ("choice", *options)), symbols
        symbols = symbols[1:]


def _sequence(symbols: list) -> tuple[tuple, list]:
    parts = []
    while symbols and symbols[0] not in (("operator", "|"), ("operator", ")")):
        (kind, value), symbols = symbols[0], symbols[1:]
        if kind == "literal":
            tree: tuple = ("literal", value)
        elif kind == "name":
            tree = _named(value)
        elif value == "(":
            tree, symbols = _choice(symbols)
            if symbols[:1] != [("operator", ")")]:
                raise ValueError("A rule has an opening parenthesis without a closing one.")
            symbols = symbols[1:]
        else:
            raise ValueError(f"The operator {value!r} of a rule follows no symbol.")
        while symbols and symbols[0] in (("operator", "*"), ("operator", "+"), ("operator", "?")):
            operator, symbols = symbols[0][1], symbols[1:]
            tree = {"*": ("optional", ("repeat", tree)), "+": ("repeat", tree), "?": ("optional", tree)}[operator]
        parts.append(tree)
    return (parts[0] if len(parts) == 1 else ("sequence", *parts)), symbols


def _named(name: str) -> tuple:
    if name in PIECES:
        return parse_rule(PIECES[name])
    if name in COORDINATES:
        return ("coordinate", name)
    if name in TEXTS:
        return ("text", name)
    if name in CHARACTERS:
        return ("characters", name)
    raise ValueError(f"{name!r} of a rule is not a name of PIECES, COORDINATES, TEXTS or CHARACTERS.")
