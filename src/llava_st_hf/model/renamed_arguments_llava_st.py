# SPDX-License-Identifier: Apache-2.0
"""The warning about names of version 0.1, which are accepted until version 0.3, and keyword arguments with such names."""

import functools
import warnings
from collections.abc import Callable


# Old name → new name.
RENAMED_ARGUMENTS = {"coordinates": "coordinate_values", "shift_coordinates": "shift_coordinate_values"}


def warn_renamed(old: str, new: str, stacklevel: int) -> None:
    """Gives a `FutureWarning` that `old` is now `new`. A `stacklevel` of 2 attributes it to the caller of this function, 3 to the next."""
    warnings.warn(f"{old} is now {new}; the old name will be removed in version 0.3.", FutureWarning, stacklevel=stacklevel)


def accept_renamed_arguments(method: Callable) -> Callable:
    """Decorates a method so that it also takes the old names of `RENAMED_ARGUMENTS`.

    Raises:
        ValueError: If an argument is given under both names.
    """

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        for old, new in RENAMED_ARGUMENTS.items():
            if old in kwargs:
                if kwargs.get(new) is not None:
                    raise ValueError(f"{new} is given twice, the second time under its old name {old}. Pass {new} alone.")
                warn_renamed(old, new, stacklevel=3)
                kwargs[new] = kwargs.pop(old)
        return method(self, *args, **kwargs)

    return wrapper
