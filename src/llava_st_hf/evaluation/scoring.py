# SPDX-License-Identifier: Apache-2.0
"""The figures of a benchmark from its predictions, under one of two protocols.

| | default | released |
|---|---|---|
| what is missing of an answer, as it was cut off or cannot be read | counts as 0, and the rest as it is | the same; left out in REC |
| samples that were skipped | count as 0 | are left out: the released program silently takes the next one |
| a threshold is passed at | the threshold | the threshold; above it (TVG) |
| boxes and times | exact | rounded |
| ELC answers with an end alone | start where the question says | have no span |
| tIoU of SVG, which asks for no span | is left out | 0 |
| intervals | 95 %, bootstrapped | none |
| `exact_match` | is given | is left out |

`released_protocol` lists what else the released program does.
"""

import warnings
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from .captions import MEANS, missing_caption_tools, score_captions
from .metrics import Tubelets, bootstrap_interval, box_iou, mean_iou, spatial_iou, temporal_iou, tubelet_iou
from .phrases import NAMED_IOU, is_exact_match, named_ious
from .released_protocol import RELEASED_TASKS, THRESHOLDS, check_truth, released_prediction, released_row, score_released
from .rows import GROUNDING_FIELDS, GroundingResult, Prediction


PROTOCOLS = ("default", "released")
_REC_THRESHOLDS = (0.5,)
_NOTHING = GroundingResult()


