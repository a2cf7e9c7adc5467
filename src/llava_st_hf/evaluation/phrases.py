# SPDX-License-Identifier: Apache-2.0
"""Normalized exact match of captions, and IoU of the objects of an image that an answer names."""

import re
from collections.abc import Sequence

import numpy as np

from .metrics import box_iou
from .rows import Box


OBJECT_IOU = 0.5  # minimum IoU with which an object counts as found
_ENDS = " \t\r\n,.;:()[]{}"
_FIRST_WORDS = re.compile(r"^(?:(?:and|then) )?(?:(?:a|an|the) )?")


def normalize_text(text: str) -> str:
    """
    Normalizes a phrase or sentence for exact match: lower case, without blanks, punctuation and brackets at the ends, without a leading
    "and" or "then" and a following article, and with single blanks between words.
    """
    return _FIRST_WORDS.sub("", " ".join(text.lower().strip(_ENDS).split()))


def is_exact_match(answered: str | None, true: str | None) -> bool:
    """Returns whether answer and ground truth are equal after `normalize_text`. An empty answer never matches."""
    words = normalize_text(answered or "")
    return bool(words) and words == normalize_text(true or "")


def object_ious(answered: Sequence[tuple[str, Box]], true: Sequence[tuple[str, Box]]) -> np.ndarray:
    """
    Computes the IoU of each ground-truth object with the object of the answer that has the same name.

    Pairs with equal names (`normalize_text`) are matched greedily by descending IoU; each object is matched at most once.

    Args:
        answered, true: `(phrase, box)` of each object.

    Returns:
        (N,) IoU per ground-truth object, 0 for one without a match.
    """
    ious = np.zeros(len(true))
    names = [normalize_text(phrase) for phrase, _ in answered], [normalize_text(phrase) for phrase, _ in true]
    pairs = [(i, j) for i, name in enumerate(names[0]) for j, other in enumerate(names[1]) if name and name == other]
    if not pairs:
        return ious
    overlaps = box_iou(np.array([answered[i][1] for i, _ in pairs]), np.array([true[j][1] for _, j in pairs]))
    used: tuple[set[int], set[int]] = (set(), set())
    for index in np.argsort(-overlaps, kind="stable"):
        i, j = pairs[index]
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            ious[j] = overlaps[index]
    return ious
