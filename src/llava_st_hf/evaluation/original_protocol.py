# SPDX-License-Identifier: Apache-2.0
"""Re-implementation of the scorer of the original LLaVA-ST code, including its known bugs, to compare with published metrics.

Measured on outputs of that program and read from its published source. Differences from the default protocol:

- REC skips answers without a box, in numerator and denominator; the box is the content of the first brackets with four numbers.
- TVG counts such answers, and a sample passes a threshold only above it; all other tasks count it at the threshold.
- A span is the content of the first braces, so an ELC answer `Ends in <TEMP-k>, …` has no span and a tIoU of 0.
- Ground-truth spans of videos are rounded to three digits (fractions of the clip), boxes of answers in videos to whole pixels.
- A box is assigned to the frame of its temporal bin; the last box of a frame counts.
- The caption of an answer is the text after the last comma before the first full stop.
- SVG, which asks for no span, gets a tIoU of 0; caption metrics are rounded to three digits.
- The ends of reversed spans and boxes are not swapped: they are empty.

A row is what the original inference code writes for a sample: `outputs`, the answer; `converted_outputs`, the answer with tokens as
fractions; and the ground truth: `gt_bbox`, fractions x1, y1, x2, y2 (REC); `gt`, fractions start, end (TVG); or `gt` with `tvg`, first
and last frame, `svg`, `{frame: [x1, y1, x2, y2]}` in pixels, and `caption`, plus `split`, first and last frame of the clip, `width` and
`height` in pixels.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..model.coordinates_llava_st import AXES, DEFAULT_NUM_BINS, TOKEN_NAMES, bin_to_position
from ..model.grounding_llava_st import MediaInfo, parse_answer
from .captions import CaptionScoringError, score_captions
from .metrics import Tubelets, box_iou, mean_iou, recall_at, spatial_iou, temporal_iou, tubelet_iou
from .rows import GROUNDING_FIELDS, OWN_PARSER, Box, GroundingResult, Prediction, Span
from .scores import Scores


ORIGINAL_TASKS = ("rec", "tvg", "stvg", "svg", "elc")
THRESHOLDS = (0.3, 0.5, 0.7)
NUM_FRAMES = 100  # that the original program samples of a clip, whatever its length

_TOKEN = re.compile(r"<(?:WIDTH|HEIGHT|TEMP)-([0-9]{1,6})>")
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_SPAN = re.compile(rf"{{\s*{_NUMBER},\s*{_NUMBER}\s*}}")
_BOX = re.compile(rf"\[{','.join([_NUMBER] * 4)}\]")
# In a text with bins instead of tokens and without blanks.
_BIN = r"(?<![0-9.])([0-9]{1,9})"
_MOMENT = re.compile(rf"{_BIN},:\[{','.join([_BIN] * 4)}\]")
# In an unchanged answer.
_T, _H, _W = (rf"<{TOKEN_NAMES[axis]}-([0-9]{{1,6}})>" for axis in AXES)
_TOKEN_SPAN = re.compile(rf"{{\s*{_T}[\s,]*{_T}\s*}}")
_TOKEN_BOX = re.compile(rf"\[\s*{_W}[\s,]*{_H}[\s,]*{_W}[\s,]*{_H}\s*\]")
_END = re.compile(rf"\bEnds in\s*{_T}", re.IGNORECASE)


def score_original(task: str, rows: Iterable[dict]) -> Scores:
    """
    Computes the metrics of the original program.

    Args:
        task: "rec", "tvg", "stvg", "svg" or "elc".
        rows: as the original inference code or `to_original_row` writes them.

    Returns:
        Means (`miou`; `mtiou`, `msiou`, `mstiou`) as fractions, recalls (`R1@0.5`; `tiou@0.5`, `siou@0.5`, `viou@0.5`) as percentages, by
        the names of the original program, and for "elc" caption metrics; if captions cannot be scored, a warning and a note give the
        reason. All are 0 without rows.

    Raises:
        ValueError: naming the task, if the original program does not score it, or the row that is not as described.
    """
    if task not in ORIGINAL_TASKS:
        raise ValueError(f"task={task!r} is not scored by the original program; it must be one of {', '.join(ORIGINAL_TASKS)}.")
    score_row = {"rec": _rec, "tvg": _tvg}.get(task, _video)
    scored = []
    for number, row in enumerate(rows, start=1):
        try:
            scored.append(score_row(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"Row {number} is not a valid row of the original program for {task!r}: {error!r}.") from error
    if task == "rec":
        pairs = [pair for pair in scored if pair[0] is not None]
        ious = box_iou(*_columns(pairs, 4))
        return Scores({"miou": mean_iou(ious), "R1@0.5": recall_at(ious, 0.5)})
    if task == "tvg":
        ious = temporal_iou(*_columns(scored, 2))
        return Scores({"miou": mean_iou(ious)} | {f"R1@{threshold}": 100 * mean_iou(ious > threshold) for threshold in THRESHOLDS})
    spans, tubelets, captions = zip(*scored, strict=True) if scored else ((), (), ())
    pred, truth = (Tubelets(pair[side] for pair in tubelets) for side in (0, 1))
    tiou = np.zeros(len(spans)) if task == "svg" else temporal_iou(*_columns(spans, 2))
    scores = Scores()
    for name, mean, ious in (
        ("tiou", "mtiou", tiou),
        ("siou", "msiou", spatial_iou(pred, truth)),
        ("viou", "mstiou", tubelet_iou(pred, truth)),
    ):
        scores[mean] = mean_iou(ious)
        scores.update({f"{name}@{threshold}": recall_at(ious, threshold) for threshold in THRESHOLDS})
    if task == "elc" and captions:
        answered, true = zip(*captions, strict=True)
        try:
            scores.update({name: round(value, 3) for name, value in score_captions(answered, true).metrics.items()})
        except CaptionScoringError as error:
            warnings.warn(str(error), stacklevel=2)
            scores.notes.append(str(error))
    return scores


def _columns(pairs: Iterable[tuple], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and ground truth, each (N, width)."""
    values = np.array(list(pairs), dtype=np.float64).reshape(-1, 2, width)
    return values[:, 0], values[:, 1]


