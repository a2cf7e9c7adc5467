# SPDX-License-Identifier: Apache-2.0
"""`GroundingClient`: questions to a server, on several connections."""

import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from ..model.checks_llava_st import is_integer
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.questions_llava_st import QUESTION_KEYS, is_chat, split_questions
from ..model.results_llava_st import Grounding
from .exact import CoordinateRows
from .http import Api, Failure, wait_after
from .requests import GroundingRequest, build_request
from .responses import RequestError, read_response


# Images and videos that are decoded at the same time: each is decoded by several threads, and its frames take 200 MB.
_DECODERS = 2


class GroundingClient:
    """
    Asks a server with OpenAI's API, such as vLLM with the plug-in of this package, the questions of the pipeline.

    Reads media, converts seconds and pixels, cuts clips and reads answers in this process, with the files of the processor only. May be
    used by several threads. Close it with `close` or use it in a `with` statement.

    Args:
        base_url: address of the API, such as "http://127.0.0.1:8000/v1".
        model: name of the model on the server; by default its only one.
        processor: [`LlavaSTProcessor`] of the checkpoint that is served, or its folder or repository of the Hub; by default `model`,
            or without it the folder that the server names.
        api_key: key of the server; by default the environment variable OPENAI_API_KEY.
        connections: number of requests at the same time.
        timeout: seconds for one attempt, from its first byte sent until the last one received.
        max_retries: number of further attempts after a connection error, status 408 or 429, or a status of 500 and above. Times between
            them are random, and grow exponentially; a time that the server asks for by Retry-After is kept.
        rows: [`CoordinateRows`] for `exact=True`; by default those of the checkpoint that `processor` names.
        media_urls: send addresses of files instead of their contents; see `build_request`.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        processor: LlavaSTProcessor | str | os.PathLike | None = None,
        api_key: str | None = None,
        connections: int = 16,
        timeout: float = 600.0,
        max_retries: int = 5,
        rows: CoordinateRows | None = None,
        media_urls: bool = False,
    ):
        if not is_integer(max_retries) or max_retries < 0:
            raise ValueError(f"max_retries must be a whole number of at least 0, got {max_retries!r}.")
        self._api = Api(base_url, api_key if api_key is not None else os.environ.get("OPENAI_API_KEY") or None, connections, timeout)
        self.base_url, self.connections = self._api.base_url, int(connections)
        self.timeout, self.max_retries, self.media_urls = float(timeout), int(max_retries), media_urls
        self._model, self._processor, self._rows = model, processor if processor is not None else model, rows
        self._decoders = threading.BoundedSemaphore(_DECODERS)
        self._lock, self._closed = threading.RLock(), threading.Event()

    def __repr__(self) -> str:
        return f"GroundingClient({self.base_url!r}, model={self._model!r}, connections={self.connections})"

    def __enter__(self) -> "GroundingClient":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. Requests that wait for another attempt are given up."""
        self._closed.set()
        self._api.close()

    @cached_property
    def model(self) -> str:
        """Name of the model on the server."""
        with self._lock:
            if self._model is None:
                try:
                    self._model = self._api.model(self._send("GET", "/models", None))
                except ValueError as error:
                    raise ValueError(f"{error} Give the name of one as model.") from error
            return self._model

    @cached_property
    def processor(self) -> LlavaSTProcessor:
        """The processor of the checkpoint."""
        with self._lock:
            if self._processor is not None and not isinstance(self._processor, (str, os.PathLike)):
                return self._processor
            name = self.model if self._processor is None else self._processor
            if self._processor is None and not os.path.isdir(name):  # nothing is downloaded because a server names it
                raise ValueError(f"The model of the server, {name!r:.200}, is not a folder here: give processor=, a folder or repository.")
            path = os.fspath(name)
            if not os.path.isdir(path) and (os.path.isabs(path) or path.startswith(".") or path.count("/") > 1):
                raise ValueError(f"The processor {path!r} is not a folder: give processor=, the folder or repository of the checkpoint.")
            try:
                return LlavaSTProcessor.from_pretrained(name)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"The processor of {path!r} cannot be loaded: give processor=, a folder or repository. ({error})"
                ) from error

    @cached_property
    def _coordinate_rows(self) -> CoordinateRows:
        with self._lock:
            if self._rows is not None:
                return self._rows
            if isinstance(self._processor, (str, os.PathLike)):
                return CoordinateRows.from_checkpoint(self._processor)
            raise ValueError("exact=True needs rows=CoordinateRows.from_checkpoint(…), or the folder of the checkpoint as processor.")

    def __call__(self, inputs, **arguments) -> Grounding | list[Grounding]:
        """
        Answers one question, or several about one image or video.

        Args:
            inputs: one input of the pipeline, or a list of inputs: see `VideoGroundingPipeline.__call__`.
            arguments: text, task, clip, start, end, span, time, box, fps, timestamps, num_frames, video_backend, allow_truncated and
                download_limits as those of the pipeline; exact, constrained and max_tokens as those of `build_request`.

        Returns:
            [`Grounding`], or a list of them for a list of inputs and for lists of text, task, span, time or box.

        Raises:
            ValueError, OSError: naming what is wrong with media or question.
            RequestError: if the server does not answer.
        """
        questions = split_questions(inputs, {name: arguments[name] for name in QUESTION_KEYS if name in arguments})
        if questions:
            arguments = {name: value for name, value in arguments.items() if name not in questions[0]}
        elif questions is None and isinstance(inputs, list) and not is_chat(inputs):
            questions = inputs
        if questions is None:
            return self._answer(inputs, arguments)
        answers = []
        for answer in self.map(questions, **arguments):
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers

    def map(self, questions: Iterable, **arguments) -> Iterator[Grounding | Exception]:
        """
        Answers questions on `connections` connections, in the order of the questions.

        Args:
            questions: inputs of the pipeline. Generators are read as far as questions are in work.
            arguments: of all questions, see `__call__`.

        Returns:
            An iterator with one entry for each question: its [`Grounding`], or the exception that a call would raise.
        """
        stopped = threading.Event()
        executor = ThreadPoolExecutor(self.connections, thread_name_prefix="grounding")
        pending: deque[Future] = deque()
        try:
            for question in questions:
                pending.append(executor.submit(self._answer_or_error, question, arguments, stopped))
                # A slow answer does not stop the others: as many again are asked before it is waited for.
                while pending and (len(pending) >= 2 * self.connections or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)

    def _answer_or_error(self, question, arguments: dict, stopped: threading.Event) -> Grounding | Exception:
        try:
            return self._answer(question, arguments, stopped)
        except Exception as error:
            return error

    def _answer(self, question, arguments: dict, stopped: threading.Event | None = None) -> Grounding:
        request = self.build_request(question, **arguments)
        body = self._send("POST", "/chat/completions", request.payload, stopped)
        return read_response(body, request)

    def build_request(self, question, **arguments) -> GroundingRequest:
        """The request of a question, with the model and the processor of this client; see the function `build_request`."""
        rows = self._coordinate_rows if arguments.get("exact") else None
        model, processor = self.model, self.processor
        with self._decoders:
            return build_request(question, processor, model=model, rows=rows, media_urls=self.media_urls, **arguments)

    # Requests

    def _send(self, method: str, path: str, payload: dict | None, stopped: threading.Event | None = None):
        """Sends a request until it is answered, and returns the parsed body."""
        content = None if payload is None else json.dumps(payload).encode()
        attempts = 0
        while True:
            if self._closed.is_set() or (stopped is not None and stopped.is_set()):
                raise RequestError(f"{method} {self.base_url}{path} was given up: the client was closed, or no more answers are read.")
            attempts += 1
            try:
                return self._api.send(method, path, content)
            except Failure as failure:
                wait = wait_after(failure, attempts, self.max_retries)
            (stopped or self._closed).wait(wait)
