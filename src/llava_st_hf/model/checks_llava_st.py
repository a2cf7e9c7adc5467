# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers that users pass, shared by the files of this package."""

import math
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


def check_rate(fps, name: str) -> None:
    """Raises `ValueError` naming `name` unless `fps` is a finite number of frames per second above 0."""
    if not is_finite_number(fps) or fps <= 0:
        raise ValueError(f"{name} must be a finite number of frames per second above 0, got {fps!r}.")