def _rec(row: dict) -> tuple[Box | None, Box]:
    found = _BOX.search(row["converted_outputs"].replace(" ", ""))
    return (None if found is None else _floats(found.groups())), _floats(row["gt_bbox"])


def _tvg(row: dict) -> tuple[Span, Span]:
    return _span_of(row["converted_outputs"]), _floats(row["gt"])


def _video(row: dict) -> tuple[tuple, tuple, tuple]:
    """Span, tubelet and caption, each as `(prediction, ground truth)`."""
    first, last = row["split"]
    truth = row["gt"]
    span = tuple(round(_fraction(frame, first, last), 3) for frame in truth.get("tvg", (first, first)))
    tubelet = {frame: tuple(map(round, box)) for frame, box in _tubelet_of(row).items()}
    caption = row["outputs"].split(".")[0].split(",")[-1]
    return (
        (_span_of(row["converted_outputs"]), span),
        (tubelet, _ground_truth_tubelet(row)),
        (caption, truth.get("caption", "")),
    )


def _floats(values: Iterable) -> tuple:
    return tuple(float(value) for value in values)


def _span_of(text: str) -> Span:
    found = _SPAN.search(text)
    return (0.0, 0.0) if found is None else _floats(found.groups())


def _tubelet_of(row: dict) -> dict[int, Box]:
    """Boxes of the answer by frame, in pixels, not rounded."""
    (first, last), sizes = row["split"], (row["width"], row["height"]) * 2
    moments = {}
    for found in _MOMENT.finditer(_converted(row["outputs"], _bin_text).replace(" ", "")):
        bin, *corners = map(int, found.groups())
        moments[bin] = corners
    # In two steps, since several bins may be one frame: the box of the bin that occurs last for the first time counts, as in a dict.
    return {
        _frame(bin, first, last): tuple(_position(corner) * size for corner, size in zip(corners, sizes, strict=True))
        for bin, corners in moments.items()
    }


