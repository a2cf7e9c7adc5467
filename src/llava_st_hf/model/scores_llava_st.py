# SPDX-License-Identifier: Apache-2.0
"""Positions between bins, and confidence scores, of the coordinates of an answer, from the probabilities of the coordinate tokens.

Training targets are the two bins around an exact position (LLaVA-ST, section 3.2), so the probabilities of the bins next to a generated one
are information about the position between them: the refined position is the expected one among the bins around the generated bin.

The score of a span or box is the IoU that the model itself expects: the mean IoU of the answer with spans or boxes whose coordinates are
drawn independently from the probabilities of the bins at the step of each coordinate. A calibration corrects it to measured IoU.
"""

from collections.abc import Iterable, Sequence

import torch

from .checks_llava_st import is_finite_number
from .coordinates_llava_st import AXES, COORDINATE_TOKEN, bin_to_position, coordinate_token


# Bins on each side of the generated bin that the refined position is computed from. Of windows of 1 to 8 and of all bins, none gave a
# mean IoU on the validation split of the Shapes dataset that is more than 0.0001 higher; with all bins, a second mode shifts the position.
WINDOW = 8
# Number of draws of a span or box: points of a Sobol sequence, which gives means to about 0.002.
_NUM_DRAWS = 256
#: Kinds of scores that have a calibration of their own: spans, boxes of an image, and boxes at a time of a video.
SCORE_KINDS = ("span", "image_box", "video_box")
_SCORE_DECIMALS = 4


class ScoredPosition(float):
    """
    Position of a generated coordinate token: the number is the position of its bin, a fraction.

    Attributes:
        bin (`int`): the bin.
        refined (`float`): expected position among the bins around it, a fraction.
        cumulative (`torch.Tensor` of shape `(num_bins,)`): probability of this bin or a lower one. The last value is below 1 where other
            tokens than those of the axis have a probability.
    """

    bin: int
    refined: float
    cumulative: torch.Tensor

    def __new__(cls, index: int, refined: float, cumulative: torch.Tensor):
        position = super().__new__(cls, bin_to_position(index, len(cumulative)))
        position.bin, position.refined, position.cumulative = index, refined, cumulative
        return position


def score_coordinates(
    ids: Sequence[int], coordinate_logits: torch.Tensor, sizes: Sequence[int], start_token_id: int
) -> list[ScoredPosition]:
    """
    Computes the refined positions and the distributions of the coordinate tokens of one answer.

    Args:
        ids: (length,) generated token ids.
        coordinate_logits: (length, num_coordinates) log probabilities of the coordinate tokens at each step, in the order of the
            vocabulary. Steps whose token is not a coordinate are not read.
        sizes: number of bins of each of `AXES`.
        start_token_id: id of the first coordinate token.

    Returns:
        One [`ScoredPosition`] for each coordinate token, in order.

    Raises:
        ValueError: naming the shapes, if they do not go together.
    """
    expected = (len(ids), sum(sizes))
    if tuple(coordinate_logits.shape) != expected:
        raise ValueError(
            f"coordinate_logits must be of shape {expected}, (tokens, coordinate tokens); got {tuple(coordinate_logits.shape)}."
        )
    steps = [step for step, token in enumerate(ids) if start_token_id <= token < start_token_id + sum(sizes)]
    logits = coordinate_logits[steps].float().cpu()  # (num_coordinates, sum(sizes))
    chosen = torch.tensor([ids[step] - start_token_id for step in steps], dtype=torch.long)
    found: list[ScoredPosition | None] = [None] * len(steps)
    for number, size in enumerate(sizes):
        first = sum(sizes[:number])
        rows = ((chosen >= first) & (chosen < first + size)).nonzero().flatten()
        bins, of_axis = chosen[rows] - first, logits[rows, first : first + size]
        index = torch.arange(size)
        near = (index - bins[:, None]).abs() <= WINDOW
        weights = of_axis.masked_fill(~near, -torch.inf).softmax(dim=-1)
        refined = (weights * index).sum(dim=-1) / (size - 1)
        # Without any probability in the window, as of tokens that were not generated from these logits, the bin is the best estimate.
        refined = torch.where(refined.isnan(), bins / (size - 1), refined)
        cumulative = of_axis.exp().cumsum(dim=-1)
        for row, position in zip(rows.tolist(), zip(bins.tolist(), refined.tolist(), cumulative, strict=True), strict=True):
            found[row] = ScoredPosition(*position)
    return [position for position in found if position is not None]


