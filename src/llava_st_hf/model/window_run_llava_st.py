# SPDX-License-Identifier: Apache-2.0
"""Answers about an open video, window by window: reading, generation, presence, and merging."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .cached_media_llava_st import LastMedium
from .checks_llava_st import is_finite_number, is_integer
from .media_info_llava_st import MediaInfo
from .presence_llava_st import PresenceCalibration, as_answer, token_probabilities
from .questions_llava_st import QUESTIONS_PER_BATCH, PreparedQuestion, prepare_question
from .shared_media_llava_st import PIXELS, KeptPrefix, PromptPrefix, encode_prefixes, prompt_prefix
from .video_frames_llava_st import FramesReader, OpenedVideo
from .video_sampling_llava_st import resolve_clip
from .video_windows_llava_st import OnePassReader, part_frames, window_frames, window_seconds
from .windows_llava_st import WindowEvent, merge_events


if TYPE_CHECKING:  # not executed: the pipeline imports this file
    from .pipeline_llava_st import VideoGroundingPipeline

# Overlap of neighbouring windows as a fraction of a window, unless it is given.
OVERLAP = 0.25
# Shortest part of a window outside an event that is asked about, as a fraction of the window, with `all`.
SHORTEST_PART = 0.3
# Longest one, as a fraction of the window or part that it is in: a part that is hardly shorter gives the same answer again.
LONGEST_PART = 0.9


@dataclass(frozen=True)
class WindowOptions:
    """
    Arguments of questions that are asked for several windows.

    Args:
        window: length of a window in seconds; None for the whole clip.
        overlap: of neighbouring windows in seconds; None for `OVERLAP` times the length.
        all: whether to return every event that the question describes, or only the one with the highest score.
        batch_size: number of questions that are answered together.

    Raises:
        ValueError: naming the argument that is not valid.
    """

    window: float | None = None
    overlap: float | None = None
    all: bool = False
    batch_size: int = QUESTIONS_PER_BATCH

    def __post_init__(self):
        if self.window is not None and (not is_finite_number(self.window) or self.window <= 0):
            raise ValueError(f"window={self.window!r} must be a number of seconds above 0.")
        if self.overlap is not None:
            if self.window is None:
                raise ValueError(f"overlap={self.overlap!r} is that of windows: give `window`, in seconds, too.")
            if not is_finite_number(self.overlap) or not 0 <= self.overlap < self.window:
                raise ValueError(f"overlap={self.overlap!r} must be a number of seconds from 0 to below window={self.window!r}.")
        if not isinstance(self.all, bool):
            raise ValueError(f"all={self.all!r} must be True or False.")
        if not is_integer(self.batch_size) or self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r} must be a whole number of at least 1.")

    @property
    def seconds_of_overlap(self) -> float:
        return self.overlap if self.overlap is not None else OVERLAP * (self.window or 0.0)


class _Kept(KeptPrefix):
    """The states of the prefixes of one batch, which questions do not change."""

    def update(self, inputs: dict, prefixes: list[PromptPrefix], num_beams: int = 1) -> None:
        """Keeps all states."""


@dataclass(frozen=True)
class Look:
    """One question about one window: its first and last frame, both included, and the index of the question."""

    frames: tuple[int, int]
    question: int


class WindowRun:
    """
    Questions about an open video, each asked for several windows of it.

    Args:
        pipeline: [`VideoGroundingPipeline`].
        questions: arguments of each question, with "task" and "text".
        options: the windows.
        calibration: of the presence.
        parameters: arguments of generation and of postprocessing.
        num_frames: number of frames sampled of a window; None for that of the processor.
        reader: of the video.
        clip: as of `resolve_clip`.

    Raises:
        ValueError: if the clip is not valid, or the frame rate is unknown.
    """

    def __init__(
        self,
        pipeline: "VideoGroundingPipeline",
        questions: Sequence[dict],
        options: WindowOptions,
        calibration: PresenceCalibration,
        parameters: tuple[dict, dict],
        num_frames: int | None,
        reader,
        clip: dict | None,
    ):
        self.pipeline, self.questions, self.options, self.calibration = pipeline, questions, options, calibration
        self.forward_params, self.postprocess_params = parameters
        self.num_frames, self.reader, self.metadata = num_frames, reader, reader.metadata
        if not self.metadata.fps and self.metadata.frame_times is None:
            raise ValueError("window and all need the times of frames: give `fps`, in frames per second, or `timestamps`, in seconds.")
        first, last = resolve_clip(clip, self.metadata)
        self.clip = first, min(last, self.metadata.total_num_frames - 1)
        self.windows = [self.clip]
        if options.window is not None:
            self.windows = window_frames(self.metadata, *self.clip, options.window, options.seconds_of_overlap)
        self.found: list[list[tuple[WindowEvent, str]]] = [[] for _ in questions]  # events with the text of their answer
        self.notes: list[list[str]] = [[] for _ in questions]
        self.num_looks = [0] * len(questions)

    def ask(self) -> None:
        """Asks all questions about all windows; with `all` then about the parts of windows outside the events that were found."""
        looks = [Look(frames, number) for frames in self.windows for number in range(len(self.questions))]
        while looks:
            parts = self._ask(looks)
            looks = sorted(parts, key=lambda look: (look.frames, look.question)) if self.options.all else []

    # Asking

    def _ask(self, looks: list[Look]) -> list[Look]:
        """Asks about windows, with one pass through the file, and returns the parts outside events that are present."""
        reader, parts = self.reader, []
        if not isinstance(reader, FramesReader):
            indices = self.pipeline.processor.video_processor.clip_indices
            windows = sorted({look.frames for look in looks})
            reader = OnePassReader(reader, [indices(self.metadata, frames, self.num_frames) for frames in windows])
        media: dict[tuple[int, int], LastMedium] = {}
        for first in range(0, len(looks), self.options.batch_size):
            batch = looks[first : first + self.options.batch_size]
            media = {look.frames: media.get(look.frames) or LastMedium(always=True) for look in batch}
            for look, events in zip(batch, self._ask_batch(batch, OpenedVideo(reader), media), strict=True):
                self.num_looks[look.question] += 1
                self.found[look.question] += events
                parts += self._parts(look, [event for event, _ in events])
        return parts

    def _ask_batch(self, looks: list[Look], video: OpenedVideo, media: dict) -> list[list[tuple[WindowEvent, str]]]:
        """The events of each answer to a batch of questions, with the text of the answer."""

        def prepare(look: Look, **question) -> PreparedQuestion:
            inputs = {"video": video, "clip": list(look.frames)}
            return prepare_question(self.pipeline.processor, inputs, self.num_frames, last_medium=media[look.frames], **question)

        prepared = [prepare(look, **self.questions[look.question]) for look in looks]
        contexts = [question["context"] for question in prepared]
        with self.pipeline.device_placement():
            batch = self.pipeline._collate(prepared)
            kept = self._encode(batch)
            outputs = self.pipeline.forward({**batch, "kept": kept}, **self.forward_params)
            answers = self.pipeline.postprocess(outputs, **self.postprocess_params)
            rows, described = [], []
            for row, (look, answer) in enumerate(zip(looks, answers, strict=True)):
                self._take_notes(look, contexts[row].medium, answer)
                for event in answer["events"]:
                    if event["start"] is not None and event["end"] is not None:
                        rows.append((row, event))
                        described.append(prepare(look, task="tr", span=(event["start"], event["end"])))
            texts = [as_answer(self.questions[looks[row].question]["text"]) for row, _ in rows]
            agreements = self._agreements(described, texts, kept)
        found: list[list[tuple[WindowEvent, str]]] = [[] for _ in looks]
        for (row, event), agreement in zip(rows, agreements, strict=True):
            presence = self.calibration.presence(agreement, event.get("span_score"))
            found[row].append((_window_event(event, window_seconds(contexts[row].medium), presence, agreement), answers[row]["text"]))
        return found

    def _encode(self, batch: dict) -> _Kept:
        """Encodes each different window of a batch once, and frees its pixels."""
        model, prefixes = self.pipeline.model, batch["prefixes"]
        inputs = {name: tensor.to(model.device, model.dtype if name in PIXELS else None) for name, tensor in batch["model_inputs"].items()}
        first = {prefix.key: row for row, prefix in reversed(list(enumerate(prefixes)))}
        kept, vision_chunk_size = _Kept(), self.forward_params.get("vision_chunk_size")
        kept.states = encode_prefixes(model, inputs, prefixes, sorted(first.values()), vision_chunk_size)
        batch["model_inputs"] = {name: tensor for name, tensor in batch["model_inputs"].items() if name not in PIXELS}
        return kept

    def _agreements(self, described: list[PreparedQuestion], texts: list[str], kept: _Kept) -> list[float]:
        """Mean probability of the tokens of each text as the answer to a question about the span of an event."""
        if not described:
            return []
        model, tokenizer = self.pipeline.model, self.pipeline.processor.tokenizer
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        answers = [torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], end]) for text in texts]
        samples = [{name: tensor for name, tensor in one["model_inputs"].items() if name not in PIXELS} for one in described]
        prefixes = [prompt_prefix(one["model_inputs"], one["medium"], model.config.all_media_token_ids) for one in described]
        return [float(values.mean()) for values in token_probabilities(model, samples, prefixes, answers, kept)]

    def _take_notes(self, look: Look, medium: MediaInfo, answer: dict) -> None:
        """Adds the notes about an answer that are not about the file."""
        start, end = window_seconds(medium)
        notes = [note for note in answer["notes"] if note not in medium.notes]
        if any(event["start"] is None or event["end"] is None for event in answer["events"]):
            notes.append("An event without a span was left out.")
        self.notes[look.question] += [f"Window from {start:g} to {end:g} s: {note}" for note in notes]

    def _parts(self, look: Look, events: list[WindowEvent]) -> list[Look]:
        """The parts of a window outside its events that are present, unless they are short; none if no event is present."""
        begin, end = self.metadata.seconds(look.frames[0]), self.metadata.seconds(look.frames[1] + 1)
        present = sorted((event.start, event.end) for event in events if event.presence >= self.calibration.threshold)
        if not present:
            return []
        shortest, longest = SHORTEST_PART * (self.options.window or self._seconds_of_clip), LONGEST_PART * (end - begin)
        parts, last = [], begin
        for start, stop in [*present, (end, end)]:
            if shortest <= start - last <= longest:
                parts.append(Look(part_frames(self.metadata, last, start, *look.frames), look.question))
            last = max(last, stop)
        return parts

    @property
    def _seconds_of_clip(self) -> float:
        return self.metadata.seconds(self.clip[1] + 1) - self.metadata.seconds(self.clip[0])

    # Answering

    def answer(self, number: int) -> dict:
        """The answer to a question, from the events of all windows."""
        media, threshold, found = self.metadata.media(*self.clip), self.calibration.threshold, self.found[number]
        texts = {id(event): text for event, text in found}
        events = [event for event, _ in found]
        presence = max((event.presence for event in events), default=0.0)
        present = [event for event in events if event.presence >= threshold]
        notes = [*media.notes, self._summary(number, len(events), len(present))]
        merged = merge_events(present, window_seconds(media))
        if len(merged) < len(present):
            notes.append(f"{len(present)} events of windows were merged to {len(merged)}.")
        if not self.options.all:
            ranked = sorted(merged or events, key=lambda event: (-_rank(event), event.order))
            merged = ranked[:1]
            if len(ranked) > 1:
                notes.append(
                    f"Of {len(ranked)} events, the one with the highest score is returned. all=True returns every one that is present."
                )
            if merged and not present:
                notes.append(f"Its presence, {presence:g}, is below the threshold of {threshold:g}: what is described may not occur.")
        elif not merged:
            notes.append(f"What is described was not found: the highest presence is {presence:g}, the threshold {threshold:g}.")
        question = self.questions[number]
        shown = [texts[id(event)] for event in sorted(events, key=lambda event: event.order) if _is_part(event, merged)]
        return {
            "text": "\n".join(dict.fromkeys(shown)),
            "events": [_event_dict(event) for event in merged],
            "notes": notes + self.notes[number],
            "media": media.to_dict(),
            "task": question["task"],
            "query": question["text"],
            "presence": presence,
        }

    def _summary(self, number: int, num_events: int, num_present: int) -> str:
        looks = self.num_looks[number]
        length = "" if self.options.window is None else f" of {min(self.options.window, self._seconds_of_clip):g} s"
        num_parts = looks - len(self.windows)
        rest = f" and {num_parts} part{'s' * (num_parts > 1)} of windows" if num_parts else ""
        windows = f"{len(self.windows)} window{'s' * (len(self.windows) > 1)}{length}{rest}"
        threshold = self.calibration.threshold
        return f"The question was asked for {windows}: {num_present} of {num_events} events have a presence of at least {threshold:g}."


def _window_event(event: dict, window: tuple[float, float], presence: float, agreement: float) -> WindowEvent:
    """An event of an answer about a window. Boxes without a time are left out, and bins, which are those of the window."""
    boxes = [
        (box["time"], {name: value for name, value in box.items() if name != "bins"}) for box in event["boxes"] if box["time"] is not None
    ]
    return WindowEvent(
        start=event["start"],
        end=event["end"],
        windows=(window,),
        presence=presence,
        agreement=agreement,
        span_score=event.get("span_score"),
        score=event.get("score"),
        caption=event["caption"],
        boxes=tuple(sorted(boxes, key=lambda box: box[0])),
    )


def _rank(event: WindowEvent) -> float:
    """Score by which events are compared: the presence times the expected IoU of the span."""
    return event.presence * (1.0 if event.span_score is None else event.span_score)


def _is_part(event: WindowEvent, merged: list[WindowEvent]) -> bool:
    return any(event.windows[0] in whole.windows and whole.start <= event.end and event.start <= whole.end for whole in merged)


def _event_dict(event: WindowEvent) -> dict:
    """The event of an answer. It has no bins, which are those of its windows."""
    boxes = [entry for _, entry in event.boxes]
    values = {"start": event.start, "end": event.end, "caption": event.caption, "boxes": boxes}
    if event.span_score is not None or event.score is not None:
        values |= {"bins": None, "span_score": event.span_score, "score": event.score}
    return {**values, "presence": event.presence}


__all__ = ["OVERLAP", "WindowOptions", "WindowRun"]
