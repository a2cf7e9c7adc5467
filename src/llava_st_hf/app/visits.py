# SPDX-License-Identifier: Apache-2.0
"""Visits of the page: the files, encoded media and answers of each visitor, which no other visitor sees and which are deleted."""

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..model.media_info_llava_st import MediaInfo
from ..model.results_llava_st import Grounding
from .limits import Limits, duration_text


class TooManyUploadsError(Exception):
    """As many visitors have uploaded files as the limits allow."""


@dataclass(frozen=True)
class Medium:
    """
    An image or video that a visitor chose.

    Args:
        path: of the file that the model sees.
        shown: of the file that the browser plays: the same one, or a copy in a format that browsers play.
        name: for the visitor: the file name on their computer, or that of an example.
        info: of the whole file.
        example: name of the example; None for an upload.
        id: part of URLs, not guessable.
    """

    path: Path
    shown: Path
    name: str
    info: MediaInfo
    example: str | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(24))


class Visit:
    """
    What belongs to one opened page.

    Attributes:
        token: names the visit in requests; only its page has it.
        medium: the image or video, once it is open.
        uploaded: an upload that is not open yet.
        session: `GroundingSession` about `medium`; None if it must be encoded again.
        answers, questions: about `medium`, in order; a question has the arguments of the session and "task".
        stopped: set when the visitor stops the answer that is generated.
    """

    def __init__(self, parent: Path):
        self.token = secrets.token_urlsafe(24)
        self.folder = Path(tempfile.mkdtemp(prefix="visit-", dir=parent))
        self.medium: Medium | None = None
        self.uploaded: Medium | None = None
        self.session = None
        self.answers: list[Grounding] = []
        self.questions: list[dict] = []
        self.stopped = threading.Event()
        self.ended = False
        self.busy = 0  # requests in progress
        self.last_used = time.monotonic()

    @property
    def has_files(self) -> bool:
        return any(self.folder.iterdir()) if self.folder.is_dir() else False

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keeps the visit from being deleted as idle while a request is in progress."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            self.last_used = time.monotonic()

    def open(self, medium: Medium) -> None:
        """Makes `medium` the one that questions are about, and deletes the upload before it."""
        before = self.medium
        self.close_session()
        self.medium, self.answers, self.questions = medium, [], []
        if before is not None and before.example is None and before is not medium:
            for path in {before.path, before.shown}:
                path.unlink(missing_ok=True)

    def close_session(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.close()


class Visits:
    """
    All visits.

    Args:
        limits: see [`Limits`].
        folder: private folder in which each visit gets its own.

    Attributes:
        model: lock of the model, which answers one question at a time.
    """

    def __init__(self, limits: Limits, folder: Path):
        self.limits, self.folder = limits, folder
        self.model = threading.Lock()
        self._visits: dict[str, Visit] = {}
        self._of_pages: dict[str, str] = {}  # Gradio's hash of an opened page → token
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_regularly, name="llava-st-visits", daemon=True)
        self._sweeper.start()

    def begin(self, page: str) -> Visit:
        """
        Begins the visit of a page that was opened.

        Args:
            page: Gradio's hash of the page, with which `end` is called when it is closed.
        """
        self.end_page(page)
        visit = Visit(self.folder)
        with self._lock:
            self._visits[visit.token] = visit
            self._of_pages[page] = visit.token
        return visit

    def find(self, token) -> Visit:
        """
        The visit with a token.

        Raises:
            ValueError: for visitors, if there is none: it was idle for too long, or the server was restarted.
        """
        with self._lock:
            visit = self._visits.get(token) if isinstance(token, str) else None
        if visit is None:
            idle = duration_text(self.limits.idle_seconds)
            raise ValueError(f"This page was not used for {idle}, so its files were deleted. Reload the page to begin again.")
        visit.last_used = time.monotonic()
        return visit

    def check_room(self, visit: Visit) -> None:
        """Raises a TooManyUploadsError if `visit` cannot upload a file now."""
        with self._lock:
            others = [other for other in self._visits.values() if other is not visit]
        if sum(other.has_files for other in others) >= self.limits.visits:
            raise TooManyUploadsError("Too many visitors have uploaded files. Try again in a few minutes, or choose an example.")

    def opened(self, visit: Visit, session) -> None:
        """Keeps the session of a visit, and closes those of the visitors that asked least recently. Call it with the lock of the model."""
        if visit.ended:
            session.close()
            return
        visit.close_session()
        visit.session = session
        with self._lock:
            kept = sorted((other for other in self._visits.values() if other.session is not None), key=lambda other: other.last_used)
        for other in [other for other in kept if other is not visit][: max(len(kept) - self.limits.open_media, 0)]:
            other.close_session()

    def end_page(self, page: str | None) -> None:
        """Ends the visit of a page that was closed."""
        with self._lock:
            token = self._of_pages.pop(page, None) if page else None
            visit = self._visits.pop(token, None) if token else None
        if visit is not None:
            self._delete(visit)

    def sweep(self) -> None:
        """Ends the visits that are idle for too long."""
        limit = time.monotonic() - self.limits.idle_seconds
        with self._lock:
            idle = [visit for visit in self._visits.values() if not visit.busy and visit.last_used < limit]
            for visit in idle:
                del self._visits[visit.token]
            self._of_pages = {page: token for page, token in self._of_pages.items() if token in self._visits}
        for visit in idle:
            self._delete(visit)

    def close(self) -> None:
        """Ends all visits."""
        self._closing.set()
        with self._lock:
            visits, self._visits, self._of_pages = list(self._visits.values()), {}, {}
        for visit in visits:
            self._delete(visit)

    def _delete(self, visit: Visit) -> None:
        visit.ended = True
        visit.stopped.set()  # an answer that is generated ends at its next token
        shutil.rmtree(visit.folder, ignore_errors=True)
        visit.close_session()

    def _sweep_regularly(self) -> None:
        while not self._closing.wait(min(self.limits.idle_seconds / 4, 30.0)):
            self.sweep()


__all__ = ["Medium", "TooManyUploadsError", "Visit", "Visits"]
