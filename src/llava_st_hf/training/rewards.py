# SPDX-License-Identifier: Apache-2.0
"""Reward functions of grounding for TRL's GRPO: IoU of a completion with the right answer in time and space, and format.

TRL calls them with `completions` and one list for each column of the dataset, and with one entry per completion in all of them:

| column | content |
|---|---|
| `solution` | text of the right answer in the form of the model's answers, with inline coordinates (`{<t1.8s><t2.5s>}`) or tokens |
| `task` | optional: key of `llava_st_hf.model.tasks_llava_st.TASKS`, whose answers have certain parts only |
| `media_info` | [`MediaInfo`], or its values as a dictionary, of the image or clip; `LlavaSTGRPOTrainer` adds it |
| `num_frames` | frames that were sampled of the clip, None for images; `LlavaSTGRPOTrainer` adds it |
| `num_bins` | bins of the time axis, and of height and width; `LlavaSTGRPOTrainer` adds it, by default those of the paper |

A reward is None where the right answer lacks the part that it compares; TRL leaves such rewards out. A completion without that part, or
with one that cannot be parsed, gets 0. Of several spans, or of several boxes in an image, the first is compared. Parser and metrics are
those of `llava_st_hf.evaluation`, which read a time without braces as a span too; coordinates of the right answer are rounded to
thousandths of their axis.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..evaluation.answers import ParseContext, read_llava_st
from ..evaluation.metrics import Tubelets, box_iou, spatial_iou, temporal_iou, tubelet_iou
from ..evaluation.rows import GROUNDING_FIELDS, GroundingResult
from ..model.coordinates_llava_st import (
    AXIS_OF_NAME,
    COORDINATE_TOKEN,
    DEFAULT_NUM_BINS,
    MAX_BINS,
    bin_to_position,
    coordinate_token,
    position_to_bin,
)
from ..model.grounding_llava_st import MediaInfo
from ..model.inline_coordinates_llava_st import INLINE_COORDINATE, read_coordinate


Completion = str | list[dict]
Rewards = list[float | None]

_COORDINATE = re.compile(f"(?P<inline>{INLINE_COORDINATE.pattern})|{COORDINATE_TOKEN.pattern}")
_SPAN = re.compile(r"\{\s*<TEMP-\d+>\s*<TEMP-\d+>\s*\}")
_MISSING = (np.nan, np.nan)
_PARTS = ("span", "box", "tubelet", "objects")


@dataclass(frozen=True)
class _Pair:
    """A parsed completion, the parsed right answer, and the notes of the parser about the former only; whether only the latter has a span
    in braces."""

    found: GroundingResult
    truth: GroundingResult
    notes: tuple[str, ...]
    lacks_braces: bool

    def tiou(self) -> float | None:
        if self.truth.span is None:
            return None
        return float(temporal_iou(np.array([self.found.span or _MISSING]), np.array([self.truth.span]))[0])

    def siou(self) -> float | None:
        if self.truth.box is not None:
            return float(box_iou(np.array([self.found.box or _MISSING * 2]), np.array([self.truth.box]))[0])
        return self._of_tubelets(spatial_iou)

    def viou(self) -> float | None:
        return self._of_tubelets(tubelet_iou)

    def _of_tubelets(self, metric) -> float | None:
        if self.truth.tubelet is None:
            return None
        return float(metric(Tubelets([self.found.tubelet]), Tubelets([self.truth.tubelet]))[0])

    def format(self) -> float | None:
        parts = [name for name in _PARTS if getattr(self.truth, name) is not None]
        if not parts:
            return None
        return float(all(getattr(self.found, name) is not None for name in parts) and not self.notes and not self.lacks_braces)


def tiou_reward(completions: list[Completion], **columns) -> Rewards:
    """Returns the temporal IoU of each completion's span, in [0, 1]; None for answers without a span. See the module for `columns`."""
    return [pair.tiou() for pair in _pairs(completions, **columns)]


def siou_reward(completions: list[Completion], **columns) -> Rewards:
    """
    Returns the spatial IoU of each completion, in [0, 1]; None for answers without boxes. See the module for `columns`.

    Of an image it is the IoU of the box, of a video the mean over the sampled frames for which both the completion and the right answer
    have a box. So it does not depend on the number of boxes: use it with a reward that does.
    """
    return [pair.siou() for pair in _pairs(completions, **columns)]


def viou_reward(completions: list[Completion], **columns) -> Rewards:
    """Returns the vIoU of each completion's tubelet, in [0, 1]; None for answers without one. See the module for `columns`."""
    return [pair.viou() for pair in _pairs(completions, **columns)]


