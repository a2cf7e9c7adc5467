# SPDX-License-Identifier: Apache-2.0
"""Scoring as the released LLaVA-ST program does it, traps included, for figures that compare with its published ones.

Learned from measurements of that program and, where those left a question, from its scorer as published. In its way of counting

- REC leaves out answers without a box, in numerator and denominator; what stands in the first brackets with four numbers is the box;
- TVG counts them, and asks for more than a threshold, where all else asks for at least that;
- a span is what stands in the first braces, so an ELC answer `Ends in <TEMP-k>, …` has none and gets tIoU 0;
- true spans of videos are rounded to three digits, as fractions of the clip; boxes in videos to whole pixels;
- a moment lies at the frame that its bin stands for, and what is said last of a frame counts;
- a predicted caption is what stands after the last comma before the first full stop of the answer;
- SVG, which asks for no span, gets tIoU 0; caption figures are rounded to three digits;
- no answer's span or box is put in order where it is reversed: it has no extent.

A row is what the released inference writes of a sample: `outputs`, the answer, `converted_outputs`, the same with tokens as fractions,
and the truth: `gt_bbox`, fractions x1, y1, x2, y2 (REC); `gt`, fractions start, end (TVG); or `gt` with `tvg`, first and last frame,
`svg`, `{frame: [x1, y1, x2, y2]}` in pixels, and `caption`, beside `split`, first and last frame of the clip, `width` and `height`.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.questions import SAMPLED_FRAMES
from ..model.coordinates_llava_st import AXES, DEFAULT_NUM_BINS, TOKEN_NAMES, bin_to_position
from ..model.grounding_llava_st import MediaInfo, parse_answer
from .captions import missing_caption_tools, score_captions
from .metrics import Tubelets, box_iou, mean_iou, recall_at, spatial_iou, temporal_iou, tubelet_iou
from .rows import GROUNDING_FIELDS, OWN_PARSER, Box, GroundingResult, Prediction, Span


RELEASED_TASKS = ("rec", "tvg", "stvg", "svg", "elc")
THRESHOLDS = (0.3, 0.5, 0.7)

_TOKEN = re.compile(r"<(?:WIDTH|HEIGHT|TEMP)-([0-9]{1,6})>")
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_SPAN = re.compile(rf"{{\s*{_NUMBER},\s*{_NUMBER}\s*}}")
_BOX = re.compile(rf"\[{','.join([_NUMBER] * 4)}\]")
# In a text that has bins in place of tokens, and no blanks.
_BIN = r"(?<![0-9.])([0-9]{1,9})"
_MOMENT = re.compile(rf"{_BIN},:\[{','.join([_BIN] * 4)}\]")
# In an answer as it is.
_T, _H, _W = (rf"<{TOKEN_NAMES[axis]}-([0-9]{{1,6}})>" for axis in AXES)
_TOKEN_SPAN = re.compile(rf"{{\s*{_T}[\s,]*{_T}\s*}}")
_TOKEN_BOX = re.compile(rf"\[\s*{_W}[\s,]*{_H}[\s,]*{_W}[\s,]*{_H}\s*\]")
_END = re.compile(rf"\bEnds in\s*{_T}", re.IGNORECASE)


def score_released(task: str, rows: Iterable[dict]) -> dict[str, float]:
    """
    The figures of the released program.

    Args:
        task: "rec", "tvg", "stvg", "svg" or "elc".
        rows: as the released inference writes them, or `released_row` does.

    Returns:
        Means (`miou`; `mtiou`, `msiou`, `mstiou`) as fractions, recalls (`R1@0.5`; `tiou@0.5`, `siou@0.5`, `viou@0.5`) in per cent, and
        of "elc" the caption figures, without which goes a warning where captions cannot be scored. All 0 where there are no rows.

    Raises:
        ValueError: naming the task, where the released program does not score it, or the row that is not as described.
    """
    if task not in RELEASED_TASKS:
        raise ValueError(f"The released program scores {', '.join(RELEASED_TASKS)}, not {task!r}.")
    score_row = {"rec": _rec, "tvg": _tvg}.get(task, _video)
    scored = []
    for number, row in enumerate(rows, start=1):
        try:
            scored.append(score_row(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"Row {number} is no row of the released program for {task!r}: {error!r}.") from error
    if task == "rec":
        pairs = [pair for pair in scored if pair[0] is not None]
        ious = box_iou(*_columns(pairs, 4))
        return {"miou": mean_iou(ious), "R1@0.5": recall_at(ious, 0.5)}
    if task == "tvg":
        ious = temporal_iou(*_columns(scored, 2))
        return {"miou": mean_iou(ious)} | {f"R1@{threshold}": 100 * mean_iou(ious > threshold) for threshold in THRESHOLDS}
    spans, tubelets, captions = zip(*scored, strict=True) if scored else ((), (), ())
    pred, truth = (Tubelets(pair[side] for pair in tubelets) for side in (0, 1))
    tiou = np.zeros(len(spans)) if task == "svg" else temporal_iou(*_columns(spans, 2))
    figures = {}
    for name, mean, ious in (
        ("tiou", "mtiou", tiou),
        ("siou", "msiou", spatial_iou(pred, truth)),
        ("viou", "mstiou", tubelet_iou(pred, truth)),
    ):
        figures[mean] = mean_iou(ious)
        figures |= {f"{name}@{threshold}": recall_at(ious, threshold) for threshold in THRESHOLDS}
    if task == "elc" and captions:
        figures |= _caption_figures(captions)
    return figures


def _columns(pairs: Iterable[tuple], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truths, each (N, width)."""
    values = np.array(list(pairs), dtype=np.float64).reshape(-1, 2, width)
    return values[:, 0], values[:, 1]


