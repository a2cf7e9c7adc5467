# SPDX-License-Identifier: Apache-2.0
"""Samples of ST-Align, the training data of LLaVA-ST: texts with placeholders, and the numbers that replace them.

A sample is `{"id", "video" | "image", "conversations": [{"from": "human" | "gpt", "value"}], "variables", "meta"}`. The texts contain
six placeholder tokens, which the six lists of `variables` fill in order of appearance. `meta.split` is `[first, last]` frame of the
clip. Text-only samples have neither image nor video. Other keys are not read.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..model.coordinates_llava_st import AXES, PLACEHOLDER_TOKENS
from ..model.inline_coordinates_llava_st import INLINE_LETTERS
from .inline import fraction_text
from .paths import join_path
from .rows import Medium, conversation_row
from .schemas import Frames, Id, Position, Schema, Text, validate


_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_LETTERS = {axis: letter for letter, axis in INLINE_LETTERS.items()}
# Placeholder → the list that fills it, and the letter of its axis in the inline syntax.
_FILLED_BY = {
    token: (f"{'' if axis == 'temporal' else 'spatial_'}{axis}_{use}_locations", _LETTERS[axis])
    for token, (axis, use) in zip(PLACEHOLDER_TOKENS, [(axis, use) for axis in AXES for use in ("input", "output")], strict=True)
}
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDER_TOKENS)))
_MARK = re.compile(r"<(?:video|image)>")
# At either end of the question the newline is removed with the mark; inside a question, the newline after it.
_MARK_WITH_NEWLINE = re.compile(r"\A\s*<(?:video|image)>\n?|\n?<(?:video|image)>\s*\Z|<(?:video|image)>\n?")


def _empty_as_none(value):
    return value or None


class _Turn(Schema):
    role: Literal["human", "gpt", "system"] = Field(alias="from")
    value: Text


class _Meta(Schema):
    split: Any = None  # read for videos only


class _Clip(Schema):
    split: Frames


class _Variables(Schema):
    temporal_input_locations: list[Position] | None = None
    temporal_output_locations: list[Position] | None = None
    spatial_height_input_locations: list[Position] | None = None
    spatial_height_output_locations: list[Position] | None = None
    spatial_width_input_locations: list[Position] | None = None
    spatial_width_output_locations: list[Position] | None = None


class _Sample(Schema):
    id: Id | None = None
    video: Any = None
    image: Any = None
    conversations: list[_Turn]
    variables: Annotated[_Variables | None, BeforeValidator(_empty_as_none)] = None
    meta: Annotated[_Meta | None, BeforeValidator(_empty_as_none)] = None


def st_align_row(sample: dict, data_folder: str | None, source: str, task: str, default_id: str) -> dict:
    """
    Converts one sample to a row of `rows.FEATURES`, with its numbers inline in the text.

    Args:
        sample: as the annotation has it.
        data_folder: folder of its image or video; None if the data has none.
        source, task: of the row.
        default_id: of a sample without an id.

    Raises:
        ValueError: naming the invalid field of the sample.
    """
    values = validate(_Sample, sample, "The sample")
    medium = _medium(values, data_folder)
    turns = [(_ROLES[turn.role], turn.value) for turn in values.conversations]
    first = next((index for index, (role, _) in enumerate(turns) if role == "user"), None)
    if medium is not None and first is not None:
        turns[first] = ("user", _without_mark(turns[first][1]))
    turns = _filled(turns, values.variables or _Variables())
    return conversation_row(values.id or default_id, task, source, medium, turns)


def _medium(sample: _Sample, data_folder: str | None) -> Medium | None:
    given = [kind for kind in ("video", "image") if getattr(sample, kind) is not None]
    if not given:
        return None
    if len(given) == 2:
        raise ValueError("The sample has both a 'video' and an 'image'; only one is allowed.")
    (kind,) = given
    path = getattr(sample, kind)
    if data_folder is None:
        raise ValueError(f"The sample has the {kind} {path!r:.200}, but its entry in the mixture has no data_folder.")
    clip = None
    if kind == "video" and sample.meta is not None and sample.meta.split is not None:
        clip = validate(_Clip, {"split": sample.meta.split}).split
    return Medium(kind, join_path(data_folder, path), clip=clip)


def _without_mark(text: str) -> str:
    marks = _MARK.findall(text)
    if len(marks) > 1:
        raise ValueError(f"The first question has {len(marks)} marks ({', '.join(marks)}), but the sample has one image or video.")
    return _MARK_WITH_NEWLINE.sub("", text) if marks else text


def _filled(turns: list[tuple[str, str]], variables: _Variables) -> list[tuple[str, str]]:
    """The turns with each placeholder replaced by its number in the inline syntax."""
    numbers = {token: getattr(variables, key) or [] for token, (key, _) in _FILLED_BY.items()}
    found = dict.fromkeys(_FILLED_BY, 0)
    for _, text in turns:
        for token in _PLACEHOLDER.findall(text):
            found[token] += 1
    for token, count in found.items():
        if count != len(numbers[token]):
            raise ValueError(f"The texts have {count} {token}, but 'variables.{_FILLED_BY[token][0]}' has {len(numbers[token])} numbers.")
    written = {token: iter([fraction_text(letter, value) for value in numbers[token]]) for token, (_, letter) in _FILLED_BY.items()}

    def fill(match: re.Match) -> str:
        return next(written[match[0]])

    return [(role, _PLACEHOLDER.sub(fill, text)) for role, text in turns]