def score(task: str, rows: Iterable[Prediction | dict], protocol: str = "default") -> dict[str, float]:
    """
    The figures of one benchmark.

    Args:
        task: of all rows: "rec", "tvg", "stvg", "svg", "elc", "tr", "reg" or "dgc".
        rows: predictions, or their dicts, or rows as the released inference writes them (which have `outputs`). They are read one at a
            time and not kept under the default protocol, so a file of any length can be given.
        protocol: "default" or "released"; the latter has no figures for "tr", "reg" and "dgc".

    Returns:
        Flat names and numbers:

        - `miou`, `R1@…` (rec, tvg): mean IoU of boxes or spans; rows that pass a threshold;
        - `mtiou`, `tiou@…` (stvg, elc): the same of spans;
        - `msiou`, `siou@…` (stvg, svg, elc): of tubelets over the frames that prediction and truth share;
        - `mstiou`, `viou@…` (stvg, svg, elc): of tubelets over the frames that either has, which the literature calls vIoU;
        - `exact_match` (elc, tr, reg): captions that say the same as the truth, see `phrases.normalize_text`;
        - `named@0.5`, `miou` (dgc): true objects that the answer names and finds with at least that IoU, as a share of those of the
          picture; mean IoU over these, 0 for one that is not named;
        - `BLEU-1` … `BLEU-4`, `METEOR`, `ROUGE_L`, `CIDEr` (elc, tr, reg): of captions; left out, with a warning, where they cannot
          be scored;
        - `<name>_low`, `<name>_high`: bounds of each figure that is a mean over rows, so not of BLEU and METEOR (default protocol);
        - `count`: rows; `skipped`, `cut_off`, `unparsable`: those without an answer, else with an unfinished one, else with one in
          which part of what was asked for could not be read. All rows are in the means: what was not said, or not read, counts 0.

        Means are fractions, recalls and shares per cent; CIDEr goes to 10.

    Raises:
        ValueError: naming the task or protocol, where it is unknown or one does not go with the other; naming the row, where it is none,
            is of another task, was answered and has no truth, or was read by another reader than LLaVA-ST's or at other frames
            (released protocol: that program reads coordinate tokens, of 100 frames); where there are no rows.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown; it is one of {', '.join(PROTOCOLS)}.")
    tasks = GROUNDING_FIELDS if protocol == "default" else RELEASED_TASKS
    if task not in tasks:
        raise ValueError(f"task={task!r} has no figures under the {protocol} protocol; those are for {', '.join(tasks)}.")
    counts = {"count": 0, "unparsable": 0, "cut_off": 0, "skipped": 0}
    columns = _Columns(task)
    released_rows: list[dict] = []
    for number, row in enumerate(rows, start=1):
        prediction = _prediction(task, row, number)
        counts["count"] += 1
        if state := state_of(prediction):
            counts[state] += 1
        if protocol == "default":
            columns.append(prediction)
        elif state != "skipped":
            released_rows.append(row if isinstance(row, dict) and "outputs" in row else released_row(prediction))
    if not counts["count"]:
        raise ValueError(f"There are no rows of {task!r} to score.")
    figures = columns.figures() if protocol == "default" else score_released(task, released_rows)
    return {**figures, **counts}


def _prediction(task: str, row: Prediction | dict, number: int) -> Prediction:
    if isinstance(row, Prediction):
        prediction = row
    elif not isinstance(row, dict):
        raise ValueError(f"Row {number} is neither a prediction nor a dict: {row!r:.100}.")
    elif "outputs" in row:
        prediction = released_prediction(task, row, f"row {number}")
    else:
        try:
            prediction = Prediction.from_dict(row)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"Row {number} is no prediction: {error}.") from error
    if prediction.task != task:
        raise ValueError(f"Sample {prediction.id!r} is of the task {prediction.task!r}, not {task!r}.")
    if prediction.skipped is None:  # a medium that was not opened may leave open where the truth lies
        check_truth(prediction, GROUNDING_FIELDS[task])
    return prediction


def state_of(prediction: Prediction) -> str | None:
    """What is wrong with an answer, by the name of its count in `score`; None for one that was read whole."""
    if prediction.skipped is not None:
        return "skipped"
    if not prediction.finished:
        return "cut_off"
    has_all = all(getattr(prediction.prediction, name) for name in GROUNDING_FIELDS[prediction.task])
    return None if has_all else "unparsable"


def said_in(prediction: Prediction) -> GroundingResult:
    """What an answer says, as far as it goes: a cut-off one too, whose missing part costs what it is worth. Nothing where there is
    none. An end alone has the start that the question of "elc" gave."""
    said = prediction.prediction if prediction.skipped is None else _NOTHING
    span, given = said.span, prediction.given.span
    if prediction.task == "elc" and span is not None and span[0] is None and given is not None:
        return replace(said, span=(given[0], span[1]))
    return said


@dataclass
class _Columns:
    """Predictions and truths of a task, as arrays that grow row by row."""

    task: str
    numbers: tuple[array, array] = field(default_factory=lambda: (array("d"), array("d")))  # of boxes (rec) or spans
    tubelets: tuple[Tubelets, Tubelets] = field(default_factory=lambda: (Tubelets(), Tubelets()))
    captions: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    objects: tuple[array, array] = field(default_factory=lambda: (array("d"), array("d")))  # of each row: share named, mean IoU

    def append(self, prediction: Prediction) -> None:
        asked, said, truth = GROUNDING_FIELDS[self.task], said_in(prediction), prediction.truth
        if "objects" in asked:
            try:
                ious = named_ious(said.objects or (), truth.objects or ())
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"Sample {prediction.id!r} is malformed: {error}") from error
            for column, values in zip(self.objects, (100.0 * (ious >= NAMED_IOU), ious), strict=True):
                column.append(mean_iou(values))
        for side, grounding in enumerate((said, truth)):
            try:
                if "box" in asked:
                    self.numbers[side].extend(_values(grounding.box, 4))
                if "span" in asked:
                    self.numbers[side].extend(_values(grounding.span, 2))
                if "tubelet" in asked:
                    self.tubelets[side].append(grounding.tubelet)
            except (TypeError, ValueError) as error:
                raise ValueError(f"Sample {prediction.id!r} is malformed: {error}") from error
            if "caption" in asked:
                self.captions[side].append(grounding.caption or "")

    def figures(self) -> dict[str, float]:
        """The figures of the default protocol."""
        figures: dict[str, float] = {}
        means: dict[str, np.ndarray] = {}  # (N,) each: what the figures are means of
        asked = GROUNDING_FIELDS[self.task]
        if "box" in asked:
            means |= _with_recalls("miou", "R1", box_iou(*self._numbers(4)), _REC_THRESHOLDS)
        elif asked == ("span",):
            means |= _with_recalls("miou", "R1", temporal_iou(*self._numbers(2)), THRESHOLDS)
        elif "span" in asked:
            means |= _with_recalls("mtiou", "tiou", temporal_iou(*self._numbers(2)), THRESHOLDS)
        if "tubelet" in asked:
            means |= _with_recalls("msiou", "siou", spatial_iou(*self.tubelets), THRESHOLDS)
            means |= _with_recalls("mstiou", "viou", tubelet_iou(*self.tubelets), THRESHOLDS)
        if "objects" in asked:
            means |= {f"named@{NAMED_IOU}": np.array(self.objects[0]), "miou": np.array(self.objects[1])}
        if "caption" in asked:
            means["exact_match"] = 100.0 * np.array([is_exact_match(*pair) for pair in zip(*self.captions, strict=True)])
        figures |= {name: mean_iou(values) for name, values in means.items()}
        if "caption" in asked:
            if problem := missing_caption_tools():
                warnings.warn(problem, stacklevel=3)
            else:
                scores = score_captions(*self.captions)
                figures |= scores.figures
                means |= {name: scores.values[name] for name in MEANS}
        if means:
            lows, highs = bootstrap_interval(np.stack(list(means.values()), axis=1))
            for name, low, high in zip(means, lows, highs, strict=True):
                figures |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        return figures

    def _numbers(self, width: int) -> tuple[np.ndarray, ...]:
        return tuple(np.array(side).reshape(-1, width) for side in self.numbers)


def _values(values, width: int) -> tuple[float, ...]:
    """Numbers of a box or a span; NaN for one that is missing, which no truth overlaps."""
    if values is None:
        return (float("nan"),) * width
    if len(values) != width:
        raise ValueError(f"{values!r:.100} has not {width} numbers.")
    return values


def _with_recalls(mean: str, recall: str, ious: np.ndarray, thresholds: Iterable[float]) -> dict[str, np.ndarray]:
    """The IoUs, and per threshold what the recall is the mean of."""
    return {mean: ious} | {f"{recall}@{threshold}": 100.0 * (ious >= threshold) for threshold in thresholds}