def _rec(row: dict) -> tuple[Box | None, Box]:
    found = _BOX.search(row["converted_outputs"].replace(" ", ""))
    return (None if found is None else _floats(found.groups())), _floats(row["gt_bbox"])


def _tvg(row: dict) -> tuple[Span, Span]:
    return _span_of(row["converted_outputs"]), _floats(row["gt"])


def _video(row: dict) -> tuple[tuple, tuple, tuple]:
    """Spans, tubelets and captions, each of prediction and truth."""
    first, last = row["split"]
    truth = row["gt"]
    span = tuple(round(_fraction(frame, first, last), 3) for frame in truth.get("tvg", (first, first)))
    tubelet = {frame: tuple(map(round, box)) for frame, box in _tubelet_of(row).items()}
    caption = row["outputs"].split(".")[0].split(",")[-1]
    return (
        (_span_of(row["converted_outputs"]), span),
        (tubelet, _true_tubelet(row)),
        (caption, truth.get("caption", "")),
    )


def _caption_figures(captions: Iterable[tuple[str, str]]) -> dict[str, float]:
    if problem := missing_caption_tools():
        warnings.warn(problem, stacklevel=3)
        return {}
    said, true = zip(*captions, strict=True)
    return {name: round(figure, 3) for name, figure in score_captions(said, true).figures.items()}


def _floats(values: Iterable) -> tuple:
    return tuple(float(value) for value in values)


def _span_of(text: str) -> Span:
    found = _SPAN.search(text)
    return (0.0, 0.0) if found is None else _floats(found.groups())


def _tubelet_of(row: dict) -> dict[int, Box]:
    """What the answer says, in pixels that are not rounded."""
    (first, last), sizes = row["split"], (row["width"], row["height"]) * 2
    moments = {}
    for found in _MOMENT.finditer(_converted(row["outputs"], _bin_text).replace(" ", "")):
        bin, *corners = map(int, found.groups())
        moments[bin] = corners
    # In two steps, as bins may share a frame: of those the one that was named last for the first time counts.
    return {
        _frame(bin, first, last): tuple(_position(corner) * size for corner, size in zip(corners, sizes, strict=True))
        for bin, corners in moments.items()
    }


def _true_tubelet(row: dict) -> dict[int, Box]:
    return {int(frame): _floats(box) for frame, box in row["gt"]["svg"].items()}


def _fraction(frame: float, first: int, last: int) -> float:
    """Of the clip; the start of one that has a single frame."""
    return (frame - first) / max(last - first, 1)


def _position(bin: int) -> float:
    # The released vocabulary has this many bins on every axis, and as many sampled frames.
    return bin_to_position(bin, DEFAULT_NUM_BINS)


def _frame(bin: int, first: int, last: int) -> int:
    return first + round(_position(bin) * (last - first))


def _bin_text(bin: int) -> str:
    return f"{bin},"


def _fraction_text(bin: int) -> str:
    return f"{_position(bin):.5f},"


def _converted(text: str, as_text: Callable[[int], str]) -> str:
    """The text with each token as a number and a comma, but no comma at the end of brackets or braces."""
    return _TOKEN.sub(lambda token: as_text(int(token[1])), text).replace(",]", "]").replace(",}", "}")


def is_released(prediction: Prediction) -> bool:
    """Whether the released program could have written it: answers in coordinate tokens, tubelets at as many frames as it samples."""
    of_its_frames = "tubelet" not in GROUNDING_FIELDS[prediction.task] or prediction.num_frames == SAMPLED_FRAMES
    return prediction.task in RELEASED_TASKS and prediction.reader == OWN_PARSER and of_its_frames


