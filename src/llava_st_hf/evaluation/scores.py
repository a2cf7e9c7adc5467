# SPDX-License-Identifier: Apache-2.0
"""The result of `score`: a dict of metrics that also accepts the metric names of version 0.1."""

import json
import os
from collections.abc import Iterable, Mapping

from ..deprecation import RENAMED_METRICS
from ..files import write_file
from ..model.renamed_arguments_llava_st import warn_renamed


SCORES = "scores.json"


class Scores(dict[str, float]):
    """
    Metrics by name, see `score`.

    Args:
        metrics: by name.
        notes: which metrics could not be computed, and why.
    """

    def __init__(self, metrics: Mapping[str, float] | None = None, notes: Iterable[str] = ()):
        super().__init__(metrics or {})
        self.notes = list(notes)

    def __missing__(self, key: str) -> float:
        bound = next((end for end in ("_low", "_high") if key.endswith(end)), "")
        new = f"{RENAMED_METRICS.get(key.removesuffix(bound))}{bound}"
        if new not in self:
            raise KeyError(key)
        warn_renamed(f"The metric {key!r}", repr(new), stacklevel=3)
        return self[new]

    def to_dict(self) -> dict:
        """Returns the metrics, and `notes` if there are any, as plain JSON values."""
        return {**self, **({"notes": self.notes} if self.notes else {})}


def write_scores(folder: str | os.PathLike, scores: Mapping[str, Scores]) -> None:
    """
    Writes `scores.json`.

    Args:
        folder: of the predictions.
        scores: by protocol.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    content = {protocol: metrics.to_dict() for protocol, metrics in scores.items()}
    write_file(os.path.join(folder, SCORES), json.dumps(content, indent=2) + "\n")
