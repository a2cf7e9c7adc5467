# SPDX-License-Identifier: Apache-2.0
"""Whether words say the same, and which of a picture's objects an answer names and finds."""

import re
from collections.abc import Sequence

import numpy as np

from .metrics import box_iou
from .rows import Box


NAMED_IOU = 0.5  # from which on an object is found
_ENDS = " \t\r\n,.;:()[]{}"
_FIRST_WORDS = re.compile(r"^(?:(?:and|then) )?(?:(?:a|an|the) )?")


def normalize_text(text: str) -> str:
    """
    A phrase or sentence as far as it matters for saying the same: in lower case, without blanks, commas, full stops and brackets at
    either end, without a leading "and" or "then" and without an article behind it, with single blanks in between.
    """
    return _FIRST_WORDS.sub("", " ".join(text.lower().strip(_ENDS).split()))


def is_exact_match(said: str | None, true: str | None) -> bool:
    """Whether both are the same plain words; nothing says the same as none."""
    words = normalize_text(said or "")
    return bool(words) and words == normalize_text(true or "")


def named_ious(said: Sequence[tuple[str, Box]], true: Sequence[tuple[str, Box]]) -> np.ndarray:
    """
    How well the objects of a picture are found by those of an answer that are named alike.

    Pairs are taken in order of their IoU, the best first; an object of the answer stands for one of the truth at most.

    Args:
        said, true: `(phrase, box)` of each object.

    Returns:
        (N,) IoU of each true object, 0 where no object of the answer is left that says the same.
    """
    ious = np.zeros(len(true))
    names = [normalize_text(phrase) for phrase, _ in said], [normalize_text(phrase) for phrase, _ in true]
    alike = [(i, j) for i, name in enumerate(names[0]) for j, other in enumerate(names[1]) if name and name == other]
    if not alike:
        return ious
    overlaps = box_iou(np.array([said[i][1] for i, _ in alike]), np.array([true[j][1] for _, j in alike]))
    used: tuple[set[int], set[int]] = (set(), set())
    for place in np.argsort(-overlaps, kind="stable"):
        i, j = alike[place]
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            ious[j] = overlaps[place]
    return ious