def _ground_truth_tubelet(row: dict) -> dict[int, Box]:
    return {int(frame): _floats(box) for frame, box in row["gt"]["svg"].items()}


def _fraction(frame: float, first: int, last: int) -> float:
    """Position of a frame as a fraction of the clip; 0 in a clip of one frame."""
    return (frame - first) / max(last - first, 1)


def _position(bin: int) -> float:
    # The original vocabulary has this number of bins on every axis.
    return bin_to_position(bin, DEFAULT_NUM_BINS)


def _frame(bin: int, first: int, last: int) -> int:
    return first + round(_position(bin) * (last - first))


def _bin_text(bin: int) -> str:
    return f"{bin},"


def _fraction_text(bin: int) -> str:
    return f"{_position(bin):.5f},"


def _converted(text: str, as_text: Callable[[int], str]) -> str:
    """Replaces each token by a number and a comma, without the comma before a closing bracket or brace."""
    return _TOKEN.sub(lambda token: as_text(int(token[1])), text).replace(",]", "]").replace(",}", "}")


def follows_original_program(prediction: Prediction) -> bool:
    """Returns whether the original program could have written it: answers in coordinate tokens, tubelets at `NUM_FRAMES` frames."""
    has_its_frames = "tubelet" not in GROUNDING_FIELDS[prediction.task] or prediction.num_frames == NUM_FRAMES
    return prediction.task in ORIGINAL_TASKS and prediction.reader == OWN_PARSER and has_its_frames


def to_original_row(prediction: Prediction) -> dict:
    """
    Converts a prediction to a row of the original inference code, for a model with the original number of bins.

    The ground truth is converted as by the original loaders: boxes of images to fractions with three digits, tubelets to the boxes at
    sampled frames. If frames of the clip are skipped unevenly, frames are counted within the clip.

    Raises:
        ValueError: naming the sample, if it was skipped (the original program writes no row then), is of a task that the original program
            does not score, was read by another answer parser than LLaVA-ST's, has boxes at other frames, or has no ground truth.
    """
    task, truth, media = prediction.task, prediction.truth, prediction.medium()
    if task not in ORIGINAL_TASKS:
        raise ValueError(f"Sample {prediction.id!r} is of the task {task!r}; the original program scores {', '.join(ORIGINAL_TASKS)}.")
    if media is None:
        raise ValueError(f"Sample {prediction.id!r} was skipped, and the original program has no row for it: {prediction.skipped}")
    if prediction.reader != OWN_PARSER:
        raise ValueError(
            f"Sample {prediction.id!r} was read by {prediction.reader!r}, and the original program reads coordinate tokens only. Score it "
            "under the default protocol."
        )
    if not follows_original_program(prediction):
        raise ValueError(
            f"Sample {prediction.id!r} has boxes at {prediction.num_frames} frames of a clip, and the original program at {NUM_FRAMES}. "
            "Score it under the default protocol."
        )
    check_ground_truth(prediction, GROUNDING_FIELDS[task])
    answer = prediction.answer or ""
    row = {"outputs": answer, "converted_outputs": _converted(answer, _fraction_text)}
    if task == "rec":
        assert truth.box is not None  # ensured by `check_ground_truth`, here and below
        sizes = (media.width, media.height) * 2
        fractions = (round(corner / size, 3) for corner, size in zip(truth.box, sizes, strict=True))
        return {"gt_bbox": [min(max(fraction, 0.0), 1.0) for fraction in fractions], **row}
    if task == "tvg":
        assert truth.span is not None
        return {"gt": list(truth.span), **row}
    assert truth.tubelet is not None
    first, last, tubelet = media.first_frame, media.last_frame, truth.tubelet
    if media.frames is not None:
        index = {frame: number for number, frame in enumerate(media.frames)}
        first, last, tubelet = 0, len(media.frames) - 1, {index[frame]: box for frame, box in tubelet.items() if frame in index}
    sampled = {_frame(bin, first, last) for bin in range(DEFAULT_NUM_BINS)}
    gt: dict[str, Any] = {"svg": {str(frame): list(box) for frame, box in tubelet.items() if frame in sampled}}
    if truth.span is not None and task != "svg":
        gt["tvg"] = [first + round(position * (last - first)) for position in truth.span]
    if task == "elc":
        gt["caption"] = truth.caption
    return {"split": [first, last], "width": media.width, "height": media.height, "gt": gt, **row}


