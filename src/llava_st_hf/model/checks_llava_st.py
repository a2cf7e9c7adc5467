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


def check_pixels(kind: str, pixels, size) -> None:
    """Raises an error if the size of the pixels differs from `size`, from which the number of tokens is computed."""
    for picture in pixels:
        height, width = picture.shape[-2:]
        if (height, width) != (size["height"], size["width"]):
            raise ValueError(
                f"The processed {kind} has {height}x{width} pixels (height x width), but its number of tokens is that of "
                f"{size['height']}x{size['width']}. Set `size` in the {kind} processor, not in the call, and keep do_resize=True."
            )
