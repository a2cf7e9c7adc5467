# SPDX-License-Identifier: Apache-2.0
"""Opening of media and answers to questions for visitors, as what the components of the page display."""

import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Any

from transformers.utils import logging

from ..model.results_llava_st import Event, Grounding
from .limits import Limits
from .media import SUFFIXES
from .questions import FREE, LABELS, describe, needs, question_arguments
from .visits import Medium, Visit, Visits


logger = logging.get_logger(__name__)
_INTERNAL = "This failed because of an error in the server. Its log has the reason."
_SECONDS_PER_UPDATE = 0.1  # of a streamed answer, so that long answers do not flood the connection


class Answering:
    """
    Answers questions of visitors, one at a time.

    Args:
        grounder: the pipeline.
        visits: all visits.
        examples: name → (medium, title).
        formats: `{"path", "label"}` of the downloads of an answer, and "kinds" of media that each is for.
    """

    def __init__(self, grounder, visits: Visits, examples: Mapping[str, tuple[Medium, str]], formats: list[dict]):
        self.grounder, self.visits, self.examples, self.formats = grounder, visits, examples, formats
        self.limits: Limits = visits.limits

    # Data of the components

    def player(self, visit: Visit | None, busy: str | None = None, problem: str | None = None) -> dict[str, Any]:
        """Data of the player; see `data` of player.js."""
        examples = [
            {"name": name, "title": title, "poster": f"llava-st/examples/{name}.poster.jpg"} for name, (_, title) in self.examples.items()
        ]
        settings = {
            "upload": f"llava-st/visits/{visit.token}/upload" if visit else None,
            "max_bytes": self.limits.upload_bytes,
            "limits": self.limits.describe(),
            "suffixes": list(SUFFIXES),
            "examples": examples,
            "needs": {task: needs(task) for task in LABELS},
        }
        medium = None if visit is None or visit.medium is None else self._medium(visit, visit.medium)
        return {"settings": settings, "visit": visit and visit.token, "medium": medium, "busy": busy, "problem": problem}

    def _medium(self, visit: Visit, medium: Medium) -> dict[str, Any]:
        info = medium.info
        return {
            "id": medium.id,
            "url": f"llava-st/visits/{visit.token}/media/{medium.id}",
            "kind": info.kind,
            "name": medium.name,
            "example": medium.example,
            "width": info.width,
            "height": info.height,
            "duration": info.duration,
            "fps": info.fps,
        }

    def answers(self, visit: Visit | None, pending: dict | None = None, problem: str | None = None) -> dict[str, Any]:
        """Data of the list of answers; see `data` of answers.js."""
        given = [] if visit is None else [self._answer(visit, number) for number in range(len(visit.answers))]
        return {"answers": given, "pending": pending, "problem": problem, "formats": self.formats}

    def _answer(self, visit: Visit, number: int) -> dict[str, Any]:
        grounding, question = visit.answers[number], visit.questions[number]
        return {
            "number": number + 1,
            **answer_data(grounding, question),
            "url": f"llava-st/visits/{visit.token}/media/{visit.medium.id}/answers/{number + 1}",
        }

    # Requests

    def open(self, token: str, example: str | None) -> Iterator[dict[str, Any]]:
        """
        Opens an example, or the file that the visitor uploaded, and yields data of the player.

        Args:
            token: of the visit.
            example: name of the example; None for the upload.
        """
        try:
            visit = self.visits.find(token)
            if example is None:
                medium, visit.uploaded = visit.uploaded, None
            else:
                medium = self.examples[example][0] if example in self.examples else None
            if medium is None:
                raise ValueError("Choose an example or upload a file.")
        except ValueError as error:
            yield self.player(None, problem=str(error))
            return
        visit.open(medium)
        yield self.player(visit, busy=f"Encoding {medium.name}, once for all questions…")
        try:
            with visit.use(), self.visits.model:
                self._encode(visit, medium)
        except (ValueError, OSError) as error:
            yield self.player(visit, problem=_for_visitors(error, medium))
            return
        except Exception:
            logger.exception("%s could not be encoded.", medium.path)
            yield self.player(visit, problem=_INTERNAL)
            return
        yield self.player(visit)

    def _encode(self, visit: Visit, medium: Medium) -> None:
        """Encodes the medium of a visit. The lock of the model must be held."""
        if visit.session is None and visit.medium is medium:
            self.visits.opened(visit, self.grounder.open({medium.info.kind: str(medium.path)}))

    def ask(self, drawn: Mapping[str, Any], task: str, text: str | None, follow_up: bool) -> Iterator[dict[str, Any]]:
        """
        Answers a question and yields data of the list of answers.

        Args:
            drawn: `question` of player.js: "visit", "medium", "box", "span" and "time".
            task, text: see `question_arguments`.
            follow_up: whether the question continues the chat of the last one.
        """
        visit = None
        try:
            if not isinstance(drawn, Mapping):
                raise ValueError(f"The question must be a JSON object, got {drawn!r:.100}.")
            visit = self.visits.find(drawn.get("visit"))
            medium = visit.medium
            if medium is None or medium.id != drawn.get("medium"):
                raise ValueError("Choose an example or upload a file first.")
            self.limits.check_text(text or "")
            question = question_arguments(task, text, drawn, medium.info)
            if follow_up and not visit.answers:
                raise ValueError("A follow-up question needs an answer before it. Press Ask.")
        except ValueError as error:
            yield self.answers(visit, problem=str(error))
            return
        visit.stopped.clear()
        yield self.answers(visit, pending=_pending(task, question, "Waiting for the model…"))
        # In a thread of its own: the server may leave this generator unfinished when the visitor goes away, but not the lock of the model.
        updates: SimpleQueue = SimpleQueue()
        arguments = (visit, medium, task, question, follow_up, updates.put)
        Thread(target=self._answer_question, args=arguments, name="llava-st-answer", daemon=True).start()
        while (update := updates.get()) is not None:
            yield self.answers(visit, **update)

    def _answer_question(self, visit: Visit, medium: Medium, task: str, question: dict, follow_up: bool, put: Callable) -> None:
        """Calls `put` with arguments of `answers`, and with None at the end."""
        try:
            with visit.use(), self.visits.model:
                self._stream(visit, medium, task, question, follow_up, put)
            put({})
        except (ValueError, OSError) as error:
            put({"problem": _for_visitors(error, medium)})
        except Exception:
            logger.exception("The answer to %r failed.", question)
            put({"problem": _INTERNAL})
        finally:
            put(None)

    def _stream(self, visit: Visit, medium: Medium, task: str, question: dict, follow_up: bool, put: Callable) -> None:
        if visit.session is None:
            if follow_up:
                raise ValueError("The chat before this question is no longer in memory. Press Ask instead of Follow up.")
            put({"pending": _pending(task, question, f"Encoding {medium.name} again…")})
            self._encode(visit, medium)
        if visit.ended or visit.session is None:
            raise ValueError("Another file was opened. Ask again.")
        draft, start = Draft(task, question), time.monotonic()
        shown_at = start
        put({"pending": draft.data()})
        parts = visit.session.stream(follow_up=follow_up, scores=True, **question)
        try:
            for part in parts:
                now = time.monotonic()
                if part["type"] == "answer" and visit.medium is medium:
                    visit.answers.append(Grounding.from_dict(part["answer"], source=medium.name))
                    visit.questions.append({**question, "task": task})
                elif visit.stopped.is_set() or visit.medium is not medium:
                    raise ValueError("The answer was stopped.")
                elif now - start > self.limits.answer_seconds:
                    limit = f"{self.limits.answer_seconds:g} seconds"
                    raise ValueError(f"The answer took longer than {limit} and was stopped. Ask about a shorter span or video.")
                else:
                    draft.add(part)
                    if now - shown_at >= _SECONDS_PER_UPDATE:
                        shown_at = now
                        put({"pending": draft.data()})
        finally:
            parts.close()

    def stop(self, drawn: Mapping[str, Any]) -> None:
        """Stops the answer of a visit that is generated."""
        self.visits.find(drawn.get("visit") if isinstance(drawn, Mapping) else None).stopped.set()


