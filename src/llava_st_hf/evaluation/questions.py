# SPDX-License-Identifier: Apache-2.0
"""What the loaders of the benchmarks share: rows become questions one at a time, and sample and seed fix the wording."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from .rows import Question


Sample = TypeVar("Sample")


def as_questions(
    samples: Iterable[tuple[int, Sample | str]], make: Callable[[int, Sample], Question]
) -> Iterator[tuple[int, Question | str]]:
    """
    Rows of an annotation file as questions.

    Args:
        samples: `(row, sample)`, or `(row, problem)` where a row could not be read.
        make: the question of `(row, sample)`. A ValueError that it raises is the row's problem.

    Yields:
        `(row, question)`, or `(row, problem)`.
    """
    for row, sample in samples:
        try:
            yield row, sample if isinstance(sample, str) else make(row, sample)
        except ValueError as error:
            yield row, str(error)


def chosen(wordings: Sequence[str], seed: int, id: str) -> str:
    """One of `wordings`, fixed by seed and sample alone: neither the order of the file nor a part left out changes it."""
    digest = hashlib.sha256(f"{seed}:{id}".encode()).digest()
    return wordings[int.from_bytes(digest[:8], "big") % len(wordings)]
