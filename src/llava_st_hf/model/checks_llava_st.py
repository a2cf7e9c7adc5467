# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers that users pass, shared by the files of this package."""

import math
import reprlib
from collections.abc import Mapping
from numbers import Integral, Real


def is_finite_number(value) -> bool:
    """Whether `value` is a finite real number; True and False are not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def is_integer(value) -> bool:
    """Whether `value` is an integer of any integer type; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shown(value) -> str:
    """Short text of any value for an error message; only its type where it cannot be printed."""
    try:
        return reprlib.repr(value)
    except Exception:  # an integer of too many digits, a class whose __repr__ fails
        return f"a value of type {type(value).__name__}"


def checked_number(value, name: str, expected: str = "a finite number") -> float:
    """Returns a finite number as int or float, also if it is one of NumPy. Raises a `ValueError` that names `name` for other values."""
    if not is_finite_number(value):
        raise ValueError(f"{name} must be {expected}, got {shown(value)}.")
    return value if type(value) in (int, float) else int(value) if is_integer(value) else float(value)


def checked_integer(value, name: str, lowest: int, expected: str) -> int:
    """Returns an integer of any type as int. Raises a `ValueError` that names `name` for other values and those below `lowest`."""
    if not is_integer(value) or value < lowest or not is_finite_number(value):
        raise ValueError(f"{name} must be {expected}, got {shown(value)}.")
    return int(value)


def checked_text(value, name: str) -> str:
    """Returns a string. Raises a `ValueError` that names `name` for other values and for text that UTF-8 cannot encode."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {shown(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be valid Unicode, got {shown(value)}.") from error
    return value


def checked_list(value, name: str) -> tuple:
    """Returns a list or tuple as tuple. Raises a `ValueError` that names `name` for other values."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list, got {shown(value)}.")
    return tuple(value)


def optional(value, name: str, check, *rest):
    """None for None, else `check(value, name, *rest)`."""
    return None if value is None else check(value, name, *rest)


class Within:
    """Context manager: puts the place of a value before the message of a `ValueError`."""

    def __init__(self, place: str):
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self.place}: {error}") from error


def check_keys(values, required: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """Raises a `ValueError` that names the missing or unknown key unless `values` is a dictionary with all keys of `required`."""
    if not isinstance(values, Mapping):
        raise ValueError(f"A dictionary with {', '.join(required)} is expected, got {shown(values)}.")
    for name in required:
        if name not in values:
            raise ValueError(f"{name} is missing in {shown(dict(values))}.")
    if unknown := [key for key in values if key not in allowed]:
        raise ValueError(f"{shown(unknown[0])} is not a known key; those are {', '.join(allowed)}.")


def check_rate(fps, name: str) -> None:
    """Raises `ValueError` naming `name` unless `fps` is a finite number of frames per second above 0."""
    if not is_finite_number(fps) or fps <= 0:
        raise ValueError(f"{name} must be a finite number of frames per second above 0, got {fps!r}.")


def check_pixels(kind: str, pixels, size) -> None:
    """Raises an error if the size of the pixels differs from `size`, from which the number of tokens is computed."""
    for picture in pixels:
        height, width = picture.shape[-2:]
        if (height, width) != (size["height"], size["width"]):
            raise ValueError(
                f"The processed {kind} has {height}x{width} pixels (height x width), but its number of tokens is that of "
                f"{size['height']}x{size['width']}. Set `size` in the {kind} processor, not in the call, and keep do_resize=True."
            )
