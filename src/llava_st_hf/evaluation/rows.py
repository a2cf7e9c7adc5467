# SPDX-License-Identifier: Apache-2.0
"""Questions of a benchmark, and predictions: one JSON object per sample, with everything that is needed to score it again.

Times are fractions of the clip that the model saw, boxes are in pixels of the upright original image, frames are indices of the original
file. A *tubelet* maps frames to boxes; in JSON its keys are strings. The fields named `truth` hold the ground truth.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..data.samples import GroundingSample
from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Box as ResultBox
from ..model.results_llava_st import Event, Grounding


Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
Span = tuple[float, float]

# Fields of `GroundingResult` that the answer to each task has.
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
OWN_PARSER = "llava_st"  # key in `answers.ANSWER_PARSERS` of the parser for answers with coordinate tokens


@dataclass(frozen=True)
class GroundingResult:
    """
    Ground truth of a sample, or content of an answer. Fields that the task does not ask for are None.

    Args:
        span: `(start, end)` of the event, as fractions of the clip.
        box: bounding box in an image, `(x1, y1, x2, y2)` in pixels.
        tubelet: bounding box in each frame of a video, `{frame: box}`.
        caption: text of a description or caption.
        objects: objects of an image, `(phrase, box)` each.
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

    def events(self, media: MediaInfo) -> tuple[Event, ...]:
        """The same in seconds and pixels: an event for each of `objects`, else one event with all other fields; none without fields."""
        if self.objects is not None:
            return tuple(Event(phrase or None, boxes=(ResultBox(*box),)) for phrase, box in self.objects)
        if self == GroundingResult():
            return ()
        start, end = (None, None) if self.span is None else map(media.time, self.span)
        boxes = [] if self.box is None else [ResultBox(*self.box)]
        for frame, box in (self.tubelet or {}).items():
            boxes.append(ResultBox(*box, time=media.seconds_of_frame(frame), frame=frame))
        return (Event(self.caption, start, end, tuple(boxes)),)

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
        path: absolute path of the image or video.
        kind: "image" or "video".
        clip: first and last frame of the clip, both included; None for all.
        start, end: the same in seconds, either None.
        prompt: text of the question, with coordinates inline and without the mark of the image or video.
        truth: the ground truth.
        given: the part of it that the question contains ("svg": the span; "elc": start and first box).
        size: `(width, height)` of the image or video in pixels; None where the annotation does not have them.
        frames: `(first, last)` frame of the clip; None where the annotation does not have them.
        num_frames: frames sampled of the clip: the tubelet of `truth` has boxes at these. None for images, and before
            `ground_truth.to_clip_coordinates`.
        sample: the annotation, where the ground truth depends on the video or on the number of sampled frames: `truth` and `given` then
            lack times or boxes until `ground_truth.to_clip_coordinates` adds them. Else None.
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
    num_frames: int | None = None
    sample: GroundingSample | None = None


@dataclass
class Prediction:
    """
    One line of a predictions file.

    Args:
        id, benchmark, task, prompt, truth, given, num_frames: of the question.
        path: of the image or video.
        media: `MediaInfo.to_dict` of the image or clip that the model saw; None where it could not be opened.
        answer: text of the answer with its coordinate tokens; None where there is none.
        finished: whether the answer ended by itself, before the maximum number of tokens.
        prediction: content of the answer.
        notes: sentences about the image or video, and about parts of the answer that could not be read.
        skipped: the reason why there is no answer; None where there is one.
        reader: key in `answers.ANSWER_PARSERS` of the parser that read the answer.
        model, seed, versions: name of the model, seed of the prompts, versions of the libraries.
        settings: of `EvaluationSettings`, those that the answer depends on; empty for answers of other programs and of version 0.1.
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
    num_frames: int | None = None
    model: str | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        groundings = {name: getattr(self, name).to_dict() for name in ("truth", "given", "prediction")}
        return {**asdict(self), **groundings}

    @classmethod
    def from_dict(cls, values: dict) -> "Prediction":
        groundings = {name: GroundingResult.from_dict(values.get(name) or {}) for name in ("truth", "given", "prediction")}
        return cls(**{**values, **groundings})

    def medium(self) -> MediaInfo | None:
        """The image or clip that the model saw; None where it could not be opened, and for answers from lmms-eval."""
        return None if self.media is None else MediaInfo.from_dict(self.media)

    def grounding(self) -> Grounding:
        """
        The answer in seconds and pixels of the original, for pictures and exports: the content that was scored, with the span and box that
        the prompt contained.

        Its events have no scores. `query` is the prompt; `notes` end with the reason why there is no answer, where there is none.

        Raises:
            ValueError: if `media` is missing or not valid.
        """
        media = self.medium()
        if media is None and self.prediction != GroundingResult():
            raise ValueError(f"media of the prediction {self.id!r} is missing, without which times and boxes have no units.")
        events = () if media is None else self.prediction.events(media)
        if media is not None and len(events) == 1 and self.prediction.objects is None:
            events = (self._with_prompt_values(events[0], media),)
        notes = [*self.notes, *([] if self.skipped is None else [self.skipped])]
        return Grounding(self.answer or "", events, media, tuple(notes), self.task, self.prompt, self.path)

    def _with_prompt_values(self, event: Event, media: MediaInfo) -> Event:
        """An event with span and box of the prompt where the answer has none. Of the span of "elc", the prompt contains the start alone."""
        given = self.given
        if event.start is None and given.span is not None:
            start, end = map(media.time, given.span)
            event = replace(event, start=start, end=None if self.task == "elc" else end)
        if not event.boxes and given.box is not None:
            frame = None if given.span is None else media.frame(given.span[0])
            event = replace(event, boxes=(ResultBox(*given.box, time=event.start, frame=frame),))
        return event