def score_answer(processor, ids: torch.Tensor, coordinate_logits: torch.Tensor) -> list[ScoredPosition | None]:
    """
    Computes the scored positions of the coordinates in the text of an answer.

    Args:
        processor: [`LlavaSTProcessor`].
        ids: (length,) generated token ids.
        coordinate_logits: as of `score_coordinates`.

    Returns:
        One entry for each coordinate token in the text `processor.decode_answer(ids)`, in order: None for one that is spelled by ordinary
        tokens, whose bin has no probability.
    """
    tokens = torch.as_tensor(ids).tolist()
    sizes = [processor.num_temporal_bins, processor.num_spatial_bins, processor.num_spatial_bins]
    if not sum(sizes):
        return [None] * len(COORDINATE_TOKEN.findall(processor.decode_answer(tokens)))
    start = processor.tokenizer.convert_tokens_to_ids(coordinate_token(AXES[0], 0))
    positions = score_coordinates(tokens, coordinate_logits, sizes, start)
    if len(positions) == len(COORDINATE_TOKEN.findall(processor.decode_answer(tokens))):
        return list(positions)
    # Some are spelled: they are in the text between two coordinate tokens, because no other token has the characters "<" and ">" of both.
    aligned: list[ScoredPosition | None] = []
    between: list[int] = []
    rest = iter(positions)
    for token in [*tokens, None]:
        if token is not None and not start <= token < start + sum(sizes):
            between.append(token)
            continue
        aligned += [None] * len(COORDINATE_TOKEN.findall(processor.decode_answer(between)))
        between = []
        if token is not None:
            aligned.append(next(rest))
    return aligned


# Refined values


def refined(position: float) -> float:
    """The refined position of a generated coordinate; any other position itself."""
    return position.refined if isinstance(position, ScoredPosition) else position


def refined_pair(low: float, high: float) -> tuple[float, float]:
    """Refined positions of the two ends of a span or of a side of a box; those of their bins where the refined ones are not in order."""
    pair = refined(low), refined(high)
    return pair if pair[0] <= pair[1] else (float(low), float(high))


def refined_box(corners: Sequence[float]) -> tuple[float, float, float, float]:
    """Refined positions (x1, y1, x2, y2) of a box."""
    x1, y1, x2, y2 = corners
    (x1, x2), (y1, y2) = refined_pair(x1, x2), refined_pair(y1, y2)
    return x1, y1, x2, y2


def refined_times(times: Iterable[float | None], start: float | None, end: float | None) -> list[float | None]:
    """
    Refined times of the boxes of an event, in the order of their bins and within the span where their bins are within it.

    Args:
        times: position of each box in time; None where it is unknown.
        start, end: ends of the span, not refined; None where unknown.
    """
    found: list[float | None] = []
    span = None if start is None or end is None else (start, end, *refined_pair(start, end))
    before = None
    for time in times:
        value = None
        if time is not None:
            value = refined(time)
            if before is not None and time >= before[0]:
                value = max(value, before[1])
            if span is not None and span[0] <= time <= span[1]:
                value = min(max(value, span[2]), span[3])
            before = time, value
        found.append(value)
    return found


# Scores


def expected_ious(shapes: Sequence[Sequence[float]]) -> list[float | None]:
    """
    Computes the expected IoU of spans or boxes under the probabilities of their coordinates.

    Args:
        shapes: spans (start, end) or boxes (x1, y1, x2, y2), all of the same kind, in positions. A coordinate without probabilities, of
            the prompt or spelled by ordinary tokens, counts as exact.

    Returns:
        The mean IoU of each, between 0 and 1; None where no coordinate has probabilities. The probability of tokens outside the axis of a
        coordinate counts as IoU 0.
    """
    scored = [any(isinstance(position, ScoredPosition) for position in shape) for shape in shapes]
    rows = [shape for shape, is_scored in zip(shapes, scored, strict=True) if is_scored]
    if not rows:
        return [None] * len(shapes)
    width = len(rows[0])
    points = torch.quasirandom.SobolEngine(width).draw(_NUM_DRAWS).T.contiguous() + 0.5 / _NUM_DRAWS  # (width, num_draws)
    drawn = torch.empty(len(rows), width, _NUM_DRAWS)
    for place in range(width):
        generated = [number for number, shape in enumerate(rows) if isinstance(shape[place], ScoredPosition)]
        cumulative = torch.stack([rows[number][place].cumulative for number in generated]) if generated else None  # type: ignore[attr-defined]
        drawn[:, place] = torch.tensor([float(shape[place]) for shape in rows])[:, None]
        if cumulative is not None:
            bins = torch.searchsorted(cumulative, points[place].expand(len(generated), -1).contiguous())  # (generated, num_draws)
            positions = bins / (cumulative.shape[1] - 1)
            drawn[generated, place] = positions.masked_fill(bins == cumulative.shape[1], torch.nan)
    refine = refined_box if width == 4 else lambda span: refined_pair(*span)
    answered = torch.tensor([refine(shape) for shape in rows])[..., None]  # (rows, width, 1)
    half = width // 2
    low, high = torch.maximum(answered[:, :half], drawn[:, :half]), torch.minimum(answered[:, half:], drawn[:, half:])
    overlap = (high - low).clamp(min=0).prod(dim=1)  # (rows, num_draws)
    areas = [(sides[:, half:] - sides[:, :half]).clamp(min=0).prod(dim=1) for sides in (answered, drawn)]
    union = areas[0] + areas[1] - overlap
    ious = torch.where(union > 0, overlap / union, 0.0).nan_to_num(nan=0.0).mean(dim=1).tolist()
    found = iter(ious)
    return [min(next(found), 1.0) if is_scored else None for is_scored in scored]