def released_row(prediction: Prediction) -> dict:
    """
    A prediction as the released inference would have written it, for a model with the released number of bins.

    The truth is brought to the form of the released loaders: fractions of boxes with three digits, and of a tubelet the boxes at
    sampled frames. Where frames of the clip are left out unevenly, frames are counted within it.

    Raises:
        ValueError: naming the sample, where it was skipped (the released program has no row of such a one), is of a task that the
            released program does not score, was read by another reader than LLaVA-ST's, has boxes at other frames, or has no truth.
    """
    task, truth, media = prediction.task, prediction.truth, prediction.medium()
    if task not in RELEASED_TASKS:
        raise ValueError(f"The released program scores {', '.join(RELEASED_TASKS)}, not {task!r}, the task of sample {prediction.id!r}.")
    if media is None:
        raise ValueError(f"Sample {prediction.id!r} was skipped, and the released program has no row for it: {prediction.skipped}")
    if prediction.reader != OWN_PARSER:
        raise ValueError(
            f"Sample {prediction.id!r} was read by {prediction.reader!r}, and the released program reads coordinate tokens alone: such "
            "answers have figures under the default protocol."
        )
    if not is_released(prediction):
        raise ValueError(
            f"Sample {prediction.id!r} is about {prediction.num_frames} frames of a clip, and the released program about {SAMPLED_FRAMES}: "
            "such answers have figures under the default protocol."
        )
    check_truth(prediction, GROUNDING_FIELDS[task])
    answer = prediction.answer or ""
    row = {"outputs": answer, "converted_outputs": _converted(answer, _fraction_text)}
    if task == "rec":
        assert truth.box is not None  # `check_truth` saw to it, here and below
        sizes = (media.width, media.height) * 2
        fractions = (round(corner / size, 3) for corner, size in zip(truth.box, sizes, strict=True))
        return {"gt_bbox": [min(max(fraction, 0.0), 1.0) for fraction in fractions], **row}
    if task == "tvg":
        assert truth.span is not None
        return {"gt": list(truth.span), **row}
    assert truth.tubelet is not None
    first, last, tubelet = media.first_frame, media.last_frame, truth.tubelet
    if media.frames is not None:
        place = {frame: number for number, frame in enumerate(media.frames)}
        first, last, tubelet = 0, len(media.frames) - 1, {place[frame]: box for frame, box in tubelet.items() if frame in place}
    seen = {_frame(bin, first, last) for bin in range(DEFAULT_NUM_BINS)}
    gt: dict[str, Any] = {"svg": {str(frame): list(box) for frame, box in tubelet.items() if frame in seen}}
    if truth.span is not None and task != "svg":
        gt["tvg"] = [first + round(position * (last - first)) for position in truth.span]
    if task == "elc":
        gt["caption"] = truth.caption
    return {"split": [first, last], "width": media.width, "height": media.height, "gt": gt, **row}


def check_truth(prediction: Prediction, asked: Iterable[str]) -> None:
    """Raises `ValueError`, naming the sample, where its truth lacks what is asked."""
    if missing := [name for name in asked if not getattr(prediction.truth, name)]:
        raise ValueError(f"Sample {prediction.id!r} cannot be scored for {prediction.task!r}: it has no true {' and '.join(missing)}.")


def released_prediction(task: str, row: dict, id: str) -> Prediction:
    """
    What a row of the released program says, read without its traps: nothing is rounded, what is reversed is put in order, a tubelet
    without a span lasts as long as its boxes, and an answer `Ends in <TEMP-k>` starts where the question says.

    Args:
        task: "rec", "tvg", "stvg", "svg" or "elc".
        row: see the top of this file. Of REC it does not tell the size of the picture, which is taken to be one by one.
        id: for the prediction; rows have none.

    Raises:
        ValueError: naming the row, where it is not as described.
    """
    try:
        return _read_row(task, row, id)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{id} is no row of the released program for {task!r}: {error!r}.") from error


def _read_row(task: str, row: dict, id: str) -> Prediction:
    answer = row["outputs"]
    span = None
    if found := _TOKEN_SPAN.search(answer):
        start, end = sorted(_position(int(bin)) for bin in found.groups())
        span = (start, end)
    given = GroundingResult()
    if task == "rec":
        box = None if (found := _TOKEN_BOX.search(answer)) is None else _in_order(_position(int(bin)) for bin in found.groups())
        media, truth, said = MediaInfo("image", 1, 1), GroundingResult(box=_floats(row["gt_bbox"])), GroundingResult(box=box)
    elif task == "tvg":
        media, truth, said = MediaInfo("video", 1, 1), GroundingResult(span=_floats(row["gt"])), GroundingResult(span=span)
    else:
        first, last = row["split"]
        media = MediaInfo("video", row["width"], row["height"], first_frame=first, last_frame=last)
        tubelet = {frame: _in_order(box) for frame, box in _tubelet_of(row).items()}
        if span is None and tubelet:
            span = (_fraction(min(tubelet), first, last), _fraction(max(tubelet), first, last))
        truth = GroundingResult(tubelet=_true_tubelet(row))
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
        said = GroundingResult(span=None if task == "svg" else span, tubelet=tubelet or None, caption=caption)
    return Prediction(id, "released", task, prompt="", truth=truth, given=given, media=media.to_dict(), answer=answer, prediction=said)


def _in_order(box: Iterable[float]) -> Box:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
