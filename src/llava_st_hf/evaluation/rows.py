# SPDX-License-Identifier: Apache-2.0
"""What an evaluation asks, and what it keeps of an answer: one JSON object per sample, with all that it takes to score it again.

Times are fractions of the clip that the model saw, boxes pixels of the upright original, frames indices of the original file. A
*tubelet* maps frames to boxes; in JSON its keys are strings.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.questions import SAMPLED_FRAMES
from ..data.samples import GroundingSample
from ..model.grounding_llava_st import MediaInfo


Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
Span = tuple[float, float]

# What each task asks for, by the names of `GroundingResult`.
GROUNDING_FIELDS = {
    "rec": ("box",),
    "tvg": ("span",),
    "stvg": ("span", "tubelet"),
    "svg": ("tubelet",),
    "elc": ("span", "tubelet", "caption"),
    "tr": ("caption",),
    "reg": ("caption",),
    "dgc": ("objects",),
}
OWN_PARSER = "llava_st"  # of `answers.ANSWER_PARSERS`: of answers in coordinate tokens


@dataclass(frozen=True)
class GroundingResult:
    """
    What is true of a sample, or what an answer says of it. What a task does not ask for is None.

    Args:
        span: when, as fractions of the clip.
        box: where in a picture, in pixels.
        tubelet: where in each frame of a video, `{frame: box}`.
        caption: what.
        objects: what is where in a picture, `(phrase, box)` each.
    """

    span: Span | None = None
    box: Box | None = None
    tubelet: dict[int, Box] | None = None
    caption: str | None = None
    objects: tuple[tuple[str, Box], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if self.tubelet is not None:
            values["tubelet"] = {str(frame): list(box) for frame, box in self.tubelet.items()}
        return values

    @classmethod
    def from_dict(cls, values: dict) -> "GroundingResult":
        tubelet, objects = values.get("tubelet"), values.get("objects")
        return cls(
            span=None if values.get("span") is None else tuple(values["span"]),
            box=None if values.get("box") is None else tuple(values["box"]),
            tubelet=None if tubelet is None else {int(frame): tuple(box) for frame, box in tubelet.items()},
            caption=values.get("caption"),
            objects=None if objects is None else tuple((phrase, tuple(box)) for phrase, box in objects),
        )


@dataclass(frozen=True)
class Question:
    """
    One sample of a benchmark.

    Args:
        id: unique within the benchmark.
        task: one of `llava_st_hf.model.tasks_llava_st.TASKS`.
        path: absolute path of the medium.
        kind: "image" or "video".
        clip: first and last frame to look at, both included; None for all.
        start, end: the same in seconds, either None.
        prompt: the words of the question, with coordinates inline and without the mark of the medium.
        truth: what a right answer says.
        given: what the question gives away of it ("svg": the span; "elc": start and first box).
        size: `(width, height)` of the medium in pixels where the annotation tells, else None.
        frames: `(first, last)` frame of the clip where the annotation tells, else None.
        num_frames: of the clip, spread evenly: tubelets have boxes at these and no others.
        sample: the annotation, where it is in seconds. `truth` and `given` have no times then, until `placing.placed` puts them in.
    """

    id: str
    task: str
    path: str
    kind: str
    prompt: str
    truth: GroundingResult
    clip: tuple[int, int] | None = None
    given: GroundingResult = field(default_factory=GroundingResult)
    size: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None
    start: float | None = None
    end: float | None = None
    num_frames: int = SAMPLED_FRAMES
    sample: GroundingSample | None = None


@dataclass
class Prediction:
    """
    One line of a predictions file.

    Args:
        id, benchmark, task, prompt, truth, given, num_frames: of the question.
        path: of the medium.
        media: what the model saw, as `MediaInfo.to_dict` has it; None where it could not be opened.
        answer: the model's words, coordinate tokens kept; None where there is none.
        finished: whether the answer ended by itself, and was not cut off.
        prediction: what the answer says.
        notes: what to know of the medium and what could not be read in the answer, in plain words.
        skipped: why there is no answer; None where there is one.
        reader: what read the answer, a key of `answers.ANSWER_PARSERS`.
        model, seed, versions: what it takes to do it again.
    """

    id: str
    benchmark: str
    task: str
    prompt: str
    truth: GroundingResult
    given: GroundingResult = field(default_factory=GroundingResult)
    path: str | None = None
    media: dict | None = None
    answer: str | None = None
    finished: bool = True
    prediction: GroundingResult = field(default_factory=GroundingResult)
    notes: list[str] = field(default_factory=list)
    skipped: str | None = None
    reader: str = OWN_PARSER
    num_frames: int = SAMPLED_FRAMES
    model: str | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        groundings = {name: getattr(self, name).to_dict() for name in ("truth", "given", "prediction")}
        return {**asdict(self), **groundings}

    @classmethod
    def from_dict(cls, values: dict) -> "Prediction":
        groundings = {name: GroundingResult.from_dict(values.get(name) or {}) for name in ("truth", "given", "prediction")}
        return cls(**{**values, **groundings})

    def medium(self) -> MediaInfo | None:
        return None if self.media is None else MediaInfo(**self.media)
