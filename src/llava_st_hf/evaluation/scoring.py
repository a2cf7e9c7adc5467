# SPDX-License-Identifier: Apache-2.0
"""The metrics of a benchmark from its predictions, under one of two protocols.

| | default | original |
|---|---|---|
| missing parts of an answer (cut off, or not readable) | score 0; the other parts are scored | the same; skipped in REC |
| samples that were skipped | score 0 | are excluded: the original program silently takes the next one |
| a threshold is passed | at the threshold | at the threshold; above it (TVG) |
| boxes and times | exact | rounded |
| ELC answers with only an end | start at the time of the prompt | have no span |
| tIoU of SVG, which asks for no span | not computed | 0 |
| intervals | 95 %, bootstrapped | none |
| `exact_match` | computed | not computed |

`original_protocol` lists the other differences.
"""

import warnings
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from .captions import MEANS, CaptionScoringError, score_captions
from .metrics import Tubelets, bootstrap_interval, box_iou, mean_iou, spatial_iou, temporal_iou, tubelet_iou
from .original_protocol import ORIGINAL_TASKS, THRESHOLDS, check_ground_truth, from_original_row, score_original, to_original_row
from .phrases import OBJECT_IOU, is_exact_match, object_ious
from .rows import GROUNDING_FIELDS, GroundingResult, Prediction
from .scores import Scores


PROTOCOLS = ("default", "original")
_REC_THRESHOLDS = (0.5,)
_NO_ANSWER = GroundingResult()


def score(task: str, rows: Iterable[Prediction | dict], protocol: str = "default") -> Scores:
    """
    Computes the metrics of one benchmark.

    Args:
        task: of all samples: "rec", "tvg", "stvg", "svg", "elc", "tr", "reg" or "dgc".
        rows: predictions, their dicts, or rows of the original inference code (which have `outputs`). Under the default protocol they are
            read one at a time and not kept, so a file of any length can be given.
        protocol: "default" or "original" (also accepted: "released"); the original protocol does not score "tr", "reg" and "dgc".

    Returns:
        A dict of metrics; its `notes` list metrics that could not be computed, with the reason.

        - `miou`, `R1@…` (rec, tvg): mean IoU of boxes or spans; share of samples that pass a threshold;
        - `m_tiou`, `tiou@…` (stvg, elc): the same for spans;
        - `m_siou`, `siou@…` (stvg, svg, elc): for tubelets, over the frames in which prediction and ground truth both have a box;
        - `m_viou`, `viou@…` (stvg, svg, elc): for tubelets, over the frames in which at least one has a box;
        - `exact_match` (elc, tr, reg): share of captions equal to the ground truth after `phrases.normalize_text`;
        - `object_recall@0.5`, `miou` (dgc): share of the objects of an image that the answer names and locates with at least that IoU,
          averaged over images; mean IoU over these objects, 0 for one that is not named;
        - `BLEU-1` … `BLEU-4`, `METEOR`, `ROUGE_L`, `CIDEr` (elc, tr, reg): of captions; absent, with a warning and a note, if they cannot
          be computed;
        - `<name>_low`, `<name>_high`: 95 % interval of each metric that is a mean over samples, so not of BLEU and METEOR (default
          protocol);
        - `count`: samples; `skipped`, `cut_off`, `unparsable`: those without an answer, else with an unfinished answer, else with an
          answer in which a part could not be read. All samples are included in the means; missing parts score 0.

        Means are fractions, recalls and shares percentages; CIDEr is in [0, 10]. Under the original protocol the names are those of the
        original program: `mtiou`, `msiou` and `mstiou` instead of `m_tiou`, `m_siou` and `m_viou`.

    Raises:
        ValueError: naming the task or protocol, if it is unknown or they do not go together; naming the sample, if it is not valid, is of
            another task, was answered but has no ground truth, or was read by another answer parser than LLaVA-ST's or at another number
            of frames (original protocol: that program reads coordinate tokens, at 100 frames); if there are no samples.
    """
    protocol = "original" if protocol == "released" else protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown; it must be one of {', '.join(PROTOCOLS)}.")
    tasks = GROUNDING_FIELDS if protocol == "default" else ORIGINAL_TASKS
    if task not in tasks:
        raise ValueError(f"task={task!r} has no metrics under the {protocol} protocol; it must be one of {', '.join(tasks)}.")
    counts = {"count": 0, "unparsable": 0, "cut_off": 0, "skipped": 0}
    columns = SampleColumns(task)
    original_rows: list[dict] = []
    for number, row in enumerate(rows, start=1):
        prediction = _prediction(task, row, number)
        counts["count"] += 1
        if state := answer_state(prediction):
            counts[state] += 1
        if protocol == "default":
            columns.append(prediction)
        elif state != "skipped":
            original_rows.append(row if isinstance(row, dict) and "outputs" in row else to_original_row(prediction))
    if not counts["count"]:
        raise ValueError(f"There are no samples of {task!r} to score.")
    scores = columns.scores() if protocol == "default" else score_original(task, original_rows)
    scores.update(counts)
    return scores


def _prediction(task: str, row: Prediction | dict, number: int) -> Prediction:
    if isinstance(row, Prediction):
        prediction = row
    elif not isinstance(row, dict):
        raise ValueError(f"Row {number} must be a prediction or a dict; got {row!r:.100}.")
    elif "outputs" in row:
        prediction = from_original_row(task, row, f"row {number}")
    else:
        try:
            prediction = Prediction.from_dict(row)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"Row {number} is not a valid prediction: {error}.") from error
    if prediction.task != task:
        raise ValueError(f"Sample {prediction.id!r} is of the task {prediction.task!r}, not {task!r}.")
    if prediction.skipped is None:  # without its media, the ground truth of a sample may be incomplete
        check_ground_truth(prediction, GROUNDING_FIELDS[task])
    return prediction


