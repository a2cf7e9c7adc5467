# SPDX-License-Identifier: Apache-2.0
"""Checks of single values of an annotation. Each names the value and what it should be, so that a row can be mended by hand."""

import math


def mapping(value, what: str) -> dict:
    """`value`, where it is a JSON object; else `ValueError`."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, not {value!r:.100}.")
    return value


def listing(value, what: str) -> list:
    """`value`, where it is a list; else `ValueError`."""
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {value!r:.100}.")
    return value


def member(value: dict, key: str, what: str):
    """What stands under `key`; `ValueError` where nothing does."""
    if value.get(key) is None:
        raise ValueError(f"{what} has no {key!r}.")
    return value[key]


def words(value, what: str) -> str:
    """`value`, where it is a string that is not blank; else `ValueError`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a string that is not blank, not {value!r:.100}.")
    return value


def name(value, what: str) -> str:
    """An id as a string; annotations write ids as strings or as whole numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return words(value, what)


def number(value, what: str) -> float:
    """`value` as a float, where it is a finite number; else `ValueError`."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond all floats
        pass
    raise ValueError(f"{what} must be a finite number, not {value!r:.100}.")


def whole(value, what: str, minimum: int = 0) -> int:
    """`value`, where it is a whole number of at least `minimum`; else `ValueError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**63:
        raise ValueError(f"{what} must be a whole number of at least {minimum}, not {value!r:.100}.")
    return value


def frames(value, what: str) -> tuple[int, int]:
    """`(first, last)` of a clip in frames, both included; `ValueError` where it is no such pair or is reversed."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{what} must be [first, last], two frames, not {value!r:.100}.")
    first, last = whole(value[0], f"The first frame of {what}"), whole(value[1], f"The last frame of {what}")
    if last < first:
        raise ValueError(f"{what} is reversed: [{first}, {last}].")
    return first, last