def check_ground_truth(prediction: Prediction, fields: Iterable[str]) -> None:
    """Raises `ValueError`, naming the sample, if its ground truth lacks one of `fields`."""
    if missing := [name for name in fields if not getattr(prediction.truth, name)]:
        raise ValueError(
            f"Sample {prediction.id!r} cannot be scored for {prediction.task!r}: its ground truth has no {' and no '.join(missing)}."
        )


def from_original_row(task: str, row: dict, id: str) -> Prediction:
    """
    Reads a row of the original program without its bugs: nothing is rounded, reversed ends are swapped, a tubelet without a span lasts
    as long as its boxes, and an answer `Ends in <TEMP-k>` starts at the time of the prompt.

    Args:
        task: "rec", "tvg", "stvg", "svg" or "elc".
        row: see the top of this file. A REC row has no image size, which is taken as 1 x 1 pixel.
        id: for the prediction, since rows have none.

    Raises:
        ValueError: naming the row, if it is not as described.
    """
    try:
        return _read_row(task, row, id)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{id} is not a valid row of the original program for {task!r}: {error!r}.") from error


def _read_row(task: str, row: dict, id: str) -> Prediction:
    answer = row["outputs"]
    span = None
    if found := _TOKEN_SPAN.search(answer):
        start, end = sorted(_position(int(bin)) for bin in found.groups())
        span = (start, end)
    given = GroundingResult()
    if task == "rec":
        box = None if (found := _TOKEN_BOX.search(answer)) is None else _in_order(_position(int(bin)) for bin in found.groups())
        media, truth, answered = MediaInfo("image", 1, 1), GroundingResult(box=_floats(row["gt_bbox"])), GroundingResult(box=box)
    elif task == "tvg":
        media, truth, answered = MediaInfo("video", 1, 1), GroundingResult(span=_floats(row["gt"])), GroundingResult(span=span)
    else:
        first, last = row["split"]
        media = MediaInfo("video", row["width"], row["height"], first_frame=first, last_frame=last)
        tubelet = {frame: _in_order(box) for frame, box in _tubelet_of(row).items()}
        if span is None and tubelet:
            span = (_fraction(min(tubelet), first, last), _fraction(max(tubelet), first, last))
        truth = GroundingResult(tubelet=_ground_truth_tubelet(row))
        caption = None
        if task != "svg":
            start, end = (_fraction(frame, first, last) for frame in row["gt"]["tvg"])
            truth = replace(truth, span=(start, end))
        if task == "elc":
            truth, given = replace(truth, caption=row["gt"]["caption"]), GroundingResult(span=(start, start))
            if found := _END.search(answer):
                span = (start, _position(int(found[1])))
            events = parse_answer(answer, media, DEFAULT_NUM_BINS, DEFAULT_NUM_BINS, start=start)["events"]
            caption = events[0]["caption"] if events else None
        answered = GroundingResult(span=None if task == "svg" else span, tubelet=tubelet or None, caption=caption)
    return Prediction(
        id,
        "original",
        task,
        prompt="",
        truth=truth,
        given=given,
        media=media.to_dict(),
        answer=answer,
        prediction=answered,
        num_frames=NUM_FRAMES if media.kind == "video" else None,
    )


def _in_order(box: Iterable[float]) -> Box:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