def answer_state(prediction: Prediction) -> str | None:
    """Returns the name of the count in `score` that an incomplete answer belongs to; None for an answer that was read completely."""
    if prediction.skipped is not None:
        return "skipped"
    if not prediction.finished:
        return "cut_off"
    has_all = all(getattr(prediction.prediction, name) for name in GROUNDING_FIELDS[prediction.task])
    return None if has_all else "unparsable"


def scored_result(prediction: Prediction) -> GroundingResult:
    """
    Returns the part of an answer that is scored: everything that was read, also of a cut-off answer, and nothing for a skipped sample.
    If an "elc" answer has only an end, the start is that of the prompt.
    """
    answered = prediction.prediction if prediction.skipped is None else _NO_ANSWER
    span, given = answered.span, prediction.given.span
    if prediction.task == "elc" and span is not None and span[0] is None and given is not None:
        return replace(answered, span=(given[0], span[1]))
    return answered


@dataclass
class SampleColumns:
    """Answers and ground truth of a task as arrays that grow sample by sample."""

    task: str
    numbers: tuple[array, array] = field(default_factory=lambda: (array("d"), array("d")))  # boxes (rec) or spans, flat
    tubelets: tuple[Tubelets, Tubelets] = field(default_factory=lambda: (Tubelets(), Tubelets()))
    captions: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    objects: tuple[array, array] = field(default_factory=lambda: (array("d"), array("d")))  # per sample: recall in %, mean IoU

    def append(self, prediction: Prediction) -> None:
        """
        Adds a sample.

        Raises:
            ValueError: naming the sample, if its answer or ground truth is malformed.
        """
        fields, answered, truth = GROUNDING_FIELDS[self.task], scored_result(prediction), prediction.truth
        try:
            if "objects" in fields:
                ious = object_ious(answered.objects or (), truth.objects or ())
                self.objects[0].append(mean_iou(100.0 * (ious >= OBJECT_IOU)))
                self.objects[1].append(mean_iou(ious))
            for side, grounding in enumerate((answered, truth)):
                if "box" in fields:
                    self.numbers[side].extend(_values(grounding.box, 4))
                if "span" in fields:
                    self.numbers[side].extend(_values(grounding.span, 2))
                if "tubelet" in fields:
                    self.tubelets[side].append(grounding.tubelet)
                if "caption" in fields:
                    self.captions[side].append(grounding.caption or "")
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"Sample {prediction.id!r} is malformed: {error}") from error

    def values(self) -> dict[str, np.ndarray]:
        """Returns the metrics of the single samples, (N,) each, for all metrics that are their mean, without those of captions."""
        values: dict[str, np.ndarray] = {}
        fields = GROUNDING_FIELDS[self.task]
        if "box" in fields:
            values |= _with_recalls("miou", "R1", box_iou(*self._numbers(4)), _REC_THRESHOLDS)
        elif fields == ("span",):
            values |= _with_recalls("miou", "R1", temporal_iou(*self._numbers(2)), THRESHOLDS)
        elif "span" in fields:
            values |= _with_recalls("m_tiou", "tiou", temporal_iou(*self._numbers(2)), THRESHOLDS)
        if "tubelet" in fields:
            values |= _with_recalls("m_siou", "siou", spatial_iou(*self.tubelets), THRESHOLDS)
            values |= _with_recalls("m_viou", "viou", tubelet_iou(*self.tubelets), THRESHOLDS)
        if "objects" in fields:
            values |= {f"object_recall@{OBJECT_IOU}": np.array(self.objects[0]), "miou": np.array(self.objects[1])}
        if "caption" in fields:
            values["exact_match"] = 100.0 * np.array([is_exact_match(*pair) for pair in zip(*self.captions, strict=True)])
        return values

    def scores(self) -> Scores:
        """Returns the metrics of the default protocol, with their intervals."""
        values = self.values()
        scores = Scores({name: mean_iou(column) for name, column in values.items()})
        if "caption" in GROUNDING_FIELDS[self.task]:
            try:
                captions = score_captions(*self.captions)
            except CaptionScoringError as error:
                warnings.warn(str(error), stacklevel=3)
                scores.notes.append(str(error))
            else:
                scores.update(captions.metrics)
                values |= {name: captions.values[name] for name in MEANS}
        if values:
            lows, highs = bootstrap_interval(np.stack(list(values.values()), axis=1))
            for name, low, high in zip(values, lows, highs, strict=True):
                scores.update({f"{name}_low": float(low), f"{name}_high": float(high)})
        return scores

    def _numbers(self, width: int) -> tuple[np.ndarray, ...]:
        return tuple(np.array(side).reshape(-1, width) for side in self.numbers)


def _values(values, width: int) -> tuple[float, ...]:
    """Returns the numbers of a box or a span; NaN for a missing one, which has an IoU of 0 with every other."""
    if values is None:
        return (float("nan"),) * width
    if len(values) != width:
        raise ValueError(f"{values!r:.100} must have {width} numbers.")
    return values


def _with_recalls(mean: str, recall: str, ious: np.ndarray, thresholds: Iterable[float]) -> dict[str, np.ndarray]:
    """Returns the IoUs, and per threshold 100 for each sample that passes it and 0 for the others."""
    return {mean: ious} | {f"{recall}@{threshold}": 100.0 * (ious >= threshold) for threshold in thresholds}
