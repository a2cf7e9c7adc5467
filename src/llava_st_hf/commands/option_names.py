# SPDX-License-Identifier: Apache-2.0
"""Error messages of the pipeline with the names of options: `span=(1, 2)` → `--span=(1, 2)`."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def with_option_names(names: Sequence[str]) -> Iterator[None]:
    """
    Writes the arguments `names` in the messages of errors as options.

    Raises:
        ValueError: with the changed message, for a ValueError within the context.
    """
    try:
        yield
    except ValueError as error:
        argument = re.compile(rf"\b(?:{'|'.join(names)})(?==)")
        raise ValueError(argument.sub(lambda name: f"--{name[0].replace('_', '-')}", str(error))) from error
