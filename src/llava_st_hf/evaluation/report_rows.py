# SPDX-License-Identifier: Apache-2.0
"""The samples of a report: IoUs as in the default protocol, and properties that may make a sample difficult."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .rows import Prediction
from .scoring import SampleColumns, answer_state


# The IoUs of each task, and the metric of `score` that is the mean of each. Samples are ranked by the first.
IOUS = {
    "rec": {"box IoU": "miou"},
    "dgc": {"object IoU": "miou"},
    "tvg": {"tIoU": "miou"},
    "stvg": {"vIoU": "m_viou", "sIoU": "m_siou", "tIoU": "m_tiou"},
    "svg": {"vIoU": "m_viou", "sIoU": "m_siou"},
    "elc": {"vIoU": "m_viou", "sIoU": "m_siou", "tIoU": "m_tiou"},
}
# Properties that may make a sample difficult, and their units.
CONDITIONS = {"clip length": "s", "object size": "% of the image", "span length": "% of the clip"}
# Order of samples with the same IoU of 0: those with more to look at first.
_STATES = (None, "unparsable", "cut_off", "skipped")


@dataclass(frozen=True)
class Samples:
    """
    All samples of a benchmark, in the order of their file.

    Args:
        states: of each: None if the answer was read completely, else "skipped", "cut_off" or "unparsable".
        ious: (N,) by the names in `IOUS`; 0 for a missing answer.
        conditions: (N,) by the names in `CONDITIONS`; NaN if unknown, such as the size of an image that could not be opened.
    """

    states: list[str | None]
    ious: dict[str, np.ndarray]
    conditions: dict[str, np.ndarray]

    def best(self, count: int) -> list[int]:
        """Indices of the highest-scoring samples, best first: at most `count`, at most half of the samples, and none with an IoU of 0."""
        order = sorted(range(len(self.states)), key=lambda index: [-value for value in self._values(index)])
        return [index for index in order if self._values(index)[0] > 0][: min(count, (len(order) + 1) // 2)]

    def worst(self, count: int) -> list[int]:
        """Indices of the `count` lowest-scoring samples, worst first, excluding those of `best(count)`."""
        best = set(self.best(count))

        def rank(index: int) -> tuple:
            first, *others = self._values(index)
            return first, _STATES.index(self.states[index]), *others

        return [index for index in sorted(range(len(self.states)), key=rank) if index not in best][:count]

    def _values(self, index: int) -> list[float]:
        return [float(values[index]) for values in self.ious.values()]


def read_samples(task: str, predictions: Iterable[Prediction]) -> Samples:
    """
    Computes IoUs and conditions of predictions, which are read one at a time and not kept.

    Args:
        task: of all of them, a key of `IOUS`.
        predictions: as for `score`.
    """
    columns, states = SampleColumns(task), []
    conditions: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    for prediction in predictions:
        columns.append(prediction)
        states.append(answer_state(prediction))
        for name, value in _conditions(prediction).items():
            conditions[name].append(value)
    values = columns.values()
    ious = {name: values[metric] for name, metric in IOUS[task].items()}
    return Samples(states, ious, {name: np.array(column) for name, column in conditions.items()})


def _conditions(prediction: Prediction) -> dict[str, float]:
    values = dict.fromkeys(CONDITIONS, float("nan"))
    truth, media = prediction.truth, prediction.medium()
    # The prompt of "svg" contains the span.
    if (span := truth.span or prediction.given.span) is not None:
        values["span length"] = 100 * (span[1] - span[0])
    if media is None:
        return values
    if media.kind == "video":
        start, end = media.time(0.0), media.time(1.0)
        if start is not None and end is not None:
            values["clip length"] = end - start
    boxes = list((truth.tubelet or {}).values()) or ([truth.box] if truth.box is not None else [])
    boxes += [box for _, box in truth.objects or ()]
    if boxes and media.width * media.height > 0:
        x1, y1, x2, y2 = np.array(boxes, dtype=np.float64).reshape(-1, 4).T
        values["object size"] = float(100 * ((x2 - x1) * (y2 - y1)).mean() / (media.width * media.height))
    return values