def tiou_siou_reward(completions: list[Completion], **columns) -> Rewards:
    """
    Returns tIoU + tIoU² · sIoU of each completion, in [0, 2]: boxes count once the span is right. See the module for `columns`.

    Without boxes in the right answer it is tIoU alone, without a span sIoU alone, and without both None.
    """
    rewards: Rewards = []
    for pair in _pairs(completions, **columns):
        tiou, siou = pair.tiou(), pair.siou()
        rewards.append(siou if tiou is None else tiou if siou is None else tiou + tiou**2 * siou)
    return rewards


def format_reward(completions: list[Completion], **columns) -> Rewards:
    """
    Returns 1 for each completion that has all parts of the right answer and that the parser reads without a note, else 0; None for answers
    without span, boxes and objects. A span must be in braces if that of the right answer is. See the module for `columns`.
    """
    return [pair.format() for pair in _pairs(completions, **columns)]


def _pairs(
    completions: list[Completion],
    solution: list[str] | None = None,
    task: list[str | None] | None = None,
    media_info: list[MediaInfo | dict | None] | None = None,
    num_frames: list[int | None] | None = None,
    num_bins: list[tuple[int, int]] | None = None,
    **kwargs,
) -> Iterator[_Pair]:
    """Parses completions and right answers. TRL passes further columns and objects in `kwargs`, which are not used."""
    count = len(completions)
    if solution is None:
        raise ValueError("The dataset has no column `solution` with the right answers, which the rewards of grounding compare with.")
    if media_info is None:
        raise ValueError("media_info is missing: train with LlavaSTGRPOTrainer, or add a column with the values of each image's MediaInfo.")
    columns = (task or [None] * count, media_info, num_frames or [None] * count, num_bins or [(DEFAULT_NUM_BINS,) * 2] * count)
    for completion, right, name, media, frames, bins in zip(completions, solution, *columns, strict=True):
        yield _pair(_text(completion), right, name, media, frames, tuple(bins))


def _text(completion: Completion) -> str:
    """Returns the text of a completion, which is a string or a list of messages."""
    content = completion if isinstance(completion, str) else completion[-1]["content"]
    return content if isinstance(content, str) else "".join(item["text"] for item in content if item["type"] == "text")


def _pair(
    text: str, solution: str, task: str | None, media: MediaInfo | dict | None, num_frames: int | None, num_bins: tuple[int, int]
) -> _Pair:
    if not isinstance(solution, str):
        raise ValueError(f"A solution must be the text of the right answer, got {solution!r:.100}.")
    if media is None:
        raise ValueError(f"The prompt of the solution {solution!r:.100} has no image or video, which spans and boxes refer to.")
    if isinstance(media, dict):
        media = MediaInfo.from_dict(media)
    expected_parts = [name for name in GROUNDING_FIELDS.get(task or "", ()) if name in _PARTS]
    if task not in GROUNDING_FIELDS:  # a conversation of one's own
        task = "stvg" if media.kind == "video" else "rec"
    exact = _on_fine_bins(solution, media, num_bins)
    truth, expected = read_llava_st(exact, ParseContext(task, media, GroundingResult(), MAX_BINS, MAX_BINS, num_frames))
    if expected_parts and all(getattr(truth, name) is None for name in expected_parts):
        raise ValueError(
            f"The solution {solution!r:.100} has no {' or '.join(expected_parts)}, which is the answer to the task {task!r}: write "
            "coordinates as in {<t1.8s><t2.5s>} and [<w10px><h20px><w90px><h80px>]."
        )
    found, notes = read_llava_st(text, ParseContext(task, media, GroundingResult(), *num_bins, num_frames))
    return _Pair(found, truth, tuple(note for note in notes if note not in expected), bool(_SPAN.search(exact)) and not _SPAN.search(text))


def _on_fine_bins(solution: str, media: MediaInfo, num_bins: tuple[int, int]) -> str:
    """Returns a right answer with each coordinate as the token of the nearest of MAX_BINS bins.

    Raises:
        ValueError: naming a coordinate that is not valid or lies outside the clip or image.
    """

    def token(match: re.Match) -> str:
        if match["inline"]:
            axis, position = read_coordinate(match, media.position)
        else:
            axis = AXIS_OF_NAME[match["name"]]
            position = bin_to_position(int(match["bin"]), num_bins[axis != "temporal"])
        return coordinate_token(axis, position_to_bin(position, MAX_BINS))

    return _COORDINATE.sub(token, solution)


__all__ = ["format_reward", "siou_reward", "tiou_reward", "tiou_siou_reward", "viou_reward"]
