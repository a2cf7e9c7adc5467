# SPDX-License-Identifier: Apache-2.0
"""The grammar of answers as a regular expression and as EBNF, for the structured outputs of servers (xgrammar, llguidance).

Servers see the characters of coordinate tokens, `<WIDTH-012>`. Exported grammars state which coordinates there are, their axes, their
number and place, and that everything which is opened is closed. They cannot state what depends on the value of another coordinate: that
x2 ≥ x1, y2 ≥ y1, that times are ascending and within a span; nor the limit of tokens. Of the conditions on text they have simpler ones:
a caption has a letter or digit, and a box of a video that has no time does not follow a colon.
"""

import re

from .coordinates_llava_st import TOKEN_NAMES
from .grammar_llava_st import CHARACTERS, COORDINATES, EXPORTED_TEXTS, RULES, TEXTS, parse_rule


def answer_regex(rule: str, num_temporal_bins: int, num_spatial_bins: int) -> str:
    """
    A regular expression, without groups that capture and without look-around, that an answer matches as a whole.

    Args:
        rule: a task, "auto_image" or "auto_video".
        num_temporal_bins, num_spatial_bins: bins of the time axis, and of height and width.

    Raises:
        ValueError: naming an invalid rule.
    """
    names = {f"{axis}_token": _token_regex(axis, bins) for axis, bins in _axes(num_temporal_bins, num_spatial_bins)}
    names |= {name: _regex(parse_rule(text), {}) for name, text in EXPORTED_TEXTS.items()}
    return _regex(_tree(rule), names)


def answer_ebnf(rule: str, num_temporal_bins: int, num_spatial_bins: int) -> str:
    """
    A grammar in the EBNF that xgrammar and llama.cpp (GBNF) read, with the first rule `root`.

    Args:
        rule, num_temporal_bins, num_spatial_bins: as of `answer_regex`.

    Raises:
        ValueError: naming an invalid rule.
    """
    lines = [f"root ::= {_ebnf(_tree(rule))}"]
    lines += [f"{name} ::= {_ebnf(parse_rule(text))}" for name, text in EXPORTED_TEXTS.items()]
    lines += [f"{name} ::= [{characters}]" for name, characters in CHARACTERS.items()]
    for axis, bins in _axes(num_temporal_bins, num_spatial_bins):
        numbers = " | ".join(" ".join(f'"{part}"' if part.isdigit() else part for part in parts) for parts in _numbers(bins))
        lines.append(f'{axis}_token ::= "<{TOKEN_NAMES[axis]}-" ({numbers}) ">"')
    used = set(re.findall(r"\w+", "\n".join(lines)))
    return "\n".join(line for line in lines if line.split(" ", 1)[0] in used) + "\n"


def _tree(rule: str) -> tuple:
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is not a rule of the grammar; it must be one of {', '.join(RULES)}.")
    return parse_rule(RULES[rule])


def _axes(num_temporal_bins: int, num_spatial_bins: int) -> list[tuple[str, int]]:
    return [("temporal", num_temporal_bins), ("height", num_spatial_bins), ("width", num_spatial_bins)]


def _numbers(num_bins: int) -> list[list[str]]:
    """The numbers 000 to num_bins - 1 as alternatives of digits and classes of digits: 000 to 099 are "0", "[0-9]", "[0-9]"."""
    last = f"{num_bins - 1:03d}"
    alternatives: list[list[str]] = []
    for place, digit in enumerate(last):
        rest = len(last) - place - 1
        if set(last[place:]) == {"9"}:  # all numbers with this beginning
            return [*alternatives, [*last[:place], *["[0-9]"] * (rest + 1)]]
        if digit != "0":
            alternatives.append([*last[:place], f"[0-{int(digit) - 1}]", *["[0-9]"] * rest])
    return [*alternatives, [*last]]


def _token_regex(axis: str, num_bins: int) -> str:
    return f"<{TOKEN_NAMES[axis]}-(?:{'|'.join(''.join(parts) for parts in _numbers(num_bins))})>"


def _regex(tree: tuple, names: dict[str, str]) -> str:
    kind, *parts = tree
    if kind == "sequence":
        return "".join(_regex(part, names) for part in parts)
    if kind == "choice":
        return f"(?:{'|'.join(_regex(part, names) for part in parts)})"
    if kind in ("repeat", "optional"):
        if kind == "optional" and parts[0][0] == "repeat":
            (inner,), operator = parts[0][1:], "*"
        else:
            inner, operator = parts[0], "+" if kind == "repeat" else "?"
        written = _regex(inner, names)
        return f"{written if inner[0] == 'characters' else f'(?:{written})'}{operator}"
    if kind == "literal":
        return re.escape(parts[0]).replace(r"\ ", " ")
    if kind == "characters":
        return f"[{CHARACTERS[parts[0]]}]"
    return names[parts[0] if parts[0] in TEXTS else f"{COORDINATES[parts[0]].axis}_token"]


def _ebnf(tree: tuple) -> str:
    kind, *parts = tree
    if kind == "sequence":
        return " ".join(_ebnf(part) for part in parts)
    if kind == "choice":
        return f"({' | '.join(_ebnf(part) for part in parts)})"
    if kind in ("repeat", "optional"):
        if kind == "optional" and parts[0][0] == "repeat":
            return f"({_ebnf(parts[0][1])})*"
        return f"({_ebnf(parts[0])}){'+' if kind == 'repeat' else '?'}"
    if kind == "literal":
        return f'"{parts[0]}"'
    if kind == "coordinate":
        return f"{COORDINATES[parts[0]].axis}_token"
    return parts[0]
