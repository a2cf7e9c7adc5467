# SPDX-License-Identifier: Apache-2.0
"""Samples of ST-Align, the training data of LLaVA-ST: texts with placeholders, and the numbers that belong there.

A sample is `{"id", "video" | "image", "conversations": [{"from": "human" | "gpt", "value"}], "variables", "meta"}`. Six placeholder
tokens stand in the texts, and the six lists of `variables` fill them in order of appearance. `meta.split` is `[first, last]` frame
of the clip. Samples of text alone have no medium. Other keys are not looked at.
"""

import re

from ..model.coordinates_llava_st import AXES, PLACEHOLDER_TOKENS, check_position
from ..model.inline_coordinates_llava_st import INLINE_LETTERS
from .checks import frames, listing, mapping, name, number
from .paths import join_path
from .rows import Medium, conversation_row


_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_LETTERS = {axis: letter for letter, axis in INLINE_LETTERS.items()}
# Placeholder → the list that fills it, and the letter of its inline syntax.
_FILLED_BY = {
    token: (f"{'' if axis == 'temporal' else 'spatial_'}{axis}_{use}_locations", _LETTERS[axis])
    for token, (axis, use) in zip(PLACEHOLDER_TOKENS, [(axis, use) for axis in AXES for use in ("input", "output")], strict=True)
}
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDER_TOKENS)))
_MARK = re.compile(r"<(?:video|image)>")
# At either end of the question a newline goes with the mark; inside a question, the newline after it.
_MARK_WITH_NEWLINE = re.compile(r"\A\s*<(?:video|image)>\n?|\n?<(?:video|image)>\s*\Z|<(?:video|image)>\n?")


def st_align_row(sample: dict, data_folder: str | None, source: str, task: str, default_id: str) -> dict:
    """
    One sample as a row of `rows.FEATURES`, its numbers inline in the text.

    Args:
        sample: as the annotation has it.
        data_folder: where its medium lies; None where the data has none.
        source, task: what the row says of itself.
        default_id: of a sample without one.

    Raises:
        ValueError: naming what is wrong with the sample.
    """
    medium = _medium(sample, data_folder)
    turns = _turns(sample)
    first = next((index for index, (role, _) in enumerate(turns) if role == "user"), None)
    if medium is not None and first is not None:
        turns[first] = ("user", _without_mark(turns[first][1]))
    turns = _filled(turns, sample.get("variables"))
    id = default_id if sample.get("id") is None else name(sample["id"], "'id'")
    return conversation_row(id, task, source, medium, turns)


def _medium(sample: dict, data_folder: str | None) -> Medium | None:
    given = [kind for kind in ("video", "image") if sample.get(kind) is not None]
    if not given:
        return None
    if len(given) == 2:
        raise ValueError("The sample has both a 'video' and an 'image'; it can have one.")
    (kind,) = given
    if data_folder is None:
        raise ValueError(f"The sample has the {kind} {sample[kind]!r:.200}, but its entry in the mixture has no data_folder.")
    meta = mapping(sample.get("meta") or {}, "'meta'")
    clip = None
    if kind == "video" and meta.get("split") is not None:
        clip = frames(meta["split"], "'meta.split'")
    return Medium(kind, join_path(data_folder, sample[kind]), clip=clip)


def _turns(sample: dict) -> list[tuple[str, str]]:
    turns = []
    for position, turn in enumerate(listing(sample.get("conversations"), "'conversations'"), start=1):
        turn = mapping(turn, f"Turn {position}")
        role = turn.get("from")
        if not isinstance(role, str) or role not in _ROLES:
            raise ValueError(f"Turn {position} is 'from' {role!r:.50}; it must be {', '.join(_ROLES)}.")
        text = turn.get("value")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"The 'value' of turn {position} ({role}) must be a string that is not blank, not {text!r:.100}.")
        turns.append((_ROLES[role], text))
    return turns


def _without_mark(text: str) -> str:
    marks = _MARK.findall(text)
    if len(marks) > 1:
        raise ValueError(f"The first question has {len(marks)} marks ({', '.join(marks)}), but the sample has one medium.")
    return _MARK_WITH_NEWLINE.sub("", text) if marks else text


def _filled(turns: list[tuple[str, str]], variables) -> list[tuple[str, str]]:
    """The turns with each placeholder replaced by its number in the inline syntax."""
    variables = mapping(variables if variables is not None else {}, "'variables'")
    numbers = {token: listing(variables.get(key) or [], f"{key!r}") for token, (key, _) in _FILLED_BY.items()}
    found = dict.fromkeys(_FILLED_BY, 0)
    for _, text in turns:
        for token in _PLACEHOLDER.findall(text):
            found[token] += 1
    for token, count in found.items():
        if count != len(numbers[token]):
            raise ValueError(f"The texts have {count} {token}, but {_FILLED_BY[token][0]!r} has {len(numbers[token])} numbers.")
    written = {}
    for token, (key, letter) in _FILLED_BY.items():
        what = f"A number of {key!r}"
        written[token] = iter([f"<{letter}{check_position(number(value, what), what)!r}>" for value in numbers[token]])

    def fill(match: re.Match) -> str:
        return next(written[match[0]])

    return [(role, _PLACEHOLDER.sub(fill, text)) for role, text in turns]