class Draft:
    """An answer as far as it is generated: events at the bins, before refinement."""

    def __init__(self, task: str, question: Mapping):
        self.task, self.question, self.text = task, question, ""
        self.events: list[dict] = []
        self.event: dict = {"start": None, "end": None, "caption": None, "boxes": []}

    def add(self, part: Mapping[str, Any]) -> None:
        """Adds a part of `GroundingSession.stream`."""
        if part["type"] == "text":
            self.text += part["text"]
        elif part["type"] == "span":
            self.event.update(start=part["start"], end=part["end"])
        elif part["type"] == "box":
            self.event["boxes"].append({name: part[name] for name in ("time", "frame", "box") if name in part})
        elif part["type"] == "event":
            self.events.append(part["event"])
            self.event = {"start": None, "end": None, "caption": None, "boxes": []}

    def data(self) -> dict[str, Any]:
        """`pending` of the list of answers."""
        begun = [self.event] if self.event["boxes"] or self.event["start"] is not None else []
        boxes = sum(len(event["boxes"]) for event in [*self.events, *begun])
        pending = _pending(self.task, self.question, f"Answering… {boxes} boxes" if boxes else "Answering…")
        grounding = Grounding.from_dict({"text": "", "events": [*self.events, *begun], "query": self.question.get("text")})
        pending["answer"]["events"] = [_event_data(grounding, event) for event in grounding.events]
        return pending


def _pending(task: str, question: Mapping, status: str) -> dict[str, Any]:
    return {"answer": answer_data(Grounding(), {**question, "task": task}), "status": status}


def answer_data(grounding: Grounding, question: Mapping[str, Any]) -> dict[str, Any]:
    """Title, question, events, text and notes of an answer, JSON-serializable. The components insert all texts as text nodes."""
    words = [question.get("text"), describe(question)]
    return {
        "title": LABELS[question.get("task", FREE)][0],
        "prompt": " · ".join(word for word in words if word),
        "kind": "video" if grounding.is_video else "image",
        "text": grounding.text,
        "notes": list(grounding.notes),
        "events": [_event_data(grounding, event) for event in grounding.events],
    }


def _event_data(grounding: Grounding, event: Event) -> dict[str, Any]:
    boxes = event.tubelet.boxes or event.boxes  # in the order of time in a video
    return {
        "start": event.start,
        "end": event.end,
        "caption": event.caption,
        "label": grounding.label(event),
        "score": event.score,
        "span_score": event.span_score,
        "boxes": [{"time": box.time, "box": list(box.xyxy)} for box in boxes],
    }


def _for_visitors(error: Exception, medium: Medium) -> str:
    """The message of an error without the path of a file on the server."""
    logger.warning("%s: %s", type(error).__name__, error)
    return str(error).replace(str(medium.path), medium.name)


__all__ = ["Answering", "answer_data"]
