# SPDX-License-Identifier: Apache-2.0
"""What a report tells of single samples: IoUs as the default protocol counts them, and what may make a sample hard."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .metrics import Tubelets, box_iou, mean_iou, spatial_iou, temporal_iou, tubelet_iou
from .phrases import named_ious
from .rows import Prediction
from .scoring import said_in, state_of


# The IoUs of each task, and of which figure of `score` each is the mean. The first is what samples are ranked by.
IOUS = {
    "rec": {"box IoU": "miou"},
    "dgc": {"object IoU": "miou"},
    "tvg": {"tIoU": "miou"},
    "stvg": {"vIoU": "mstiou", "sIoU": "msiou", "tIoU": "mtiou"},
    "svg": {"vIoU": "mstiou", "sIoU": "msiou"},
    "elc": {"vIoU": "mstiou", "sIoU": "msiou", "tIoU": "mtiou"},
}
# What may make a sample hard, with its unit.
CONDITIONS = {"clip length": "s", "object size": "% of the picture", "span length": "% of the clip"}
# Of answers that count as 0, those that can be looked at come first.
_STATES = (None, "unparsable", "cut_off", "skipped")


@dataclass
class Samples:
    """
    All samples of a benchmark, in the order of their file.

    Args:
        task: of them all.
        states: of each: None if it was read, else "skipped", "cut_off" or "unparsable".
        ious: (N,) by the names in `IOUS`; what was not said has 0.
        conditions: (N,) by the names in `CONDITIONS`; NaN where not known, as the size of a medium that was not opened.
    """

    task: str
    states: list[str | None] = field(default_factory=list)
    ious: dict[str, np.ndarray] = field(default_factory=dict)
    conditions: dict[str, np.ndarray] = field(default_factory=dict)

    def best(self, count: int) -> list[int]:
        """Places of the best samples, the best first; none that have nothing right."""
        places = sorted(range(len(self.states)), key=lambda place: [-value for value in self._values(place)])
        return [place for place in places if self._values(place)[0] > 0][: min(count, (len(places) + 1) // 2)]

    def worst(self, count: int) -> list[int]:
        """Places of the worst samples, the worst first; none that is among as many of the best."""
        best = set(self.best(count))

        def rank(place: int) -> tuple:
            first, *others = self._values(place)
            return first, _STATES.index(self.states[place]), *others

        return [place for place in sorted(range(len(self.states)), key=rank) if place not in best][:count]

    def _values(self, place: int) -> list[float]:
        return [float(values[place]) for values in self.ious.values()]


def read_samples(task: str, predictions: Iterable[Prediction]) -> Samples:
    """
    IoUs and conditions of predictions, which are read one at a time and not kept.

    Args:
        task: of all of them, a key of `IOUS`.
        predictions: such as `score` takes.
    """
    samples, width = Samples(task), 4 if task == "rec" else 2
    numbers: tuple[list, list] = ([], [])
    tubelets = Tubelets(), Tubelets()
    objects: list[float] = []
    conditions: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    for prediction in predictions:
        state = state_of(prediction)
        samples.states.append(state)
        objects.append(mean_iou(named_ious(said_in(prediction).objects or (), prediction.truth.objects or ())))
        for side, grounding in enumerate((said_in(prediction), prediction.truth)):
            values = grounding.box if task == "rec" else grounding.span
            numbers[side].append((float("nan"),) * width if values is None else values)
            tubelets[side].append(grounding.tubelet)
        for name, value in _conditions(prediction).items():
            conditions[name].append(value)
    said_numbers, true_numbers = (np.array(side, dtype=np.float64).reshape(-1, width) for side in numbers)
    measures = {
        "box IoU": lambda: box_iou(said_numbers, true_numbers),
        "object IoU": lambda: np.array(objects),
        "tIoU": lambda: temporal_iou(said_numbers, true_numbers),
        "sIoU": lambda: spatial_iou(*tubelets),
        "vIoU": lambda: tubelet_iou(*tubelets),
    }
    samples.ious = {name: measures[name]() for name in IOUS[task]}
    samples.conditions = {name: np.array(values) for name, values in conditions.items()}
    return samples


def _conditions(prediction: Prediction) -> dict[str, float]:
    values = dict.fromkeys(CONDITIONS, float("nan"))
    truth, media = prediction.truth, prediction.medium()
    # The question of "svg" gives the span away.
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
