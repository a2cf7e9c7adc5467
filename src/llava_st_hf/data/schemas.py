# SPDX-License-Identifier: Apache-2.0
"""Schemas of annotations: field types, and one form of error for every file format.

Values are checked and not converted: `"3"` is not a number and `3.0` not an integer. An error names the path of the field, what was
expected and the value: `'meta.split[1]' must be an integer of at least 0, not -3.`
"""

import re
import reprlib
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from ..model.coordinates_llava_st import check_position


# Of values in error messages, so that a message stays short whatever the size and depth of the value.
_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxother, _REPR.maxlist, _REPR.maxdict, _REPR.maxlevel = 100, 100, 5, 3, 2
_MAX_ERRORS = 3
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_EXPECTED = {
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "float_type": "must be a finite number",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
}


class Schema(BaseModel):
    """Base of the schemas of rows and of their parts. Keys that a schema does not list are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class ClosedSchema(Schema):
    """As `Schema`, but keys that it does not list are errors: for files that users write for this package."""

    model_config = ConfigDict(extra="forbid")


AnySchema = TypeVar("AnySchema", bound=BaseModel)


def validate(schema: type[AnySchema], value, what: str = "The row") -> AnySchema:
    """
    `value` as an instance of `schema`.

    Args:
        schema: class of the instance.
        value: what JSON or YAML holds.
        what: how messages call the value itself, where it is not an object.

    Raises:
        ValueError: with a sentence for each of the first three fields that are missing or invalid.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise ValueError(_message(error, schema, what)) from None


def _message(error: ValidationError, schema: type[BaseModel], what: str) -> str:
    errors = error.errors(include_url=False)
    sentences = [_sentence(found, schema, what) for found in errors[:_MAX_ERRORS]]
    more = len(errors) - _MAX_ERRORS
    return " ".join([*sentences, f"({more} more.)"] if more > 0 else sentences)


def _sentence(error, schema: type[BaseModel], what: str) -> str:
    field = _path(error["loc"]) if error["loc"] else what
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{field} is missing."
    if kind == "value_error":  # raised by a check of ours
        message = str(context["error"])
        return f"{field}{' ' if message.startswith(('must ', 'is ')) else ': '}{message}"
    if kind == "extra_forbidden":
        known = f"; the keys are {', '.join(_keys(schema))}" if len(error["loc"]) == 1 else ""
        return f"{field} is not a valid key{known}."
    if kind in ("int_type", "int_from_float", "greater_than_equal", "less_than"):
        expected = f"must be an integer of at least {context['ge']}" if "ge" in context else "must be an integer"
    elif kind == "too_short" and context["min_length"] == 1:
        return f"{field} must not be empty."
    else:
        expected = _EXPECTED.get(kind, error["msg"]).format(**context)
    return f"{field} {expected}, not {shown(error['input'])}."


def _path(location: tuple) -> str:
    """`'meta.split[1]'`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return f"'{path.removeprefix('.')}'"


def _keys(schema: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def shown(value) -> str:
    """A value for an error message: its `repr`, shortened where it is long or deep."""
    return _REPR.repr(value)


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError(f"must be a string that is not blank, not {text!r}.")
    if not text.isascii() and (found := LONE_SURROGATE.search(text)):
        raise ValueError(
            f"must not have a lone surrogate, which UTF-8 cannot encode: replace {found[0]!r} at position {found.start()} by the character "
            "that was meant."
        )
    return text


def _integer_as_text(value):
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _ordered_frames(frames: tuple[int, int]) -> tuple[int, int]:
    first, last = frames
    if last < first:
        raise ValueError(f"is reversed: the first frame is {first}, the last {last}.")
    return first, last


def _position(value: float) -> float:
    return check_position(value, "the value")


Number = FiniteFloat
#: A string that is not blank and can be encoded.
Text = Annotated[str, AfterValidator(_check_text)]
#: An id as a string; files have strings or integers.
Id = Annotated[Text, BeforeValidator(_integer_as_text)]
#: An index of a frame, or another integer of at least 0.
Index = Annotated[int, Field(ge=0, lt=2**63)]
#: A number of pixels or frames.
Count = Annotated[int, Field(ge=1, lt=2**63)]
#: A fraction of a clip, width or height; overshoots by rounding are clipped to [0, 1].
Position = Annotated[Number, AfterValidator(_position)]
#: `[first, last]` frame of a clip, both included.
Frames = Annotated[tuple[Index, Index], Field(strict=False), AfterValidator(_ordered_frames)]  # JSON has lists