def check_calibration(calibration) -> dict[str, tuple[float, float]]:
    """
    Checks a calibration of scores.

    Args:
        calibration: `{kind: (slope, offset)}` for some of `SCORE_KINDS`, of `calibrated`; None for none.

    Raises:
        ValueError: naming the value.
    """
    expected = f"score_calibration must map some of {', '.join(SCORE_KINDS)} to [slope, offset], with a slope above 0"
    if calibration is None:
        return {}
    if not isinstance(calibration, dict) or not set(calibration) <= set(SCORE_KINDS):
        raise ValueError(f"{expected}; got {calibration!r}.")
    for pair in calibration.values():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(map(is_finite_number, pair)) or pair[0] <= 0:
            raise ValueError(f"{expected}; got {calibration!r}.")
    return {kind: (float(slope), float(offset)) for kind, (slope, offset) in calibration.items()}


def set_calibration(generation_config, calibration: dict | None) -> None:
    """
    Stores the calibration of a checkpoint's scores in its generation configuration, in place; None removes it.

    A calibration is valid for the weights that it was fitted to: training and merging of adapters remove it.

    Raises:
        ValueError: as `check_calibration`.
    """
    if calibration is None:
        vars(generation_config).pop("score_calibration", None)
        return
    generation_config.score_calibration = {kind: list(pair) for kind, pair in check_calibration(calibration).items()}
    # transformers drops such a value when it loads a file that is marked as derived from the model's configuration.
    generation_config._from_model_config = False


def calibrated(score: float, parameters: tuple[float, float] | None) -> float:
    """`sigmoid(slope · logit(score) + offset)`, which increases with the score; the score itself without parameters."""
    if parameters is None:
        return score
    logit = torch.logit(torch.tensor(score, dtype=torch.float64), eps=1e-6)
    return float(torch.sigmoid(parameters[0] * logit + parameters[1]))


def add_scores(
    result: dict,
    start: float | None,
    end: float | None,
    boxes: Sequence[tuple[float | None, Sequence[float]]],
    calibration: dict,
    is_video: bool,
) -> None:
    """
    Adds bins and scores to an event of `parse_answer`, in place.

    Args:
        result: the event.
        start, end: its span, in positions that are not refined; None where unknown.
        boxes: `(time, corners)` of its boxes, in such positions.
        calibration: as `check_calibration` returns it.
        is_video: whether the event is of a video.
    """
    kind = "video_box" if is_video else "image_box"
    box_scores = [_calibrated(score, calibration.get(kind)) for score in expected_ious([corners for _, corners in boxes])]
    for entry, (time, corners), score in zip(result["boxes"], boxes, box_scores, strict=True):
        positions = ({"time": time} if is_video else {}) | dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        entry["bins"] = {name: _bin(position) for name, position in positions.items()}
        entry["score"] = score
    span_score = None
    # A single time is not a span: its IoU with any other is 0.
    if start is not None and end is not None and start is not end:
        span_score = _calibrated(expected_ious([(start, end)])[0], calibration.get("span"))
    known = [score for score in box_scores if score is not None]
    parts = ([] if span_score is None else [span_score]) + ([sum(known) / len(known)] if known else [])
    if is_video:
        result["bins"], result["span_score"] = {"start": _bin(start), "end": _bin(end)}, span_score
    result["score"] = round(torch.tensor(parts, dtype=torch.float64).prod().item(), _SCORE_DECIMALS) if parts else None


def _calibrated(score: float | None, parameters: tuple[float, float] | None) -> float | None:
    return None if score is None else round(calibrated(score, parameters), _SCORE_DECIMALS)


def _bin(position: float | None) -> int | None:
    return position.bin if isinstance(position, ScoredPosition) else None


__all__ = ["ScoredPosition", "check_calibration", "score_answer", "score_coordinates", "set_calibration"]
