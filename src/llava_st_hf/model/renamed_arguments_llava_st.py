# SPDX-License-Identifier: Apache-2.0
"""Keyword arguments of version 0.1, accepted with a `FutureWarning` until version 0.3."""

import functools
import warnings
from collections.abc import Callable


# Old name → new name.
RENAMED_ARGUMENTS = {"coordinates": "coordinate_values", "shift_coordinates": "shift_coordinate_values"}


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
                warnings.warn(f"{old} is now {new}; the old name will be removed in version 0.3.", FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
        return method(self, *args, **kwargs)

    return wrapper
